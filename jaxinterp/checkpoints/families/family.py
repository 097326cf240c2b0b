"""Family: all that is particular to one kind of checkpoint, as data and two small functions."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxinterp.checkpoints.fields import Fields
from jaxinterp.checkpoints.mapping import Table
from jaxinterp.checkpoints.safetensors import SafetensorsSource
from jaxinterp.checkpoints.source import Source
from jaxinterp.model.config import TransformerConfig


@dataclasses.dataclass(frozen=True)
class GgufFormat:
    """How llama.cpp writes a family.

    Attributes:
        architecture: the file's general.architecture.
        table: our parameters to its tensors.
        config: its metadata (keys without the architecture's prefix) and the file itself, as a config.json of the family.
        ignorable: patterns of tensors that hold no parameters.
    """

    architecture: str
    table: Table
    config: Callable[[Fields, Source], dict[str, Any]]
    ignorable: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Family:
    """One model_type of transformers.

    Attributes:
        model_type: its name in config.json.
        architectures: the classes whose weights these are; the first is the one written.
        read: the fields of a config.json, and the dtype being loaded, to our config.
        write: our config to the fields of a config.json, or None where it clearly does not fit; whether it fits exactly is
            found out by reading it back.
        table: our parameters to its tensors.
        prefix: what all names but the unembedding's begin with; files of the bare model leave it out.
        ignorable: patterns of tensors that hold no parameters.
        tied_copies: where the unembedding is tied, tensors that must equal another one if a file has both.
        gguf: how llama.cpp writes it, or None.
        unpack: shows a file whose weights may be packed as if they were not, or None.
        variant: rules that stand in place of the table's for some configs.
    """

    model_type: str
    architectures: tuple[str, ...]
    read: Callable[[Fields, np.dtype], TransformerConfig]
    write: Callable[[TransformerConfig], dict[str, Any] | None]
    table: Table
    prefix: str = "model."
    ignorable: tuple[str, ...] = (r"(^|\.)rotary_emb\.inv_freq$",)
    tied_copies: Mapping[str, str] = dataclasses.field(default_factory=dict)
    gguf: GgufFormat | None = None
    unpack: Callable[[SafetensorsSource], Source] | None = None
    variant: Callable[[TransformerConfig], Table] = lambda config: {}

    def table_of(self, config: TransformerConfig) -> Table:
        """Our parameters to the tensors of a model with this config."""
        return {**self.table, **self.variant(config)}
