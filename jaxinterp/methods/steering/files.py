"""Steering vectors as files: safetensors keeps all of one, GGUF is a control vector as llama.cpp and repeng read and write it.

A GGUF control vector holds one float32 tensor [D] a layer, `direction.l`, which is added to the output of block l, counted from 0: our
site resid_post at layer l. There is none for layer 0, which llama.cpp refuses, so such a vector is not written here either; a strength
is not kept, it is given where the file is used. Files are checked before a number of them is believed, and written whole or not at all.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from jaxinterp.checkpoints.families import FAMILIES
from jaxinterp.checkpoints.safetensors import CODES, SafetensorsSource, write
from jaxinterp.errors import CheckpointError, InputError
from jaxinterp.methods.steering.identity import SKETCH, model_hint
from jaxinterp.methods.steering.vector import SteeringVector, ranges
from jaxinterp.model.language_model import LanguageModel
from jaxinterp.model.sites import SITES

FORMAT, VERSION = "jaxinterp steering vector", "1"
ARRAYS = ("values", "norms", "accuracy", "sketch")
CONTROL = "controlvector"
MAX_DEPTH = 100_000
READ_AS = {"mistral": "llama"}
"""Families that llama.cpp has under another's name."""


def save(vector: SteeringVector, path: str | Path) -> Path:
    """Writes a vector; the file appears whole or not at all.

    Args:
        vector: what to write.
        path: .safetensors keeps everything; .gguf is a control vector of llama.cpp, for site resid_post and layers from 1.

    Raises:
        InputError: another ending, or a vector that a control vector cannot hold.
        CheckpointError: the file cannot be written.
    """
    target = Path(path).expanduser()
    if target.suffix not in (".safetensors", ".gguf"):
        raise InputError(f"A steering vector is saved as .safetensors or .gguf; got {target.name!r}.")
    if target.suffix == ".gguf":
        _check_control(vector)
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        try:
            (_write_gguf if target.suffix == ".gguf" else _write_safetensors)(vector, draft)
            os.replace(draft, target)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(f"{target} cannot be written: {error.strerror or error}.") from None
    return target


def load(path: str | Path, lm: LanguageModel | None = None, *, force: bool = False) -> SteeringVector:
    """Reads a vector that `save`, llama.cpp or repeng wrote.

    Args:
        path: a .safetensors or .gguf file.
        lm: the model that it is to steer, which it is checked against. A .gguf file needs one: it does not say how many layers its model
            has.
        force: whether a vector of another model of the same shape is let through.

    Returns:
        A SteeringVector. From a .gguf file `norms` and `accuracy` are NaN, and layers whose direction is zero are left out.

    Raises:
        CheckpointError: the file is not there, cut off, damaged or not such a file.
        InputError: another ending, or a vector of another model.

    Example:
        >>> path = vector.at(range(1, 30)).save("happy.gguf")
        >>> ji.steering.load(path, lm)
        SteeringVector(control vector at resid_post, layers 1-29)
    """
    source = Path(path).expanduser()
    if source.suffix not in (".safetensors", ".gguf"):
        raise InputError(f"A steering vector is a .safetensors or a .gguf file; got {source.name!r}.")
    if not source.is_file():
        raise CheckpointError(f"There is no file {source}.")
    try:
        if source.suffix == ".gguf":
            if lm is None:
                raise InputError(f"{source.name} is a control vector, which does not say how many layers its model has: give lm.")
            return _read_gguf(source, lm, force)
        vector = _read_safetensors(source)
    except OSError as error:
        raise CheckpointError(f"{source} cannot be read: {error.strerror or error}.") from None
    return vector if lm is None else vector.check(lm, force=force)


# ------------------------------------------------------------------------------------------------------- safetensors


def _write_safetensors(vector: SteeringVector, path: Path) -> None:
    arrays = {name: np.asarray(getattr(vector, name)) for name in ARRAYS}
    arrays = {name: array if array.dtype in CODES else array.astype(np.float32) for name, array in arrays.items()}
    about = {"site": vector.site, "layers": vector.layers, "depth": vector.depth, "how": vector.how}
    metadata = {"format": FORMAT, "version": VERSION, **{name: json.dumps(value) for name, value in about.items()}}
    write(path, {name: (array.dtype, array.shape) for name, array in arrays.items()}, arrays.__getitem__, metadata)


def _read_safetensors(path: Path) -> SteeringVector:
    source = SafetensorsSource([path])  # checks every claim of the header about sizes
    with path.open("rb") as file:
        told = json.loads(file.read(int.from_bytes(file.read(8), "little"))).get("__metadata__")
    if not isinstance(told, dict) or told.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a steering vector: its header does not say 'format': '{FORMAT}'.")
    if told.get("version") != VERSION:
        raise CheckpointError(f"{path} is of version {told.get('version')!r}; this version of jaxinterp reads {VERSION!r}.")
    if set(source.tensors) != set(ARRAYS):
        raise CheckpointError(f"{path} holds {', '.join(sorted(source.tensors)) or 'nothing'}; expected {', '.join(ARRAYS)}.")
    about = {name: _parsed(path, name, told.get(name)) for name in ("site", "layers", "depth", "how")}
    depth, layers, site = about["depth"], about["layers"], about["site"]
    if not _whole(depth) or not 1 <= depth <= MAX_DEPTH:
        raise CheckpointError(f"{path}: depth is {str(depth)[:40]}; expected a number of layers.")
    if not isinstance(layers, list) or not layers or not all(_whole(layer) and 0 <= layer < depth for layer in layers):
        raise CheckpointError(f"{path}: layers is {str(layers)[:40]}; expected one or more of 0 to {depth - 1}.")
    if not isinstance(site, str) or site not in SITES or not SITES[site].axes.startswith("LBP"):
        raise CheckpointError(f"{path}: site is {str(site)[:40]!r}, which is not one that a vector can steer.")
    how = about["how"]
    if not isinstance(how, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(x, str) for x in pair) for pair in how
    ):
        raise CheckpointError(f"{path}: 'how' is not a list of pairs of strings.")
    return _made(path, source, site, layers, depth, tuple((name, text) for name, text in how))


def _made(
    path: Path, source: SafetensorsSource, site: str, layers: list[int], depth: int, how: tuple[tuple[str, str], ...]
) -> SteeringVector:
    """The vector of a file whose metadata has been checked, with its arrays checked against that."""
    number, axes = len(layers), len(SITES[site].axes)
    if len(set(layers)) < number:
        raise CheckpointError(f"{path}: a layer stands twice in {ranges(layers)}.")
    shapes = {name: entry.shape for name, entry in source.tensors.items()}
    own = shapes["values"]
    # neurons of chosen experts have one axis more than the table says
    fits = own[:1] == (number,) and len(own) in (axes - 2, axes - 1) and all(own)
    if not fits or shapes["norms"] != (number,) or shapes["accuracy"] != (number,) or shapes["sketch"] not in ((0,), (SKETCH,)):
        raise CheckpointError(
            f"{path}: its arrays have shapes {', '.join(f'{name} {list(shapes[name])}' for name in ARRAYS)}; expected {number} layers at "
            f"{site!r} and a sketch of {SKETCH} or no numbers."
        )
    arrays = {name: np.array(source.read(name, 0, shapes[name][0])) for name in ARRAYS}
    _check_directions(path, arrays["values"], layers)
    return SteeringVector(**arrays, site=site, layers=tuple(layers), depth=depth, how=how)


def _parsed(path: Path, name: str, text: Any) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError, RecursionError):
        raise CheckpointError(f"{path}: its header has no {name!r} that can be read.") from None


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_directions(path: Path, values: np.ndarray, layers: list[int]) -> None:
    flat = values.reshape(len(layers), -1).astype(np.float64)
    bad = ~np.isfinite(flat).all(axis=1) | (np.abs(flat).max(axis=1) == 0)
    if bad.any():
        raise CheckpointError(f"{path}: the direction of layer {layers[int(bad.argmax())]} is zero or not finite.")


# -------------------------------------------------------------------------------------------------------------- GGUF


def _check_control(vector: SteeringVector) -> None:
    if vector.site != "resid_post":
        raise InputError(f"A GGUF control vector acts at resid_post; this vector acts at {vector.site!r}: save it as .safetensors.")
    if 0 in vector.layers:
        rest = "" if len(vector.layers) == 1 else f"save vector.at({_told(vector.layers)}), or "
        raise InputError(f"A GGUF control vector has no layer 0, which llama.cpp refuses: {rest}save it as .safetensors.")


def _told(layers: tuple[int, ...]) -> str:
    rest = sorted(layer for layer in layers if layer)
    return f"range({rest[0]}, {rest[-1] + 1})" if rest == list(range(rest[0], rest[-1] + 1)) else str(rest)


def _write_gguf(vector: SteeringVector, path: Path) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(path, CONTROL)
    try:
        writer.add_string(f"{CONTROL}.model_hint", dict(vector.how).get("model", "unknown"))
        writer.add_uint32(f"{CONTROL}.layer_count", len(vector.layers))
        values = np.asarray(vector.values, np.float32)
        for row in np.argsort(vector.layers):
            writer.add_tensor(f"direction.{vector.layers[row]}", np.ascontiguousarray(values[row]))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _read_gguf(path: Path, lm: LanguageModel, force: bool) -> SteeringVector:
    from jaxinterp.checkpoints.gguf import GgufSource

    source = GgufSource(path)  # checks the header, and that every tensor lies within the file
    kind, hint = source.fields.get("general.architecture"), source.fields.get(f"{CONTROL}.model_hint")
    if kind != CONTROL:
        raise CheckpointError(f"{path} is not a control vector: its general.architecture is {str(kind)[:40]!r}, expected {CONTROL!r}.")
    named = {}
    for name, entry in source.tensors.items():
        found = re.fullmatch(r"direction\.(0|[1-9]\d{0,5})", name)
        if not found or entry.dtype != "F32" or len(entry.shape) != 1:
            raise CheckpointError(
                f"{path}: tensor {name[:40]!r} ({entry.dtype}, {list(entry.shape)}) is not a float32 direction.LAYER [D]."
            )
        named[int(found[1])] = entry
    if not named:
        raise CheckpointError(f"{path} holds no direction.")
    width, depth = lm.config.d_model, lm.config.n_layers
    wrong = [layer for layer, entry in named.items() if layer >= depth or entry.shape != (width,)]
    if wrong:
        raise InputError(
            f"{path.name} has a direction of {named[wrong[0]].shape[0]} numbers for layer {wrong[0]}; this model has {depth} layers of "
            f"width {width}: it is for another model."
        )
    if not force and not _same_kind(str(hint), lm):
        raise InputError(
            f"{path.name} is for a model of kind {str(hint)[:40]!r}, this one is {model_hint(lm)!r}: use force=True to load it."
        )
    values = {layer: np.array(source.read(f"direction.{layer}", 0, width), np.float32) for layer in sorted(named)}
    values = {layer: value for layer, value in values.items() if value.any()}
    if not values:
        raise CheckpointError(f"{path}: every direction is zero.")
    layers = list(values)
    _check_directions(path, np.stack(list(values.values())), layers)
    unknown = np.full(len(layers), np.nan, np.float32)
    how = (("method", "control vector"), ("site", "resid_post"), ("file", path.name), ("model", str(hint)))
    empty = np.zeros(0, np.float32)
    return SteeringVector(np.stack(list(values.values())), unknown, unknown, empty, "resid_post", tuple(layers), depth, how)


def _same_kind(hint: str, lm: LanguageModel) -> bool:
    """Whether a file's hint, a name of transformers (repeng) or of llama.cpp, can mean this model; one that is not known can."""
    own, family = model_hint(lm), FAMILIES.get(hint)
    architecture = family.gguf.architecture if family is not None and family.gguf else READ_AS.get(hint, hint)
    return "unknown" in (own, hint) or own in (hint, architecture)
