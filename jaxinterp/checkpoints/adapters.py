"""LoRA adapters as PEFT writes them: a folder's low-rank updates, by tensor, and where those stand in our parameters.

    W' = W + s B A,   s = alpha / r   (rank-stabilised: alpha / sqrt(r))

`read_adapter` reads adapter_config.json and adapter_model.safetensors: every field and every tensor is understood or refused by
name. `placed` finds the family of the model, whose key map says which of our parameters each tensor fills, and in which layout.
After Hu et al. 2021 (arXiv:2106.09685) and, for the rank-stabilised scale, Kalajdzievski 2023 (arXiv:2312.03732).
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxinterp.checkpoints import mapping
from jaxinterp.checkpoints.families import FAMILIES
from jaxinterp.checkpoints.families.family import Family
from jaxinterp.checkpoints.fields import Fields
from jaxinterp.checkpoints.layout import Layout, sizes_of
from jaxinterp.checkpoints.mapping import Leaf
from jaxinterp.checkpoints.own import read_json
from jaxinterp.checkpoints.safetensors import SafetensorsSource
from jaxinterp.errors import CheckpointError
from jaxinterp.model.config import TransformerConfig
from jaxinterp.model.parameters import parameter_shapes

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
SHOWN = 8

DESCRIBES = frozenset({
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying", "eva_config",
    "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform", "loftq_config",
    "lora_alpha", "lora_dropout", "megatron_core", "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r",
    "rank_pattern", "revision", "runtime_config", "target_modules", "task_type", "use_rslora",
})  # fmt: skip
"""Fields that are read, or that say how an adapter was trained or to which modules it belongs: the tensors' names say that too."""

KEEPS_WEIGHTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of init_lora_weights that leave the model's own weights as they were; with others (PiSSA, OLoRA, LoftQ) those were changed."""


@dataclasses.dataclass(frozen=True)
class Update:
    """What an adapter does to one tensor of its model.

    Attributes:
        name: of the tensor in the model's own files.
        arrays: (A [r in], B [out r]) of a low-rank update, or (values,) of a tensor that is replaced whole.
        scale: the factor on B A.
    """

    name: str
    arrays: tuple[np.ndarray, ...]
    scale: float = 1.0

    @property
    def whole(self) -> bool:
        """Whether the tensor is replaced."""
        return len(self.arrays) == 1

    def shape(self, layout: Layout) -> tuple[int, ...]:
        """Of the tensor in a file of this layout."""
        if self.whole:
            return self.arrays[0].shape
        shape = (self.arrays[1].shape[0], self.arrays[0].shape[1])
        return shape[::-1] if _input_first(layout) else shape

    def values(self, layout: Layout) -> np.ndarray:
        """What is added to the tensor, or its new values, in the file's layout."""
        if self.whole:
            return self.arrays[0]
        down, up = self.arrays
        product = self.scale * (up @ down)
        return product.T if _input_first(layout) else product


def _input_first(layout: Layout) -> bool:
    """Whether a file stores a matrix [in, out], as our parameters are: embeddings, and GPT-2's (PEFT's fan_in_fan_out)."""
    return (layout.file[0].before or layout.file[0].parts[0])[0] == layout.ours[0][0]


# ------------------------------------------------------------------------------------------------------------ reading


def read_adapter(folder: Path, name: str | None = None) -> list[Update]:
    """The updates of an adapter's folder.

    Args:
        folder: as PEFT's `save_pretrained` writes it.
        name: of an adapter other than PEFT's "default", which stands in a folder of that name inside.

    Raises:
        CheckpointError: files that are missing, cut or pickled, another kind of adapter, or fields or tensors that are not understood.
    """
    folder = folder if name is None else folder / name
    if not (folder / CONFIG).is_file():
        inside = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}"))
        hint = f" It holds adapters in folders of their own: name one of {', '.join(inside)} by adapter=." if inside else ""
        raise CheckpointError(f"{folder} is not a LoRA adapter: expected {CONFIG} and {WEIGHTS}.{hint}")
    config = read_json(folder / CONFIG)
    _check_config(config, folder / CONFIG)
    if not (folder / WEIGHTS).is_file():
        if (folder / PICKLE).exists():
            raise CheckpointError(
                f"{folder / PICKLE} is a pickle, which can run any code when it is opened, so it is never read: load it once with PEFT and "
                "save it by save_pretrained(), which writes safetensors."
            )
        raise CheckpointError(f"{folder} holds no weights: expected {WEIGHTS}.")
    return _updates(config, SafetensorsSource([folder / WEIGHTS]), folder / WEIGHTS)


def _check_config(config: Mapping[str, Any], file: Path) -> None:
    """Refuse what is not plain LoRA.

    Raises:
        CheckpointError: naming every field that is not understood.
    """
    if config.get("peft_type") != "LORA":
        raise CheckpointError(f"{file}: peft_type is {config.get('peft_type')!r}; only 'LORA' adapters can be merged here.")
    problems = [f"{name} is {value!r}" for name, value in config.items() if value and name not in DESCRIBES]
    if config.get("init_lora_weights", True) not in KEEPS_WEIGHTS:
        problems.append(
            f"init_lora_weights is {config['init_lora_weights']!r}, which changed the model's own weights before it was trained"
        )
    numbers = {name: config.get(name) for name in ("r", "lora_alpha")}
    for pattern in ("rank_pattern", "alpha_pattern"):
        entries = config.get(pattern) or {}
        numbers |= {f"{pattern}[{key!r}]": value for key, value in entries.items()} if isinstance(entries, dict) else {pattern: entries}
    for name, value in numbers.items():
        kind = int if name.startswith("r") else int | float
        if not isinstance(value, kind) or isinstance(value, bool) or not 0 < value < math.inf:
            problems.append(f"{name} is {value!r}, expected a {'whole ' if kind is int else ''}number above 0")
    if problems:
        raise CheckpointError(f"{file} cannot be merged: {'; '.join(problems)}.")


def _updates(config: Mapping[str, Any], source: SafetensorsSource, file: Path) -> list[Update]:
    """Every tensor of the file as part of an update."""
    pairs: dict[str, dict[str, np.ndarray]] = {}
    updates, strange = [], []
    for key, entry in source.tensors.items():
        module, _, kind = key.removeprefix(PREFIX).partition(".lora_")
        if not key.startswith(PREFIX) or kind not in ("", "A.weight", "B.weight", "embedding_A", "embedding_B"):
            strange.append(key)
            continue
        array = np.asarray(source.read(key, 0, entry.shape[0] if entry.shape else 0))
        array = array.astype(np.promote_types(np.float32, array.dtype))
        if not np.isfinite(array).all():
            raise CheckpointError(f"{file}: {key} holds numbers that are not finite.")
        if kind:
            pairs.setdefault(module, {})[kind.removesuffix(".weight")] = array
        else:
            updates.append(Update(re.sub(r"\.(base_layer|modules_to_save)(?=\.)", "", module), (array,)))
    if strange:
        raise CheckpointError(f"{file} holds tensors that are not understood: {_some(strange)}.")
    updates += [_low_rank(module, parts, config, file) for module, parts in pairs.items()]
    if not updates:
        raise CheckpointError(f"{file} holds no tensors.")
    return updates


def _low_rank(module: str, parts: Mapping[str, np.ndarray], config: Mapping[str, Any], file: Path) -> Update:
    """The update of one module from its two matrices."""
    embedding = "embedding_A" in parts or "embedding_B" in parts
    names = ("embedding_A", "embedding_B") if embedding else ("A", "B")
    if set(parts) != set(names):
        raise CheckpointError(
            f"{file}: {PREFIX}{module} has lora_{' and lora_'.join(parts)}; expected lora_{names[0]} and lora_{names[1]}."
        )
    rank = _of_module(config.get("rank_pattern") or {}, module, config["r"])
    alpha = _of_module(config.get("alpha_pattern") or {}, module, config["lora_alpha"])
    down, up = parts[names[0]], parts[names[1]]
    if down.ndim != 2 or up.ndim != 2 or down.shape[0] != rank or up.shape[1] != rank:
        raise CheckpointError(
            f"{file}: {PREFIX}{module} has lora_A {list(down.shape)} and lora_B {list(up.shape)}; expected [{rank}, in] and [out, {rank}], "
            f"of the rank that {CONFIG} states."
        )
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return Update(f"{module}.weight", (down, up), scale)


def _of_module(pattern: Mapping[str, Any], module: str, default: Any) -> Any:
    """The entry of the first key, a regular expression, that matches the end of a module's name, as PEFT reads it."""
    try:
        return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", module)), default)
    except re.error as error:
        raise CheckpointError(f"{CONFIG}: a key of rank_pattern or alpha_pattern is not a regular expression: {error}.") from None


# ------------------------------------------------------------------------------------------------------------ placing


def placed(updates: list[Update], config: TransformerConfig, dtype: np.dtype) -> dict[str, list[tuple[Leaf, int, Update]]]:
    """For each parameter that changes, by path: the leaf's plan, the number of the tensor among the leaf's, and its update.

    Args:
        updates: of `read_adapter`.
        config: of the model.
        dtype: of its weights.

    Raises:
        CheckpointError: a model of no family, tensors that it does not have, or of another shape.
    """
    families = list(_families(config, dtype))
    if not families:
        raise CheckpointError(
            "This model's config is that of no family of checkpoints, so an adapter's names mean nothing here: merge the adapter before "
            "changing the model, or add its matrices by ji.weights.low_rank."
        )
    every = [_writers(family, config, updates) for family in families]
    # families of one config differ in names (Phi-3's fused projections and Llama's): the one that knows the most of them is meant
    writers = max(every, key=lambda writers: sum(update.name in writers for update in updates))
    unknown = [update.name for update in updates if update.name not in writers]
    if unknown:
        raise CheckpointError(f"The adapter changes tensors that this model does not have: {_some(unknown)}.")
    out: dict[str, list[tuple[Leaf, int, Update]]] = {}
    for update in updates:
        for leaf, place in writers[update.name]:
            shape = update.shape(leaf.layout)
            if shape != leaf.file_shape:
                raise CheckpointError(
                    f"The adapter's {update.name} is {list(shape)}, and this model's is {list(leaf.file_shape)}: it was trained beside "
                    "another model."
                )
            if leaf.path == "embed.W_E" and config.unembed == "tied":
                raise CheckpointError(
                    f"The adapter changes {update.name}, which is also this model's unembedding: whether that changes too depends on "
                    "how it was trained, so merge it where it was."
                )
            out.setdefault(leaf.path, []).append((leaf, place, update))
    return out


def _families(config: TransformerConfig, dtype: np.dtype) -> Iterator[Family]:
    """Those whose config.json can say exactly what a config does."""
    for family in FAMILIES.values():
        fields = family.write(config)
        if fields is None:
            continue
        try:
            if family.read(Fields(fields, "config.json"), dtype) == config:
                yield family
        except CheckpointError:
            continue


def _writers(family: Family, config: TransformerConfig, updates: list[Update]) -> dict[str, list[tuple[Leaf, int]]]:
    """The leaves behind each tensor, under the names of the whole model and of the bare one."""
    names = [name for update in updates for name in (update.name, family.prefix + update.name)]
    leaves = mapping.plan(parameter_shapes(config, dtype=np.float32), family.table_of(config), sizes_of(config), names)
    writers = mapping.file_tensors(leaves)
    return {name.removeprefix(family.prefix): group for name, group in writers.items()} | writers


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
