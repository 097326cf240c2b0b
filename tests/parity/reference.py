"""The torch side: a transformers model, every intermediate at our sites, and the gradient of a metric at each of them."""

import contextlib
import copy
import dataclasses
import importlib
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers
from safetensors import safe_open
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM

from jaxinterp.model.sites import SITES
from tests.parity.inputs import Batch, Shapes
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
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        shapes: Shapes = {}
        for file in sorted(Path(folder).glob("*.safetensors")):
            with safe_open(file, "np") as tensors:
                shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
        written = json.loads((Path(folder) / "config.json").read_text())
    written.pop("transformers_version", None)
    return (dict(row.config) if row.raw else written), shapes


View = Callable[[torch.Tensor], torch.Tensor]


def _same(value: torch.Tensor) -> torch.Tensor:
    return value


def _heads_second(value: torch.Tensor) -> torch.Tensor:
    return value.transpose(1, 2)


@dataclasses.dataclass
class Captured:
    """Tensors met on the way, by site: (value, how it is seen with our axes) for each layer."""

    sites: dict[str, dict[int, tuple[torch.Tensor, View]]] = dataclasses.field(default_factory=dict)

    def keep(self, site: str, layer: int, value: torch.Tensor, layout: View = _same) -> None:
        if value.requires_grad:
            value.retain_grad()
        self.sites.setdefault(site, {})[layer] = (value, layout)

    def arrays(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Values and gradients, layers stacked, after the backward pass."""
        values, gradients = {}, {}
        for site, layers in self.sites.items():
            entries = [layers[layer] for layer in sorted(layers)]
            values[site] = np.stack([layout(value.detach()).numpy() for value, layout in entries])
            grads = [value.grad if value.grad is not None else torch.zeros_like(value) for value, _ in entries]
            gradients[site] = np.stack([layout(grad).numpy() for grad, (_, layout) in zip(grads, entries, strict=True)])
        return values, gradients


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    return args[0] if args else kwargs["hidden_states"]


def _hook(model: torch.nn.Module, place: Place, site: str, layer: int, captured: Captured, d_head: int) -> Any:
    """Attaches what captures one site in one layer; a "scale" or "heads" place keeps what it is recomputed from."""
    module = model.get_submodule(place.path.replace("*", str(layer)))

    def layout(value: torch.Tensor) -> torch.Tensor:
        return place.layout(value, d_head)

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

    def keep_out(_: Any, __: Any, out: Any) -> None:
        out = out[0] if isinstance(out, tuple) else out
        captured.keep(site, layer, out, layout if place.side == "out" else _same)

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


def _recording_attention(attention: Callable[..., Any], captured: Captured) -> Callable[..., Any]:
    """transformers' own eager attention, with what goes in, the scores before the mask, and what comes out kept."""

    def wrapped(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, *args: Any, **kwargs: Any) -> Any:
        layer = module.layer_idx
        captured.keep("q_rot", layer, query, _heads_second)
        captured.keep("k_rot", layer, key, _heads_second)
        mask = torch.zeros(1, dtype=query.dtype) if attention_mask is None else attention_mask
        mask = _recording_mask(mask, lambda scores: captured.keep("scores", layer, scores))
        z, pattern = attention(module, query, key, value, mask, *args, **kwargs)
        captured.keep("pattern", layer, pattern)
        captured.keep("z", layer, z)
        return z, pattern

    return wrapped


@contextlib.contextmanager
def capturing(model: Any, family: Family, captured: Captured) -> Iterator[None]:
    """Captures every site of the model in its block."""
    config = model.config
    d_head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    modelling: Any = importlib.import_module(f"transformers.models.{family.module}")
    eager = modelling.eager_attention_forward
    hooks = []
    try:
        modelling.eager_attention_forward = _recording_attention(eager, captured)
        for site, place in family.places.items():
            layers = range(config.num_hidden_layers) if "*" in place.path else range(1)
            hooks += [_hook(model, place, site, layer, captured, d_head) for layer in layers]
        yield
    finally:
        modelling.eager_attention_forward = eager
        for hook in hooks:
            hook.remove()


def _norm_eps(norm: Any) -> float:
    return next(float(getattr(norm, name)) for name in ("eps", "variance_epsilon") if hasattr(norm, name))


def _finish(model: Any, family: Family, values: dict[str, np.ndarray], gradients: dict[str, np.ndarray]) -> None:
    """Puts the sites that are recomputed, norm denominators and heads' outputs, in place of what they come from."""
    for site, place in family.places.items():
        layers = range(model.config.num_hidden_layers) if "*" in place.path else range(1)
        modules = [model.get_submodule(place.path.replace("*", str(layer))) for layer in layers]
        if place.side == "scale":
            inputs, outputs, grads = values.pop(f"{site} in"), values.pop(f"{site} out"), gradients.pop(f"{site} out")
            gradients.pop(f"{site} in")
            mean = inputs.mean(-1, keepdims=True) if isinstance(modules[0], torch.nn.LayerNorm) else 0.0
            values[site] = np.sqrt(np.square(inputs - mean).mean(-1, keepdims=True) + inputs.dtype.type(_norm_eps(modules[0])))
            biases = [getattr(module, "bias", None) for module in modules]
            biases = np.stack([np.zeros(1) if bias is None else bias.detach().numpy() for bias in biases])[:, None, None]
            # out = (x - mean) / scale * gain + bias, so d out / d scale = -(out - bias) / scale
            gradients[site] = -(grads * (outputs - biases)).sum(-1, keepdims=True) / values[site]
        elif place.side == "heads":
            z = values["z"]
            weights = [module.weight.detach().numpy() for module in modules]
            weights = [weight if type(module).__name__ == "Conv1D" else weight.T for weight, module in zip(weights, modules, strict=True)]
            w_o = np.stack(weights).reshape(len(modules), *z.shape[-2:], -1)
            values[site] = np.einsum("LBPHE,LHED->LBPHD", z, w_o)
            gradients[site] = np.repeat(gradients[site][:, :, :, None], z.shape[-2], axis=3)


def _run(folder: Path, family: Family, batch: Batch, precision: Precision) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    with precision_of(precision) as dtype:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()
        if precision == "float64":
            narrow = [name for name, tensor in model.state_dict(keep_vars=True).items() if tensor.dtype == torch.float32]
            narrow += [name for name, tensor in model.named_buffers() if tensor.dtype == torch.float32]
            assert not narrow, f"float32 left in the float64 reference: {narrow}"
        captured = Captured()
        with capturing(model, family, captured):
            ids, mask, positions = (torch.tensor(array) for array in (batch.ids, batch.mask.astype(np.int64), batch.positions))
            logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
            captured.keep("logits", 0, logits)
        (logits * torch.tensor(batch.weights, dtype=logits.dtype)).sum().backward()
        values, gradients = captured.arrays()
        _finish(model, family, values, gradients)
    for site in [site for site, place in family.places.items() if "*" not in place.path] + ["logits"]:
        values[site], gradients[site] = values[site][0], gradients[site][0]
    return values, gradients


def _scatter(runs: list[dict[str, np.ndarray]], mask: np.ndarray) -> dict[str, np.ndarray]:
    """Puts prompts that were run alone where the padded batch has them; padding is zero."""
    together = {}
    for site, first in runs[0].items():
        named = list(zip(SITES[site].axes, first.shape, strict=True))
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
