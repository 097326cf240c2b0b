"""TransformerConfig: one field for each architectural choice, each with the effect of its values.

A config is frozen and hashable, so it is a static argument of every compiled program. Two checkpoints with equal
configs share their programs.
"""

import dataclasses
import math
from typing import Literal

from jaxinterp.errors import InputError

NormKind = Literal["layer", "rms", "none"]
NormGain = Literal["w", "1+w", "none"]
NormPosition = Literal["pre", "sandwich", "output", "post"]
Parallel = Literal["no", "one_norm", "two_norms"]
Positions = Literal["rotary", "learned", "alibi", "none"]
QKNorm = Literal["none", "head", "per_head", "whole"]
Activation = Literal["relu", "relu2", "gelu", "gelu_tanh", "quick_gelu", "silu", "solu"]
Unembed = Literal["tied", "own", "none"]
EmbedNorm = Literal["none", "token", "sum"]
ScalingKind = Literal["linear", "dynamic", "llama3", "yarn", "longrope"]

CHOICES: dict[str, tuple[str, ...]] = {
    "norm": ("layer", "rms", "none"),
    "norm_gain": ("w", "1+w", "none"),
    "norm_position": ("pre", "sandwich", "output", "post"),
    "parallel": ("no", "one_norm", "two_norms"),
    "positions": ("rotary", "learned", "alibi", "none"),
    "qk_norm": ("none", "head", "per_head", "whole"),
    "activation": ("relu", "relu2", "gelu", "gelu_tanh", "quick_gelu", "silu", "solu"),
    "unembed": ("tied", "own", "none"),
    "embed_norm": ("none", "token", "sum"),
}


@dataclasses.dataclass(frozen=True)
class RotaryScaling:
    """How rotary frequencies are stretched beyond the context that a model was first trained on.

    Attributes:
        kind: "linear" divides every frequency by `factor`; "dynamic" raises the base once a prompt is longer than
            `original_context` (dynamic NTK); "llama3" divides the low frequencies only, with a smooth step between
            `low_freq_factor` and `high_freq_factor`; "yarn" interpolates between divided and plain frequencies over
            a ramp set by `beta_fast` and `beta_slow`; "longrope" divides each frequency by its own entry of
            `short_factor`, or of `long_factor` for prompts longer than `original_context`.
        factor: the stretch, a multiple of the original context.
        original_context: tokens of the context before stretching.
        attention_factor: multiplies the cosines and sines (and so q and k); already resolved by the loader.
        truncate: yarn only, whether the ramp's ends are rounded to whole frequencies.
    """

    kind: ScalingKind
    factor: float = 1.0
    original_context: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    truncate: bool = True
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Rotary:
    """One setting of rotary position embedding (Su et al. 2021, arXiv:2104.09864).

    Attributes:
        dim: how many of the d_head features are rotated, the first ones; the rest pass through (partial rotary).
        base: the longest wavelength is about 2 pi base.
        interleaved: True pairs features (0, 1), (2, 3) ...; False pairs (0, dim/2), (1, dim/2 + 1) ... (half-split).
        scaling: how frequencies are stretched for long contexts, or None.
    """

    dim: int
    base: float = 10_000.0
    interleaved: bool = False
    scaling: RotaryScaling | None = None


@dataclasses.dataclass(frozen=True)
class Experts:
    """A mixture of experts in place of the MLP (Shazeer et al. 2017, arXiv:1701.06538).

    Attributes:
        n: experts of a layer (axis X).
        per_token: experts that each token goes to (axis S), those of the largest router weight.
        d_expert: neurons of an expert (axis M).
        normalise: whether the weights of the chosen experts are scaled to sum to 1.
        router_bias: a bias on the router's logits.
        d_shared: neurons of an expert that every token goes to; 0 for none.
        shared_gate: whether the shared expert's output is multiplied by sigmoid(x w).
        layers: for each layer, whether it has experts or a dense MLP; () means experts everywhere.
    """

    n: int
    per_token: int
    d_expert: int
    normalise: bool = True
    router_bias: bool = False
    d_shared: int = 0
    shared_gate: bool = False
    layers: tuple[bool, ...] = ()


@dataclasses.dataclass(frozen=True)
class Group:
    """Consecutive layers of one structure: one stack of weights, one scan.

    Attributes:
        start, stop: layers start .. stop-1.
        experts: whether their MLP is a mixture of experts.
    """

    start: int
    stop: int
    experts: bool


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Every architectural choice of a transformer.

    Attributes:
        n_layers, d_model, n_heads, d_head: as in the field; axis letters L, D, H, E.
        d_vocab: rows of the embedding; axis letter V.
        n_ctx: the longest prompt in tokens that the model accepts.
        n_kv_heads: key/value heads (axis G); n_heads is a multiple. 1 is multi-query, n_heads is plain multi-head.
        d_mlp: neurons of a dense MLP (axis M); 0 means that blocks have attention only, or experts only.
        experts: a mixture of experts in some or all layers, or None.

        norm: "layer" subtracts the mean and divides by the standard deviation; "rms" divides by the root mean square;
            "none" passes the value on.
        norm_gain: "w" multiplies by w; "1+w" by 1 + w (Gemma); "none" has no gain.
        norm_bias: whether norms add a bias b.
        norm_eps: added to the variance before the root.
        norm_position: where a block's norms stand. "pre": x + f(norm(x)). "sandwich": x + norm(f(norm(x))) (Gemma 2
            and 3). "output": x + norm(f(x)) (OLMo 2). "post": norm(x + f(x)) (BERT).
        parallel: "no" feeds the MLP from the residual stream after attention; "one_norm" gives attention and MLP the
            same normed input and adds both at once (GPT-J); "two_norms" the same with a norm each (GPT-NeoX).
        embed_norm: "token" norms the token embedding (BLOOM); "sum" norms it with positions and token types added (BERT).
        final_norm: a norm before the unembedding.
        final_dense: a dense layer with this activation before the final norm (the head of masked language models), or None.
        pooler: a dense layer with tanh on the first token's last residual stream (BERT): site `pooled`.
        d_embed: width of the token embedding where it differs and is projected to d_model and back (OPT 350m), or None.

        positions: "rotary", "learned" (added to the embedding), "alibi" (a bias on scores) or "none".
        alibi_slopes: for each head, how much a score falls a token of distance; () is the usual powers of two.
        position_offset: rows skipped at the start of the learned positions (OPT: 2).
        n_token_types: rows of a token type embedding (BERT); 0 for none.
        rotary: the distinct rotary settings of the model.
        rotary_layers: for each layer, which entry of `rotary` it uses; -1 does not rotate; () means 0 everywhere.

        causal: a query sees only keys at its own position and before it. False is bidirectional (BERT).
        windows: for each layer, how many tokens back a query sees, its own included; 0 sees all; () means 0 everywhere.
        score_scale: multiplies q k; None is 1/sqrt(d_head). A tuple gives one for each layer.
        score_soft_cap: c tanh(score / c), or None.
        sinks: a learned score a head that takes part in the softmax and attends to nothing (GPT-OSS).
        qkv_clip: q, k and v are clipped to [-clip, clip], or None (MPT, OLMo); q and k after their norm where they have one.
        q_bias, k_bias, v_bias, o_bias: biases of the attention's projections.
        qk_norm: norm of queries and keys before rotation, of the model's kind. "head": one gain [E] shared by heads
            (Qwen 3); "per_head": a gain [H E], each head normed alone (Cohere); "whole": all heads normed as one vector
            (OLMo 2).

        activation: "relu", "relu2" (squared), "gelu" (exact, erf), "gelu_tanh", "quick_gelu" (x sigmoid(1.702 x)),
            "silu", "solu" (x softmax(x)).
        gated: W_out (activation(x W_gate) * (x W_in)); else W_out activation(x W_in).
        mlp_in_bias, mlp_out_bias: biases into (gate and in) and out of the neurons.
        mlp_clamp: gate clipped above and linear factor clipped on both sides at this value, or None (GPT-OSS).
        mlp_up_offset: added to the linear factor of a gated MLP (GPT-OSS: 1).

        embed_scale: multiplies the token embedding (Gemma: sqrt(d_model)).
        residual_multiplier: multiplies what attention and MLP add (Granite).
        logit_scale: multiplies the logits (Cohere; Granite as 1 / logits_scaling).
        final_soft_cap: c tanh(logit / c), or None (Gemma 2).
        unembed: "tied" uses W_E transposed; "own" has W_U; "none" ends at the final norm.
        unembed_bias: a bias on the logits.
    """

    n_layers: int
    d_model: int
    n_heads: int
    d_head: int
    d_vocab: int
    n_ctx: int
    n_kv_heads: int
    d_mlp: int
    experts: Experts | None = None

    norm: NormKind = "rms"
    norm_gain: NormGain = "w"
    norm_bias: bool = False
    norm_eps: float = 1e-5
    norm_position: NormPosition = "pre"
    parallel: Parallel = "no"
    embed_norm: EmbedNorm = "none"
    final_norm: bool = True
    final_dense: Activation | None = None
    pooler: bool = False
    d_embed: int | None = None

    positions: Positions = "rotary"
    alibi_slopes: tuple[float, ...] = ()
    position_offset: int = 0
    n_token_types: int = 0
    rotary: tuple[Rotary, ...] = ()
    rotary_layers: tuple[int, ...] = ()

    causal: bool = True
    windows: tuple[int, ...] = ()
    score_scale: float | tuple[float, ...] | None = None
    score_soft_cap: float | None = None
    sinks: bool = False
    qkv_clip: float | None = None
    q_bias: bool = False
    k_bias: bool = False
    v_bias: bool = False
    o_bias: bool = False
    qk_norm: QKNorm = "none"

    activation: Activation = "silu"
    gated: bool = True
    mlp_in_bias: bool = False
    mlp_out_bias: bool = False
    mlp_clamp: float | None = None
    mlp_up_offset: float = 0.0

    embed_scale: float = 1.0
    residual_multiplier: float = 1.0
    logit_scale: float = 1.0
    final_soft_cap: float | None = None
    unembed: Unembed = "tied"
    unembed_bias: bool = False

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise InputError(f"TransformerConfig.{name} is {getattr(self, name)!r}; expected one of {', '.join(map(repr, allowed))}.")
        for name in ("n_layers", "d_model", "n_heads", "d_head", "d_vocab", "n_ctx", "n_kv_heads"):
            if getattr(self, name) < 1:
                raise InputError(f"TransformerConfig.{name} is {getattr(self, name)}; expected at least 1.")
        if self.n_heads % self.n_kv_heads:
            raise InputError(f"n_heads ({self.n_heads}) must be a multiple of n_kv_heads ({self.n_kv_heads}).")
        if (self.positions == "rotary") != bool(self.rotary):
            raise InputError(
                f"positions={self.positions!r} with {len(self.rotary)} rotary settings: rotary positions need one or more, others none."
            )
        for setting in self.rotary:
            if not 0 < setting.dim <= self.d_head or setting.dim % 2:
                raise InputError(f"Rotary.dim is {setting.dim}; expected an even number from 2 to d_head ({self.d_head}).")
        if len({(setting.dim, setting.interleaved) for setting in self.rotary}) > 1:
            raise InputError(
                "All rotary settings of a model must share `dim` and `interleaved`; only base and scaling may differ by layer."
            )
        for name in ("rotary_layers", "windows"):
            if getattr(self, name) and len(getattr(self, name)) != self.n_layers:
                raise InputError(f"TransformerConfig.{name} has {len(getattr(self, name))} entries for {self.n_layers} layers.")
        if isinstance(self.score_scale, tuple) and len(self.score_scale) != self.n_layers:
            raise InputError(f"TransformerConfig.score_scale has {len(self.score_scale)} entries for {self.n_layers} layers.")
        if self.parallel != "no" and self.norm_position != "pre":
            raise InputError(f"parallel={self.parallel!r} needs norm_position='pre', not {self.norm_position!r}.")
        if self.alibi_slopes and len(self.alibi_slopes) != self.n_heads:
            raise InputError(f"TransformerConfig.alibi_slopes has {len(self.alibi_slopes)} entries for {self.n_heads} heads.")
        if self.final_dense is not None and self.final_dense not in CHOICES["activation"]:
            raise InputError(f"TransformerConfig.final_dense is {self.final_dense!r}; expected an activation or None.")
        self._check_experts()
        if self.gated and self.activation == "solu":
            raise InputError("activation='solu' is not defined for a gated MLP.")

    def _check_experts(self) -> None:
        experts = self.experts
        if experts is None:
            return
        if not 1 <= experts.per_token <= experts.n:
            raise InputError(f"Experts.per_token is {experts.per_token}; expected 1 to {experts.n}, the number of experts.")
        if experts.d_expert < 1:
            raise InputError(f"Experts.d_expert is {experts.d_expert}; expected at least 1.")
        if experts.layers and len(experts.layers) != self.n_layers:
            raise InputError(f"Experts.layers has {len(experts.layers)} entries for {self.n_layers} layers.")
        if not all(experts.layers) and self.d_mlp < 1:
            raise InputError("Experts.layers leaves some layers dense, so d_mlp must say how many neurons they have.")

    @property
    def has_mlp(self) -> bool:
        return self.d_mlp > 0 or self.experts is not None

    @property
    def expert_layers(self) -> tuple[bool, ...]:
        """For each layer, whether its MLP is a mixture of experts."""
        if self.experts is None:
            return (False,) * self.n_layers
        return self.experts.layers or (True,) * self.n_layers

    @property
    def groups(self) -> tuple[Group, ...]:
        """Runs of layers of one structure, in order: the stacks of `params["blocks"]`."""
        kinds, starts = self.expert_layers, [0]
        starts += [layer for layer in range(1, self.n_layers) if kinds[layer] != kinds[layer - 1]]
        return tuple(Group(start, stop, kinds[start]) for start, stop in zip(starts, [*starts[1:], self.n_layers], strict=True))

    @property
    def layer_scales(self) -> tuple[float, ...]:
        """The factor on q k, for each layer."""
        if isinstance(self.score_scale, tuple):
            return self.score_scale
        return (1.0 / math.sqrt(self.d_head) if self.score_scale is None else self.score_scale,) * self.n_layers

    @property
    def layer_windows(self) -> tuple[int, ...]:
        """Tokens that a query sees, for each layer; 0 is no limit."""
        return self.windows or (0,) * self.n_layers

    @property
    def layer_rotary(self) -> tuple[int, ...]:
        """Index into `rotary` for each layer; -1 where the layer does not rotate."""
        return self.rotary_layers or (0 if self.rotary else -1,) * self.n_layers

    @property
    def axis_sizes(self) -> dict[str, int]:
        """Sizes of the axes that the config fixes, by their letters."""
        return {
            "L": self.n_layers, "D": self.d_model, "H": self.n_heads, "G": self.n_kv_heads,
            "E": self.d_head, "M": self.experts.d_expert if self.experts else self.d_mlp, "N": self.d_mlp, "V": self.d_vocab, "1": 1,
            "X": self.experts.n if self.experts else 0, "S": self.experts.per_token if self.experts else 0,
        }  # fmt: skip

    def replace(self, **changes: object) -> "TransformerConfig":
        """A copy with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]
