"""plan: bytes and operations of a run before it starts, and the refusal of one that cannot fit."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.errors import MemoryPlanError
from jaxinterp.model.config import TransformerConfig
from jaxinterp.model.language_model import LanguageModel, Prompts
from jaxinterp.model.rules import Rules
from jaxinterp.model.selection import At, axis_of
from jaxinterp.model.sites import site_of
from jaxinterp.model.tokens import Tokens
from jaxinterp.model.transformer import Sites, canonical_sites
from jaxinterp.runs.objective import adding, gradient_program, measured, zeros_at
from jaxinterp.runs.program import bucket, check_dtype, run_program


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run needs.

    Attributes:
        weights: bytes of the parameters, already in memory.
        captured: bytes of the captured sites, by site.
        logits: bytes of the logits.
        temporaries: bytes of intermediate values: counted for the largest block, or the compiler's own analysis.
        measured: whether `temporaries` comes from the compiler.
        operations: floating-point operations of the matrix products (a multiply-add counts two).
        available: free bytes on the device, or None where it does not say.
        device: its name.
        shape: (prompts, padded positions).
    """

    weights: int
    captured: Mapping[str, int]
    logits: int
    temporaries: int
    measured: bool
    operations: int
    available: int | None
    device: str
    shape: tuple[int, int]

    @property
    def needed(self) -> int:
        """Bytes beyond the weights."""
        return sum(self.captured.values()) + self.logits + self.temporaries

    def __str__(self) -> str:
        rows = [
            ("weights", self.weights),
            *((f"captured {site}", size) for site, size in sorted(self.captured.items(), key=lambda item: -item[1])),
            ("logits", self.logits),
            ("temporaries (compiler)" if self.measured else "temporaries (counted)", self.temporaries),
        ]
        lines = [f"{name:<28}{nbytes(size):>12}" for name, size in rows]
        free = "unknown" if self.available is None else nbytes(self.available)
        return "\n".join([*lines, f"{'free on ' + self.device:<28}{free:>12}", f"{'operations':<28}{self.operations / 1e9:>8.2f} GFLOP"])


def plan(
    lm: LanguageModel,
    prompts: Prompts,
    sites: Sites = (),
    *,
    stop: int | None = None,
    dtype: Any = None,
    capture_dtype: Any = None,
    compile: bool = False,
    metric: Any = None,
    remat: bool = False,
) -> Plan:
    """Bytes and operations of `ji.run(lm, prompts, sites)`, or with a metric of `ji.gradients`, before it starts.

    Args:
        lm: the model.
        prompts: as for `run`.
        sites: as for `run`.
        stop: as for `run`.
        dtype: as for `run`.
        capture_dtype: as for `run`.
        compile: compile the run and report the compiler's own analysis of temporaries; takes as long as a first run.
        metric: plan the gradient of this metric at `sites` instead of a run.
        remat: as for `gradients`.
    """
    requests = canonical_sites(sites, lm.config)
    tokens = lm.to_tokens(prompts)
    dtype, capture_dtype = check_dtype(dtype), check_dtype(capture_dtype)
    batch = tokens.padded(bucket(tokens.ids.shape[1], lm.config.n_ctx)).arrays_only()
    if metric is not None:
        metric = metric if metric.bound else metric.bind(lm, tokens)
        return plan_gradients(lm, batch, metric, requests, Rules(), dtype, capture_dtype, remat, compile=compile)
    counted = count(lm, *batch.shape, requests, stop, dtype, capture_dtype)
    if not compile:
        return counted
    lowered = run_program.lower(
        lm.params,
        batch,
        requests,
        (),
        Rules(),
        None,
        None,
        config=lm.config,
        stop=stop,
        dtype=dtype,
        capture_dtype=capture_dtype,
        precision="highest",
    )
    analysis = lowered.compile().memory_analysis()
    return counted if analysis is None else dataclasses.replace(counted, temporaries=int(analysis.temp_size_in_bytes), measured=True)


def count(
    lm: LanguageModel,
    batch: int,
    positions: int,
    requests: Mapping[str, At],
    stop: int | None,
    dtype: str | None,
    capture_dtype: str | None,
) -> Plan:
    """The plan of a run of `batch` prompts padded to `positions`, by counting."""
    config = lm.config
    own = jnp.dtype(dtype or lm.params["embed"]["W_E"].dtype)
    captured = {
        site: _captured_bytes(site, request, config, batch, positions, jnp.dtype(capture_dtype or own))
        for site, request in requests.items()
    }
    has_logits = stop is None and config.unembed != "none"
    wide = max(own.itemsize, 4)
    logits = batch * positions * config.d_vocab * wide if has_logits else 0
    scores = batch * config.n_heads * positions * positions * wide
    neurons = batch * positions * config.d_mlp * own.itemsize
    temporaries = 2 * scores + 3 * neurons + 6 * batch * positions * config.d_model * own.itemsize
    weights = _weight_bytes(lm.params)
    depth = config.n_layers if stop is None else stop
    available, device = free_memory()
    return Plan(
        weights,
        captured,
        logits,
        temporaries,
        False,
        operations(config, batch, positions, depth, has_logits),
        available,
        device,
        (batch, positions),
    )


def operations(config: TransformerConfig, batch: int, positions: int, depth: int, logits: bool) -> int:
    """Floating-point operations of the matrix products of a forward pass through `depth` blocks."""
    dense = int(layer_operations(config)[:depth].sum())
    attention = depth * 4 * config.n_heads * config.d_head * positions
    return batch * positions * (dense + attention + (2 * config.d_model * config.d_vocab if logits else 0))


def layer_operations(config: TransformerConfig) -> np.ndarray:
    """[L]: floating-point operations of the products of one token with the weights of each layer."""
    sizes, matrices = config.axis_sizes, 3 if config.gated else 2
    attention = 4 * config.d_model * config.d_head * (config.n_heads + config.n_kv_heads)
    out = []
    for group in config.groups:
        neurons = config.d_mlp
        if group.experts and config.experts is not None:
            neurons = sizes["M"] * sizes["S"] + config.experts.d_shared
        router = 2 * config.d_model * sizes["X"] if group.experts else 0
        out += [attention + 2 * matrices * config.d_model * neurons + router] * (group.stop - group.start)
    return np.asarray(out, float)


def _weight_bytes(params: Any) -> int:
    return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))


def _captured_bytes(name: str, request: At, config: TransformerConfig, batch: int, positions: int, dtype: Any) -> int:
    site = site_of(name, config)
    shape = list(site.shape(config, batch, positions))
    if request.layers is not None:
        shape[0] = len(request.layers)
    for selector, index in request.select.items():
        shape[axis_of(selector, site.axes)] = np.shape(index)[-1] if np.ndim(index) else 1
    return int(np.prod(shape)) * dtype.itemsize


def plan_gradients(
    lm: LanguageModel, batch: Tokens, metric: Any, requests: Mapping[str, At], rules: Rules, dtype: str | None, capture_dtype: str | None,
    remat: bool, *, compile: bool = False,
) -> Plan:  # fmt: skip
    """The plan of `gradient_program` on padded prompts: captured sites, as many bytes of derivatives, and what the way back needs."""
    config, (size, positions) = lm.config, batch.ids.shape
    run = count(lm, size, positions, requests, None, dtype, capture_dtype)
    captured = {**run.captured, **{f"gradient of {site}": nbytes_ for site, nbytes_ in run.captured.items()}}
    types: dict[str, Any] = {"dtype": dtype, "capture_dtype": capture_dtype, "precision": "highest", "remat": remat}
    temporaries = run.temporaries
    if compile:
        lowered = gradient_program.lower(
            lm.params, batch, metric, dict(requests), (), rules, None, config=config, chosen=(), **types
        )  # fmt: skip
        analysis = lowered.compile().memory_analysis()
        temporaries = temporaries if analysis is None else int(analysis.temp_size_in_bytes)
    else:
        layer = max(
            _weight_bytes(stack) // (group.stop - group.start) for group, stack in zip(config.groups, lm.params["blocks"], strict=True)
        )
        temporaries += (
            kept_bytes(lm, batch, metric, tuple(requests), rules, types) + layer
        )  # the scan holds a copy of the weights of the layer that it is at
    operations_ = 2 * operations(config, size, positions, config.n_layers, False)
    return dataclasses.replace(run, captured=captured, logits=0, temporaries=temporaries, measured=compile, operations=operations_)


def kept_bytes(lm: LanguageModel, batch: Tokens, metric: Any, sites: Sequence[str], rules: Rules, types: Mapping[str, Any]) -> int:
    """Bytes that the forward pass keeps for the way back, from the program's own residuals; weights are not counted."""
    config, (size, positions) = lm.config, batch.ids.shape
    dtype = types["capture_dtype"] or types["dtype"] or lm.params["embed"]["W_E"].dtype

    def back(params: Any, zeros: Any, batch: Tokens) -> Any:
        total = lambda zeros: measured(params, batch, config, metric, edits=adding(zeros), rules=rules, **types)[0].sum()  # noqa: E731
        return jax.vjp(total, zeros)[1]

    traced: Any = jax.make_jaxpr(back)(lm.params, zeros_at(sites, config, size, positions, dtype), batch).jaxpr
    given = {id(variable) for variable in traced.invars}
    kept = {id(v): v.aval for v in traced.outvars if id(v) not in given and not hasattr(v, "val")}
    return sum(int(np.prod(aval.shape)) * aval.dtype.itemsize for aval in kept.values())


def check_gradients_fit(
    lm: LanguageModel, batch: Tokens, metric: Any, requests: Mapping[str, At], rules: Rules, dtype: str | None, capture_dtype: str | None,
    remat: bool,
) -> None:  # fmt: skip
    """Refuse a gradient that cannot fit in the device's free memory.

    Raises:
        MemoryPlanError: with what it needs, what is free, and what would fit.
    """
    size, positions = batch.ids.shape
    run = count(lm, size, positions, requests, None, dtype, capture_dtype)
    if run.available is None or 3 * run.needed + lm.config.n_layers * run.temporaries < run.available:
        return
    counted = plan_gradients(lm, batch, metric, requests, rules, dtype, capture_dtype, remat)
    if counted.needed <= run.available:
        return
    fitting = int(size * run.available / counted.needed)
    advice = [f"take {fitting} of the {size} prompts at a time"] if 0 < fitting < size else []
    advice += [] if remat else ["remat=True keeps only the residual stream between blocks"]
    advice += ["ask for fewer sites"] if len(requests) > 1 else []
    raise MemoryPlanError(
        f"This gradient needs {nbytes(counted.needed)} beyond the weights ({nbytes(sum(counted.captured.values()))} of sites and their "
        f"gradients, {nbytes(counted.temporaries)} for the way back), but {nbytes(run.available)} is free on {counted.device}: "
        f"{'; '.join(advice) or 'use shorter or fewer prompts'}."
    )


def check_fits(
    lm: LanguageModel,
    batch: int,
    positions: int,
    requests: Mapping[str, At],
    stop: int | None,
    dtype: str | None,
    capture_dtype: str | None,
) -> None:
    """Refuse a run that cannot fit in the device's free memory.

    Raises:
        MemoryPlanError: with what it needs, what is free, and what would fit.
    """
    counted = count(lm, batch, positions, requests, stop, dtype, capture_dtype)
    if counted.available is None or counted.needed <= counted.available:
        return
    fitting = int(batch * counted.available / counted.needed)
    largest = sorted(counted.captured.items(), key=lambda item: -item[1])[:3]
    parts = [f"{site} {nbytes(size)}" for site, size in largest] + ([f"logits {nbytes(counted.logits)}"] if counted.logits else [])
    advice = [f"run {fitting} of the {batch} prompts at a time"] if 0 < fitting < batch else []
    advice += ["keep parts of sites with ji.at(position=..., layer=...)"] if requests else []
    advice += ["stop before the unembedding with stop=n_layers"] if counted.logits > counted.needed // 2 else []
    raise MemoryPlanError(
        f"This run needs {nbytes(counted.needed)} beyond the weights ({', '.join(parts)}), "
        f"but {nbytes(counted.available)} is free on {counted.device}: "
        f"{'; '.join(advice) or 'use shorter or fewer prompts'}; or stream with ji.activations."
    )


def free_memory() -> tuple[int | None, str]:
    """Free bytes of the default device (None where it cannot be known), and its name."""
    device = jax.devices()[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0), device.device_kind
    if device.platform != "cpu":
        return None, device.device_kind
    limits = [value for value in (_meminfo_available(), _cgroup_available()) if value is not None]
    return (min(limits) if limits else None), "cpu"


def _meminfo_available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _cgroup_available() -> int | None:
    """Room under the memory limit of this process's control group (version 2), where there is one."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit, used = (folder / "memory.max").read_text().strip(), int((folder / "memory.current").read_text())
    except (OSError, ValueError):
        return None
    return None if limit == "max" else max(int(limit) - used, 0)


def nbytes(size: int | float) -> str:
    """A number of bytes as people read it: 372.0 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
