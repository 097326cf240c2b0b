"""Where a module of transformers holds the value of each of our sites, read off the family's key map.

The module that owns the tensor of `attn.W_Q` puts out our `q`, the one that owns `mlp.W_out` takes in our `mlp_post`,
and what stands before the layer's number is the block. So no family needs a table of its own here.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np

from jaxinterp.checkpoints.families.family import Family
from jaxinterp.checkpoints.layout import Axis, Layout, Sizes, parse, sizes_of
from jaxinterp.model.config import TransformerConfig
from jaxinterp.model.sites import SITES, site_names

Side = Literal["in", "out"]

# site: the parameter whose module holds it, on which side; of several (the gate's, else the other's) the first that is there
OF_PARAMETERS: Mapping[str, tuple[Side, tuple[str, ...]]] = {
    "embed": ("out", ("embed.W_E",)),
    "pos_embed": ("out", ("embed.W_pos",)),
    "type_embed": ("out", ("embed.W_type",)),
    "attn_in": ("in", ("blocks.attn.W_Q",)),
    "q": ("out", ("blocks.attn.W_Q",)),
    "k": ("out", ("blocks.attn.W_K",)),
    "v": ("out", ("blocks.attn.W_V",)),
    "z": ("in", ("blocks.attn.W_O",)),
    "attn_proj": ("out", ("blocks.attn.W_O",)),
    "attn_out": ("out", ("blocks.attn.W_O",)),
    "mlp_in": ("in", ("blocks.mlp.W_gate", "blocks.mlp.W_in")),
    "mlp_pre": ("out", ("blocks.mlp.W_gate", "blocks.mlp.W_in")),
    "mlp_up": ("out", ("blocks.mlp.W_in",)),
    "mlp_post": ("in", ("blocks.mlp.W_out",)),
    "mlp_proj": ("out", ("blocks.mlp.W_out",)),
    "mlp_out": ("out", ("blocks.mlp.W_out",)),
    "ln_final": ("out", ("ln_final.w",)),
}

UNSHARED = frozenset({"resid_pre", "resid_post", "q", "k", "v", "z", "mlp_pre", "mlp_up", "mlp_post"})
"""Sites whose tensor in transformers is read by nothing that our site is not: only there are gradients the same."""


SPLIT = frozenset({"q", "k", "v", "z", "mlp_pre", "mlp_up", "mlp_post"})
"""Sites of heads or neurons: the module's axis holds them in the order, and fused with others, as the key map says."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where one site is in one layer.

    Attributes:
        site: its name.
        layer: the layer, None outside the blocks.
        side: whether it is the module's input or its output.
        modules: names that the module may have.
        layout: of its last axis, or None where that is the site's own.
        part: which of the fused parts.
    """

    site: str
    layer: int | None
    side: Side
    modules: tuple[str, ...]
    layout: Layout | None = None
    part: int = 0

    def seen(self, value: np.ndarray, sizes: Sizes) -> np.ndarray:
        """The tensor [B P ...] with the site's axes, [B P H E] for heads."""
        if self.layout is None:
            return value
        flat = value.reshape(-1, value.shape[-1]).T
        ours = self.layout.view(flat, self.part, {**sizes, TOKENS: flat.shape[1]})
        shape = self.layout.our_shape({**sizes, TOKENS: flat.shape[1]})
        return np.moveaxis(ours.reshape(shape), -1, 0).reshape(*value.shape[:2], *shape[:-1])


TOKENS = "tokens"


def places(config: TransformerConfig, family: Family) -> Iterator[Place]:
    """Every site of a model that some module of transformers holds."""
    sites = [site for site in site_names(config) if site in OF_PARAMETERS and not _differs(site, config)]
    table = family.table_of(config)
    query = table["blocks.attn.W_Q"].keys
    for layer in range(config.n_layers):
        blocks = _names([key.partition("{l}")[0] + str(layer) for key in query], family)
        yield Place("resid_pre", layer, "in", blocks)
        yield Place("resid_post", layer, "out", blocks)
    sizes = sizes_of(config)
    for site in sites:
        side, parameters = OF_PARAMETERS[site]
        rule = next((table[name] for name in parameters if name in table and _has(config, name)), None)
        if rule is None or not all(key.endswith(".weight") for key in rule.keys):
            continue
        layout = _of_heads_or_neurons(parse(rule.layout)) if site in SPLIT else None
        layout = layout if layout is not None and layout.our_shape({**sizes, TOKENS: 1}) else None
        for layer in range(config.n_layers) if SITES[site].per_layer else (None,):
            names = _names([key.format(l=layer).removesuffix(".weight") for key in rule.keys], family)
            yield Place(site, layer, side, names, layout, rule.part)


def parameter_of(site: str, config: TransformerConfig) -> str:
    """The parameter that makes a site from the one before it, or ""."""
    side, names = OF_PARAMETERS.get(site, ("in", ()))
    name = next((name for name in names if _has(config, name)), "")
    return name.removeprefix("blocks.") if side == "out" else ""


def _has(config: TransformerConfig, parameter: str) -> bool:
    return config.gated or parameter != "blocks.mlp.W_gate"


def _differs(site: str, config: TransformerConfig) -> bool:
    """Whether transformers does more, or less, inside the module than what stands between our sites."""
    if site == "embed":
        return config.embed_scale != 1.0 or config.embed_norm == "token" or config.d_embed is not None
    if site in ("q", "k", "v"):
        return config.qkv_clip is not None
    if site.startswith("mlp"):
        present = {"mlp_out": "mlp_proj"}.get(site)
        return config.experts is not None or config.mlp_clamp is not None or (present is not None and present in site_names(config))
    return site == "attn_out" and "attn_proj" in site_names(config)


def _names(names: list[str], family: Family) -> tuple[str, ...]:
    """The names, and those without the prefix that the bare model leaves out."""
    return tuple(dict.fromkeys([*names, *(name.removeprefix(family.prefix) for name in names)]))


def _of_heads_or_neurons(layout: Layout) -> Layout | None:
    """The axis of a matrix that is not d_model, with an axis for tokens behind it; None for a vector or an embedding."""
    inner = [axis for axis in layout.file if axis != Axis(("D",))]
    ours = tuple(letters for letters in layout.ours if letters != ("D",))
    if len(layout.file) != 2 or len(inner) != 1 or not ours or ours[0] in (("V",), ("P",), ("T",)):
        return None
    return Layout((inner[0], Axis((TOKENS,))), (*ours, (TOKENS,)))
