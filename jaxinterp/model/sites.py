"""The sites: every named place in the forward pass, defined once.

The documentation, the command line, the error messages and the views read `SITES`. Axis letters: B batch, P position,
Q query position, K key position, L layer, H query head, G key/value head, E d_head, D d_model, M d_mlp, X expert,
S chosen expert (a token's own, largest weight first), V vocabulary, and 1 for an axis kept at size one. In models whose
layers are partly dense and partly experts, `mlp_pre`, `mlp_up` and `mlp_post` are those of the experts, and the dense
layers' neurons (axis N) have sites of their own.

The identities that hold between sites depend on where the norms stand (`TransformerConfig.norm_position`):

    pre, sandwich, output   resid_pre + attn_out = resid_mid;  resid_mid + mlp_out = resid_post
    parallel blocks         resid_pre + attn_out + mlp_out = resid_post
    post                    ln1(resid_pre + attn_out) = resid_mid;  ln2(resid_mid + mlp_out) = resid_post
    everywhere              head_out summed over heads, plus b_O, = attn_proj (or attn_out where there is no attn_proj)
                            pattern summed over keys, plus sink, = 1 at real tokens
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

from jaxinterp.errors import InputError
from jaxinterp.model.config import TransformerConfig


@dataclasses.dataclass(frozen=True)
class Site:
    """One named place in the forward pass.

    Attributes:
        name: how users call it.
        axes: its axis letters, a leading "L" for a site that every block has.
        definition: one sentence.
        absent: given a config, why the model does not have it, or "".
        opt_in: too large to be part of sites="all".
        read_only: whole numbers that an edit cannot change.
        layers_with: "all" layers have it, or those with "experts", or with a "dense" MLP.
    """

    name: str
    axes: str
    definition: str
    absent: Callable[[TransformerConfig], str] = lambda config: ""
    opt_in: bool = False
    read_only: bool = False
    layers_with: Literal["all", "experts", "dense"] = "all"

    def layers(self, config: TransformerConfig) -> tuple[int, ...]:
        """Which layers of a model have the site."""
        wanted = {"all": (True, False), "experts": (True,), "dense": (False,)}[self.layers_with]
        return tuple(layer for layer, experts in enumerate(config.expert_layers) if experts in wanted)

    @property
    def per_layer(self) -> bool:
        return self.axes[0] == "L"

    @property
    def inner_axes(self) -> str:
        """The axes without the layer axis: the shape that the value has inside a block."""
        return self.axes.removeprefix("L")

    def shape(self, config: TransformerConfig, batch: int, positions: int) -> tuple[int, ...]:
        """The full shape of the site for a batch of `batch` prompts of `positions` tokens."""
        sizes = config.axis_sizes | {"B": batch, "P": positions, "Q": positions, "K": positions, "L": len(self.layers(config))}
        return tuple(sizes[letter] for letter in self.axes)


def _no_learned(config: TransformerConfig) -> str:
    return "" if config.positions == "learned" else f"its positions are {config.positions}, not learned"


def _no_ln1(config: TransformerConfig) -> str:
    if config.norm == "none":
        return "it has no norms"
    return "its norms stand after attention and MLP (norm_position='output')" if config.norm_position == "output" else ""


def _no_ln2(config: TransformerConfig) -> str:
    if config.parallel == "one_norm":
        return "attention and MLP share one norm: see ln1_scale"
    return _no_mlp(config) or _no_ln1(config)


def _no_post_norm(config: TransformerConfig) -> str:
    if config.norm == "none":
        return "it has no norms"
    return (
        ""
        if config.norm_position in ("sandwich", "output")
        else f"its norm position is {config.norm_position!r}, without a norm after the sublayer"
    )


def _no_proj(config: TransformerConfig) -> str:
    if config.residual_multiplier != 1.0 or not _no_post_norm(config):
        return ""
    return "it has neither a norm after the sublayer nor a residual multiplier, so the value is attn_out or mlp_out itself"


def _no_mlp(config: TransformerConfig) -> str:
    return "" if config.has_mlp else "its blocks have attention only"


def _no_mlp_proj(config: TransformerConfig) -> str:
    return _no_mlp(config) or _no_proj(config)


def _no_up(config: TransformerConfig) -> str:
    return _no_mlp(config) or ("" if config.gated else "its MLP is not gated")


def _no_mid(config: TransformerConfig) -> str:
    if not config.has_mlp:
        return "its blocks have attention only, so the value is resid_post"
    return "" if config.parallel == "no" else "attention and MLP are parallel: both are added at once"


def _no_experts(config: TransformerConfig) -> str:
    return "" if config.experts else "its MLPs are dense, without experts"


def _no_shared(config: TransformerConfig) -> str:
    return _no_experts(config) or ("" if config.experts and config.experts.d_shared else "it has no shared expert")


def _not_mixed(config: TransformerConfig) -> str:
    return "" if len(set(config.expert_layers)) > 1 else "all its layers are of one kind: see mlp_pre, mlp_up and mlp_post"


def _no_final(config: TransformerConfig) -> str:
    return "" if config.final_norm else "it has no final norm"


def _no_logits(config: TransformerConfig) -> str:
    return "it has no unembedding" if config.unembed == "none" else ""


SITES: dict[str, Site] = {
    site.name: site
    for site in (
        Site("embed", "BPD", "token embedding, after any embedding scale or norm"),
        Site("pos_embed", "BPD", "learned position embedding", _no_learned),
        Site("type_embed", "BPD", "token type embedding", lambda c: "" if c.n_token_types else "it has no token types"),
        Site("resid_pre", "LBPD", "residual stream entering the block"),
        Site("ln1_scale", "LBP1", "denominator of the norm before attention (post-norm: of the norm after adding attention)", _no_ln1),
        Site("attn_in", "LBPD", "input of the attention projections: normed, after the gain"),
        Site("q", "LBPHE", "queries: projection and bias, before q/k norm and rotation"),
        Site("k", "LBPGE", "keys, a key/value head at a time: projection and bias, before q/k norm and rotation"),
        Site("v", "LBPGE", "values, a key/value head at a time: projection and bias"),
        Site("q_rot", "LBPHE", "queries as they enter the scores: normed, rotated, or neither"),
        Site("k_rot", "LBPGE", "keys as they enter the scores: normed, rotated, or neither"),
        Site("scores", "LBHQK", "attention scores: scaled, ALiBi added, soft-capped, before the mask"),
        Site("sink", "LBHQ", "attention weight that goes to the sink", lambda c: "" if c.sinks else "it has no attention sinks"),
        Site("pattern", "LBHQK", "attention weights; a row with every key masked is zero"),
        Site("z", "LBPHE", "weighted values, a head at a time"),
        Site("head_out", "LBPHD", "z through W_O, a head at a time; with b_O they sum to attn_proj or attn_out", opt_in=True),
        Site("attn_proj", "LBPD", "output of attention before a post-norm or a residual multiplier", _no_proj),
        Site("ln1_post_scale", "LBP1", "denominator of the norm after attention", _no_post_norm),
        Site("attn_out", "LBPD", "what attention adds to the residual stream"),
        Site("resid_mid", "LBPD", "residual stream between attention and MLP", _no_mid),
        Site("ln2_scale", "LBP1", "denominator of the norm before the MLP (post-norm: of the norm after adding the MLP)", _no_ln2),
        Site("mlp_in", "LBPD", "input of the MLP: normed, after the gain", _no_mlp),
        Site("router_logits", "LBPX", "logits of the router, one for each expert", _no_experts, layers_with="experts"),
        Site(
            "expert_weights",
            "LBPX",
            "weights of the experts as applied, 0 where not chosen; after an edit the S largest are applied",
            _no_experts,
            layers_with="experts",
        ),
        Site("expert_index", "LBPS", "the chosen experts, largest weight first", _no_experts, read_only=True, layers_with="experts"),
        Site("mlp_pre", "LBPM", "pre-activation of the neurons (of the gate, in a gated MLP)", _no_mlp),
        Site("mlp_up", "LBPM", "linear factor of a gated MLP", _no_up),
        Site("mlp_post", "LBPM", "neuron activations entering W_out", _no_mlp),
        Site("dense_pre", "LBPN", "mlp_pre of the dense layers", _not_mixed, layers_with="dense"),
        Site("dense_up", "LBPN", "mlp_up of the dense layers", lambda c: _not_mixed(c) or _no_up(c), layers_with="dense"),
        Site("dense_post", "LBPN", "mlp_post of the dense layers", _not_mixed, layers_with="dense"),
        Site("shared_out", "LBPD", "output of the shared expert, after its gate", _no_shared, layers_with="experts"),
        Site("mlp_proj", "LBPD", "output of the MLP before a post-norm or a residual multiplier", _no_mlp_proj),
        Site("ln2_post_scale", "LBP1", "denominator of the norm after the MLP", lambda c: _no_mlp(c) or _no_post_norm(c)),
        Site("mlp_out", "LBPD", "what the MLP adds to the residual stream", _no_mlp),
        Site("resid_post", "LBPD", "residual stream leaving the block"),
        Site("pooled", "BD", "the pooler's output for the first token", lambda c: "" if c.pooler else "it has no pooler"),
        Site("ln_final_scale", "BP1", "denominator of the final norm", lambda c: "it has no norms" if c.norm == "none" else _no_final(c)),
        Site("ln_final", "BPD", "residual stream after the final norm", _no_final),
        Site("logits_raw", "BPV", "logits before the final soft cap", _no_logits),
        Site("logits", "BPV", "logits", _no_logits),
    )
}


def site_names(config: TransformerConfig, *, opt_in: bool = True) -> tuple[str, ...]:
    """Names of the sites that a model has, in the order of the forward pass; `opt_in=False` leaves out the large ones."""
    return tuple(name for name, site in SITES.items() if not site.absent(config) and (opt_in or not site.opt_in))


@functools.lru_cache
def site_of(name: str, config: TransformerConfig) -> Site:
    """The table's entry as it is on a model: with experts, neurons have an axis S of chosen experts."""
    site = SITES[name]
    if config.experts and name in ("mlp_pre", "mlp_up", "mlp_post"):
        return dataclasses.replace(site, axes="LBPSM", layers_with="experts")
    return site


def check_site(name: str, config: TransformerConfig) -> Site:
    """The site of that name.

    Raises:
        InputError: no site has that name, or this model lacks it; the message says why and lists those it has.
    """
    names = ", ".join(site_names(config))
    if name not in SITES:
        raise InputError(f"There is no site {name!r}. Sites of this model: {names}.")
    reason = SITES[name].absent(config)
    if reason:
        raise InputError(f"Site {name!r} does not exist on this model: {reason}. Sites of this model: {names}.")
    return site_of(name, config)
