"""Our own folder layout, for models that no class of transformers describes: `jaxinterp.json` beside safetensors files.

The tensors are our parameters under our names, stacked as they are; the config is written field by field.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxinterp.checkpoints.layout import parse
from jaxinterp.checkpoints.mapping import Leaf, flatten
from jaxinterp.errors import CheckpointError, InputError
from jaxinterp.model.config import Experts, Rotary, RotaryScaling, TransformerConfig

FILE = "jaxinterp.json"
VERSION = 1


def write_config(config: TransformerConfig) -> dict[str, Any]:
    """The contents of `jaxinterp.json`."""
    return {"format": "jaxinterp", "version": VERSION, "config": dataclasses.asdict(config)}


def read_config(path: Path) -> TransformerConfig:
    """The config that a `jaxinterp.json` describes.

    Raises:
        CheckpointError: it is of another version, or holds a field that is not understood.
    """
    values = read_json(path)
    if values.get("format") != "jaxinterp" or values.get("version") != VERSION or not isinstance(values.get("config"), dict):
        raise CheckpointError(f"{path} is not of this format: expected 'format': 'jaxinterp' and 'version': {VERSION}.")
    fields = dict(values["config"])
    try:
        settings = []
        for setting in fields.get("rotary", ()):
            scaling = setting.get("scaling")
            settings.append(_made(Rotary, {**setting, "scaling": _made(RotaryScaling, scaling) if scaling else None}))
        experts = fields.get("experts")
        return _made(TransformerConfig, {**fields, "rotary": settings, "experts": _made(Experts, experts) if experts else None})
    except (TypeError, AttributeError, InputError) as error:
        raise CheckpointError(f"{path} cannot be loaded: {error}") from None


def _made(kind: type, values: Mapping[str, Any]) -> Any:
    unknown = sorted(set(values) - {field.name for field in dataclasses.fields(kind)})
    if unknown:
        raise TypeError(f"{kind.__name__} has no field {', '.join(map(repr, unknown))}")
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def plan(shapes: Mapping[str, Any]) -> list[Leaf]:
    """Every leaf of a parameter tree is one tensor of the same name and shape."""
    leaves = []
    for path, struct in flatten(shapes).items():
        sizes = {f"axis{number}": size for number, size in enumerate(struct.shape)}
        leaves.append(Leaf(path, tuple(struct.shape), (path,), parse(" ".join(sizes)), part=0, add=0.0, sizes=sizes, stacked=0))
    return leaves


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds {type(values).__name__}, expected an object.")
    return values
