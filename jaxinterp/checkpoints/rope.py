"""Rotary settings: the spellings of config.json (`rope_theta` with `rope_scaling`, or `rope_parameters`) and ours.

Attention factors are resolved here, as transformers' modeling_rope_utils does, so that the model only multiplies.
"""

import math
from collections.abc import Mapping
from typing import Any

from jaxinterp.checkpoints.fields import Fields
from jaxinterp.model.config import Rotary, RotaryScaling

UNDERSTOOD: Mapping[str, frozenset[str]] = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "dynamic": frozenset({"factor"}),
    "llama3": frozenset({"factor", "low_freq_factor", "high_freq_factor"}),
    "yarn": frozenset({"factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"}),
    "longrope": frozenset({"factor", "attention_factor", "short_factor", "long_factor"}),
}
"""What each kind of scaling may carry; `original_max_position_embeddings` may stand in all of them."""

COMMON = frozenset({"rope_type", "type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings"})


def rope_parameters(fields: Fields, default_theta: float = 10_000.0, partial: float | None = None) -> dict[str, Any]:
    """One flat set of rotary parameters from either spelling; where both name a value, the inner one counts.

    Args:
        fields: of the config.
        default_theta: the base where the file has none.
        partial: the share of features rotated where the file has none; None for families that rotate all of them.
    """
    theta = fields.take("rope_theta", default_theta, kind=float)
    share = fields.take("partial_rotary_factor", partial, kind=float)
    new, old = fields.take("rope_parameters", {}, kind=dict), fields.take("rope_scaling", {}, kind=dict)
    # Phi-3 and others keep the context before stretching beside the rotary parameters, and there it counts first
    outside = {"original_max_position_embeddings": fields.take("original_max_position_embeddings", None, kind=int)}
    merged = {"rope_theta": theta, "partial_rotary_factor": share} | _given(new) | _given(old) | _given(outside)
    return _given(merged)


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def rotary(fields: Fields, parameters: Mapping[str, Any], d_head: int, context: int, *, partial: bool = False) -> tuple[Rotary, int]:
    """Our setting of one set of rotary parameters, and the longest prompt that it is made for.

    Args:
        fields: of the config; collects what is not understood.
        parameters: from `rope_parameters`.
        d_head: features a head.
        context: the file's max_position_embeddings.
        partial: whether the family can rotate a part of the features.
    """
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind not in UNDERSTOOD:
        fields.problems.append(f"rope scaling {kind!r} is not supported (supported: {', '.join(UNDERSTOOD)})")
        return Rotary(d_head, float(parameters["rope_theta"])), context
    for name in sorted(set(parameters) - COMMON - UNDERSTOOD[kind]):
        fields.problems.append(f"rope parameter {name!r} of {kind!r} scaling is not understood")
    share = float(parameters.get("partial_rotary_factor", 1.0))
    if share != 1.0 and not partial:
        fields.problems.append(f"'partial_rotary_factor' is {share}, but this family rotates every feature")
    setting = Rotary(int(d_head * share), float(parameters["rope_theta"]))
    if not 0 < setting.base < math.inf:
        fields.problems.append(f"the base of the rotation ('rope_theta') is {setting.base}, expected a positive number")
    try:
        scaling = _scaling(kind, parameters, context, setting.dim)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        fields.problems.append(f"rope scaling {kind!r} cannot be read: {type(error).__name__} {error}")
        return setting, context
    if scaling is None:
        return setting, context
    # past the file's own context these two still behave as they were made to
    stretched = int(scaling.factor * scaling.original_context) if kind in ("dynamic", "yarn") else 0
    return Rotary(setting.dim, setting.base, scaling=scaling), max(context, stretched)


def _scaling(kind: str, parameters: Mapping[str, Any], context: int, dim: int) -> RotaryScaling | None:
    original = int(parameters.get("original_max_position_embeddings", context))
    match kind:
        case "linear":
            return RotaryScaling("linear", float(parameters["factor"]))
        case "dynamic":
            return RotaryScaling("dynamic", float(parameters["factor"]), context)
        case "llama3":
            low, high = float(parameters["low_freq_factor"]), float(parameters["high_freq_factor"])
            return RotaryScaling("llama3", float(parameters["factor"]), original, low_freq_factor=low, high_freq_factor=high)
        case "yarn":
            factor = float(parameters.get("factor", context / original))
            return RotaryScaling(
                "yarn",
                factor,
                original,
                beta_fast=float(parameters.get("beta_fast") or 32),
                beta_slow=float(parameters.get("beta_slow") or 1),
                attention_factor=_yarn_attention(parameters, factor),
                truncate=bool(parameters.get("truncate", True)),
            )
        case "longrope":
            short, long = (tuple(float(x) for x in parameters[name]) for name in ("short_factor", "long_factor"))
            if not len(short) == len(long) == dim // 2:
                raise ValueError(f"expected {dim // 2} entries in short_factor and long_factor, not {len(short)} and {len(long)}")
            factor = float(parameters.get("factor", context / original))
            return RotaryScaling(
                "longrope",
                factor,
                original,
                attention_factor=_longrope_attention(parameters, factor, original),
                short_factor=short,
                long_factor=long,
            )
    return None


def _yarn_attention(parameters: Mapping[str, Any], factor: float) -> float:
    def mscale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if "attention_factor" in parameters:
        return float(parameters["attention_factor"])
    if parameters.get("mscale") and parameters.get("mscale_all_dim"):
        return mscale(parameters["mscale"]) / mscale(parameters["mscale_all_dim"])
    return mscale(1.0)


def _longrope_attention(parameters: Mapping[str, Any], factor: float, original: int) -> float:
    if "attention_factor" in parameters:
        return float(parameters["attention_factor"])
    return 1.0 if factor <= 1.0 else math.sqrt(1 + math.log(factor) / math.log(original))


def scaling_fields(setting: Rotary) -> dict[str, Any] | None:
    """`rope_scaling` as config.json spells it, attention factor included; None without scaling."""
    scaling = setting.scaling
    if scaling is None:
        return None
    fields: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    match scaling.kind:
        case "llama3":
            fields |= {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor}
        case "yarn":
            fields |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow, "truncate": scaling.truncate}
        case "longrope":
            fields |= {"short_factor": list(scaling.short_factor), "long_factor": list(scaling.long_factor)}
    if scaling.kind in ("llama3", "yarn", "longrope"):
        fields["original_max_position_embeddings"] = scaling.original_context
    if scaling.kind in ("yarn", "longrope"):
        fields["attention_factor"] = scaling.attention_factor
    return fields


def context_of(n_ctx: int, setting: Rotary) -> int:
    """The `max_position_embeddings` that reads back as `n_ctx` tokens."""
    return setting.scaling.original_context if setting.scaling and setting.scaling.kind == "dynamic" else n_ctx
