"""The torch side: a transformers model, every intermediate at our sites, and the gradient of a metric at each of them."""

import contextlib
import copy
import dataclasses
import importlib
import json
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers
from safetensors import safe_open
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig

from jaxinterp.model.sites import SITES
from tests.parity.experts import hook_neurons, hook_router
from tests.parity.inputs import Batch, Shapes
from tests.parity.products import HookedAttention, View
from tests.parity.table import FAMILIES, Family, Place, Row

Precision = Literal["float32", "float64", "plain float64"]

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


class Float32IsFloat64(TorchFunctionMode):
    """Within it, whatever asks torch for float32 gets float64.

    transformers computes norms, softmax and rotary angles in float32 even in a model made of float64 (errors of 1e-8 to
    3e-7), which would hide mistakes of that size. A function mode reaches every module at once, buffers that are
    computed while the model is built included.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        func = torch.Tensor.double if func is torch.Tensor.float else func
        return func(*map(_widen, args), **{name: _widen(value) for name, value in (kwargs or {}).items()})


def _widen(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


@contextlib.contextmanager
def precision_of(precision: Precision) -> Iterator[torch.dtype]:
    """Gives the dtype to load in, and keeps float32 out of the "float64" reference."""
    if precision == "float64":
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            with Float32IsFloat64():
                yield torch.float64
        finally:
            torch.set_default_dtype(before)
    else:
        yield torch.float32 if precision == "float32" else torch.float64


def describe(row: Row) -> tuple[dict[str, Any], Shapes]:
    """The config.json of a row, and names and shapes of the tensors as transformers writes them to a file."""
    kwargs = copy.deepcopy(row.config)  # transformers writes into the dicts that it is given
    config = AutoConfig.for_model(kwargs.pop("model_type"), **kwargs)
    with tempfile.TemporaryDirectory() as folder:
        _auto(FAMILIES[row.family]).from_config(config).save_pretrained(folder)
        shapes: Shapes = {}
        for file in sorted(Path(folder).glob("*.safetensors")):
            with safe_open(file, "np") as tensors:
                shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
        written = json.loads((Path(folder) / "config.json").read_text())
    written.pop("transformers_version", None)
    return (dict(row.config) if row.raw else written), shapes


def _auto(family: Family) -> Any:
    return getattr(transformers, family.auto)


def _same(value: torch.Tensor) -> torch.Tensor:
    return value


def _heads_second(value: torch.Tensor) -> torch.Tensor:
    return value.transpose(1, 2)


@dataclasses.dataclass
class Captured:
    """Tensors met on the way, by site: (value, how it is seen with our axes) for each layer; and the batch's B and P."""

    shape: tuple[int, int] = (0, 0)
    sites: dict[str, dict[int, tuple[torch.Tensor, View, View]]] = dataclasses.field(default_factory=dict)

    def keep(self, site: str, layer: int, value: torch.Tensor, layout: View = _same, adjoint: View | None = None) -> None:
        """Keeps a value; `adjoint` is how its gradient is seen, where that is not how the value is."""
        if value.requires_grad:
            value.retain_grad()
        self.sites.setdefault(site, {})[layer] = (value, layout, adjoint or layout)

    def arrays(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Values and gradients, layers stacked, after the backward pass."""
        values, gradients = {}, {}
        for site, layers in self.sites.items():
            entries = [layers[layer] for layer in sorted(layers)]
            values[site] = np.stack([layout(self._unfold(site, value.detach())).numpy() for value, layout, _ in entries])
            grads = [value.grad if value.grad is not None else torch.zeros_like(value) for value, _, _ in entries]
            grads = [adjoint(self._unfold(site, grad)).numpy() for grad, (_, _, adjoint) in zip(grads, entries, strict=True)]
            gradients[site] = np.stack(grads)
        return values, gradients

    def _unfold(self, site: str, value: torch.Tensor) -> torch.Tensor:
        """OPT's MLP sees the tokens of all prompts in one axis [B*P M]."""
        folded = value.ndim == 2 and SITES[site.split()[0]].inner_axes.startswith("BP") and value.shape[0] == math.prod(self.shape)
        return value.unflatten(0, self.shape) if folded else value


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    return args[0] if args else kwargs["hidden_states"]


def _hook(model: torch.nn.Module, place: Place, site: str, layer: int, captured: Captured, d_head: int) -> Any:
    """Attaches what captures one site in one layer; a "scale" or "heads" place keeps what it is recomputed from."""
    module = model.get_submodule(place.path.replace("*", str(layer)))

    def layout(value: torch.Tensor) -> torch.Tensor:
        return place.layout(value, d_head)

    def keep(value: torch.Tensor, view: View) -> None:
        captured.keep(site, layer, value, view)

    if place.side == "router":
        return hook_router(module, site, keep, captured.shape)
    if place.side == "experts":
        return hook_neurons(module, site, layout, keep, captured.shape)
    if place.side == "gated":
        gate = model.get_submodule(place.path.replace("*", str(layer)) + "_gate")

        def gated(_: Any, args: Any, out: torch.Tensor) -> None:
            keep(out, lambda value: value.reshape(*captured.shape, -1))
            captured.keep(f"{site} gate", layer, gate(args[0]).detach(), lambda value: value.reshape(*captured.shape, -1))

        return module.register_forward_hook(gated)
    if place.side == "in":

        def keep_in(_: Any, args: Any, kwargs: Any) -> None:
            captured.keep(site, layer, _first(args, kwargs), layout)

        return module.register_forward_pre_hook(keep_in, with_kwargs=True)
    if place.side == "tap":

        def tap(_: Any, args: Any, kwargs: Any) -> Any:
            copy = _first(args, kwargs).view_as(_first(args, kwargs))
            captured.keep(site, layer, copy, layout)
            return ((copy, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": copy})

        return module.register_forward_pre_hook(tap, with_kwargs=True)
    if place.side == "scale":

        def scale(_: Any, args: Any, out: torch.Tensor) -> None:
            captured.keep(f"{site} in", layer, args[0])
            captured.keep(f"{site} out", layer, out)

        return module.register_forward_hook(scale)

    def keep_out(_: Any, __: Any, out: Any) -> Any:
        value = out[0] if isinstance(out, tuple) else out
        captured.keep(site, layer, value, layout if place.side in ("out", "changed", "residual") else _same)
        if place.side == "changed" or not isinstance(out, torch.Tensor):
            return out
        copy: Any = out
        return copy.clone()  # Falcon adds to it in place

    return module.register_forward_hook(keep_out)


def _recording_mask(mask: torch.Tensor, record: Callable[[torch.Tensor], None]) -> torch.Tensor:
    """The same mask, which tells what it is added to: the scores."""

    class Mask(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result: Any = super().__torch_function__(func, types, args, kwargs or {})
            if func in (torch.Tensor.add, torch.Tensor.__add__, torch.add):
                record(next(value for value in args if not isinstance(value, Mask)))
                return result.as_subclass(torch.Tensor)
            return result

    return mask.as_subclass(Mask)


class _KeepSoftmax(TorchFunctionMode):
    """Within it, the result of a softmax is kept."""

    def __init__(self, keep: Callable[[torch.Tensor], None]) -> None:
        super().__init__()
        self.keep = keep

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.nn.functional.softmax:
            self.keep(result)
        return result


def _last_column(value: torch.Tensor) -> torch.Tensor:
    return value[..., -1]


def _recording_attention(attention: Callable[..., Any], captured: Captured, scaled_queries: bool) -> Callable[..., Any]:
    """transformers' own eager attention, with what goes in, the scores before the mask, and what comes out kept."""

    def wrapped(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, *args: Any, **kwargs: Any) -> Any:
        layer = module.layer_idx
        factor = query.shape[-1] ** 0.5 if scaled_queries else 1.0
        captured.keep("q_rot", layer, query, lambda x: x.transpose(1, 2) * factor, lambda x: x.transpose(1, 2) / factor)
        captured.keep("k_rot", layer, key, _heads_second)
        mask = torch.zeros(1, dtype=query.dtype) if attention_mask is None else attention_mask
        mask = _recording_mask(mask, lambda scores: captured.keep("scores", layer, scores))
        # with sinks, the softmax has one more column, which the reference drops
        sinks = _KeepSoftmax(lambda value: captured.keep("sink", layer, value, _last_column)) if hasattr(module, "sinks") else None
        with sinks or contextlib.nullcontext():
            z, pattern = attention(module, query, key, value, mask, *args, **kwargs)
        captured.keep("pattern", layer, pattern)
        captured.keep("z", layer, z)
        return z, pattern

    return wrapped


def _hook_products(model: Any, family: Family, layer: int, captured: Captured, d_head: int) -> HookedAttention:
    """Attaches what captures attention that has no function of its own; without rotation, q and k are q_rot and k_rot."""
    same = {"q_rot": "q", "k_rot": "k"}

    def keep(site: str, value: torch.Tensor, layout: View, adjoint: View) -> None:
        if site not in family.places:
            captured.keep(site, layer, value, layout, adjoint)
        if site in same and same[site] not in family.places:
            captured.keep(same[site], layer, value, layout, adjoint)

    module = model.get_submodule(family.attention.replace("*", str(layer)))
    return HookedAttention(module, keep, captured.shape[0], d_head**-0.5 if family.scaled == "masked" else 1.0)


@contextlib.contextmanager
def capturing(model: Any, family: Family, captured: Captured) -> Iterator[None]:
    """Captures every site of the model in its block."""
    config = model.config
    d_head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    modelling: Any = importlib.import_module(f"transformers.models.{family.module}")
    eager = getattr(modelling, "eager_attention_forward", None)
    hooks = []
    try:
        if eager is not None:
            modelling.eager_attention_forward = _recording_attention(eager, captured, family.scaled == "queries")
        for name, module in model.named_modules():
            if not hasattr(module, "layer_idx"):  # DistilBERT's attention does not know its layer
                module.layer_idx = next((int(part) for part in name.split(".") if part.isdigit()), 0)
        if family.attention:
            hooks += [_hook_products(model, family, layer, captured, d_head) for layer in range(config.num_hidden_layers)]
        for site, place in family.places.items():
            layers = [layer for layer in _layers(model, place) if _has(model, place, layer)]
            hooks += [_hook(model, place, site, layer, captured, d_head) for layer in layers]
        yield
    finally:
        if eager is not None:
            modelling.eager_attention_forward = eager
        for hook in hooks:
            hook.remove()


def _layers(model: Any, place: Place) -> range:
    return range(model.config.num_hidden_layers) if "*" in place.path else range(1)


def _has(model: torch.nn.Module, place: Place, layer: int) -> bool:
    """Whether a layer has that module: layers with experts have others than dense ones."""
    names = {name for name, _ in model.named_modules()}
    return place.path.replace("*", str(layer)) in names


def _norm_eps(norm: Any) -> float:
    # the LayerNorm of OLMo has no parameters at all, its epsilon is a literal
    return next((float(getattr(norm, name)) for name in ("eps", "variance_epsilon") if hasattr(norm, name)), 1e-5)


def _finish(model: Any, family: Family, values: dict[str, np.ndarray], gradients: dict[str, np.ndarray]) -> None:
    """Puts the sites that are recomputed, norm denominators and heads' outputs, in place of what they come from."""
    for site, place in family.places.items():
        layers = [layer for layer in _layers(model, place) if _has(model, place, layer)]
        modules = [model.get_submodule(place.path.replace("*", str(layer))) for layer in layers]
        if place.side == "scale":
            inputs, outputs, grads = values.pop(f"{site} in"), values.pop(f"{site} out"), gradients.pop(f"{site} out")
            gradients.pop(f"{site} in")
            centred = isinstance(modules[0], torch.nn.LayerNorm) or type(modules[0]).__name__.endswith("LayerNorm")
            mean = inputs.mean(-1, keepdims=True) if centred else 0.0
            values[site] = np.sqrt(np.square(inputs - mean).mean(-1, keepdims=True) + inputs.dtype.type(_norm_eps(modules[0])))
            biases = [getattr(module, "bias", None) for module in modules]
            biases = np.stack([np.zeros(1) if bias is None else bias.detach().numpy() for bias in biases])[:, None, None]
            # out = (x - mean) / scale * gain + bias, so d out / d scale = -(out - bias) / scale
            gradients[site] = -(grads * (outputs - biases)).sum(-1, keepdims=True) / values[site]
        elif place.side == "residual":
            factor = model.config.residual_multiplier
            values[site], gradients[site] = values[site] * factor, gradients[site] / factor
        elif place.side == "gated":
            gate = 1 / (1 + np.exp(-values.pop(f"{site} gate")))
            gradients.pop(f"{site} gate")
            values[site], gradients[site] = values[site] * gate, gradients[site] / gate
        elif place.side == "heads":
            z = values["z"]
            weights = [module.weight.detach().numpy() for module in modules]
            weights = [weight if type(module).__name__ == "Conv1D" else weight.T for weight, module in zip(weights, modules, strict=True)]
            w_o = np.stack(weights).reshape(len(modules), *z.shape[-2:], -1)
            values[site] = np.einsum("LBPHE,LHED->LBPHD", z, w_o)
            gradients[site] = np.repeat(gradients[site][:, :, :, None], z.shape[-2], axis=3)
    if "sink" in values:
        # pattern = (weights without the sink) * (1 - sink)
        left = np.where(values["sink"] < 1, 1 - values["sink"], 1)
        gradients["sink"] = -(values["pattern"] * gradients["pattern"]).sum(-1) / left
    gradients.pop("expert_index", None)


def _metric(out: Any, weights: torch.Tensor) -> torch.Tensor:
    """The linear functional of the logits; where there are none, of the last residual stream and of the pooler's output."""
    if "logits" in out:
        return (out.logits * weights).sum()
    width = out.last_hidden_state.shape[-1]
    last = (out.last_hidden_state * weights[..., :width]).sum()
    return last if out.get("pooler_output") is None else last + (out.pooler_output * weights.sum(1)[:, :width]).sum()


def _run(folder: Path, family: Family, batch: Batch, precision: Precision) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    with precision_of(precision) as dtype:
        experts = {"experts_implementation": "batched_mm"} if "router_logits" in family.places else {}
        model = _auto(family).from_pretrained(folder, dtype=dtype, attn_implementation="eager", **experts).eval()
        if precision == "float64":
            narrow = [name for name, tensor in model.state_dict(keep_vars=True).items() if tensor.dtype == torch.float32]
            narrow += [name for name, tensor in model.named_buffers() if tensor.dtype == torch.float32]
            assert not narrow, f"float32 left in the float64 reference: {narrow}"
        if precision != "plain float64":
            family.adjust(model)
        captured = Captured(shape=batch.ids.shape)
        with capturing(model, family, captured):
            ids, mask, positions = (torch.tensor(array) for array in (batch.ids, batch.mask.astype(np.int64), batch.positions))
            types = {"token_type_ids": torch.tensor(batch.types(model.config.type_vocab_size))} if "type_embed" in family.places else {}
            positions = positions + family.first_position
            out = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False, **types)
            if "logits" in out:
                captured.keep("logits", 0, out.logits)
                if "logits_raw" not in family.places:
                    captured.keep("logits_raw", 0, out.logits)
        _metric(out, torch.tensor(batch.weights, dtype=dtype)).backward()
        values, gradients = captured.arrays()
        _finish(model, family, values, gradients)
    for site in [site for site, place in family.places.items() if "*" not in place.path] + [
        site for site in ("logits", "logits_raw") if site in values and site not in family.places
    ]:
        values[site], gradients[site] = values[site][0], gradients[site][0]
    return values, gradients


def _scatter(runs: list[dict[str, np.ndarray]], mask: np.ndarray) -> dict[str, np.ndarray]:
    """Puts prompts that were run alone where the padded batch has them; padding is zero."""
    together = {}
    for site, first in runs[0].items():
        axes = "LBPSM" if first.ndim > len(SITES[site].axes) else SITES[site].axes  # neurons of a token's own experts
        named = list(zip(axes, first.shape, strict=True))
        sizes = dict(zip("BPQK", (len(mask), *[mask.shape[1]] * 3), strict=True))
        together[site] = np.zeros(tuple(sizes.get(letter, size) for letter, size in named), first.dtype)
        for index, run in enumerate(runs):
            real = np.flatnonzero(mask[index])
            here = {"B": [index], "P": real, "Q": real, "K": real}
            together[site][np.ix_(*(here.get(letter, range(size)) for letter, size in named))] = run[site]
    return together


def run_reference(row: Row, folder: Path, batch: Batch, precision: Precision) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Every site of the reference and the gradient of the metric at each, with our names and axes.

    Args:
        row: of the table.
        folder: the model in HF layout.
        batch: prompts and metric.
        precision: "float64" has no float32 inside; "plain float64" is what a user of transformers gets (each prompt
            alone: with left padding its softmax, in float32, overflows on float64's mask and every token becomes NaN).
    """
    family = FAMILIES[row.family]
    if not (row.alone or precision == "plain float64"):
        return _run(folder, family, batch, precision)
    runs = [_run(folder, family, batch.row(index), precision) for index in range(len(batch.ids))]
    return _scatter([run[0] for run in runs], batch.mask), _scatter([run[1] for run in runs], batch.mask)
