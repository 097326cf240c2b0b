"""Families: the kinds of checkpoints that can be loaded, found by the model_type of a config.json or the architecture of a GGUF."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxinterp.checkpoints.families import (
    bert,
    bloom,
    cohere,
    falcon,
    gemma,
    gemma3,
    glm,
    gpt2,
    gpt_bigcode,
    gpt_neo,
    gpt_neox,
    gpt_oss,
    gptj,
    granite,
    layer_norm,
    llama,
    moe,
    mpt,
    olmo,
    opt,
    phi3,
    smollm3,
)
from jaxinterp.checkpoints.families.family import Family
from jaxinterp.checkpoints.fields import Fields
from jaxinterp.errors import CheckpointError
from jaxinterp.model.config import TransformerConfig

MODULES = (
    llama, gpt2, gpt_neox, gemma3, bert, moe, gpt_oss, phi3, gemma, olmo, granite, smollm3, cohere, glm, gptj, gpt_neo,
    gpt_bigcode, opt, bloom, falcon, mpt, layer_norm,
)  # fmt: skip

FAMILIES: Mapping[str, Family] = {family.model_type: family for module in MODULES for family in module.FAMILIES}

GGUF_FAMILIES: Mapping[str, Family] = {family.gguf.architecture: family for family in FAMILIES.values() if family.gguf}


def family_of(values: Mapping[str, Any], file: str) -> Family:
    """The family of a config.json.

    Raises:
        CheckpointError: its model_type or its architecture is not one of those known.
    """
    known = f"known: {', '.join(FAMILIES)}"
    family = FAMILIES.get(values.get("model_type", ""))
    if family is None:
        raise CheckpointError(f"{file}: model_type {values.get('model_type')!r} is not supported ({known}).")
    unknown = [name for name in values.get("architectures") or () if name not in family.architectures]
    if unknown:
        known = f"known for {family.model_type}: {', '.join(family.architectures)}"
        raise CheckpointError(f"{file}: architecture {unknown[0]!r} is not supported ({known}).")
    return family


def read_config(values: Mapping[str, Any], dtype: np.dtype, file: str) -> tuple[TransformerConfig, Family]:
    """Our config from the fields of a config.json, with the family that it is of.

    Args:
        values: the fields.
        dtype: of the weights as loaded.
        file: for messages.
    """
    family = family_of(values, file)
    return family.read(Fields(values, file), dtype), family


def family_for(config: TransformerConfig, dtype: np.dtype) -> tuple[Family, dict[str, Any]] | None:
    """The first family whose config.json says exactly what `config` does, with its fields; None where no family can."""
    for family in FAMILIES.values():
        fields = family.write(config)
        if fields is None:
            continue
        try:
            if family.read(Fields(fields, "config.json"), dtype) == config:
                return family, {"architectures": [family.architectures[0]], "model_type": family.model_type} | fields
        except CheckpointError:
            continue
    return None
