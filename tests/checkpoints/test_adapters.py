"""LoRA adapters as PEFT writes them: merged as PEFT merges them, and refused by name where something is not understood.

`make_adapters` made the committed ones, with the logits of PEFT's merged model.
"""

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxinterp as ji
from jaxinterp.errors import CheckpointError, InputError
from jaxinterp.methods.weights.lora import merge_lora
from jaxinterp.model.language_model import LanguageModel
from jaxinterp.model.tokens import Tokens
from tests import tiny
from tests.parity import fixtures, ours

FOLDER = Path(__file__).parent.parent / "fixtures" / "adapters"
BASES = {path.parent.name: json.loads(path.read_text())["base_model_name_or_path"] for path in FOLDER.glob("*/adapter_config.json")}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], LanguageModel]:
    """The models that the adapters stand beside."""
    return functools.cache(lambda name: ours.load_ours(fixtures.load(name).write_folder(tmp_path_factory.mktemp(name)), "float32"))


@functools.partial(jax.jit, static_argnames=("config",), compiler_options=ours.QUICK)
def logits(params: Any, tokens: Tokens, config: Any) -> Any:
    return ji.forward(params, tokens, config).padded_logits


@pytest.mark.parametrize("name", BASES)
def test_the_merged_model_is_the_one_that_peft_merges(name: str, bases: Any) -> None:
    lm, batch = bases(BASES[name]), fixtures.load(BASES[name]).batch
    tokens = Tokens.from_ids(batch.ids, batch.mask)
    wanted = load_file(FOLDER / name / "logits.safetensors")["logits"]
    plain, merged = (np.asarray(logits(each.params, tokens, config=lm.config)) for each in (lm, merge_lora(lm, FOLDER / name)))
    size = np.linalg.norm(wanted, axis=-1)
    assert (np.linalg.norm(plain[batch.mask] - wanted, axis=-1) / size).max() > 0.1
    assert (np.linalg.norm(merged[batch.mask] - wanted, axis=-1) / size).max() < 2e-5


def test_a_scale_of_zero_is_the_model_itself_and_others_lie_on_a_line(bases: Any) -> None:
    lm = bases("llama_gqa_biases")
    none, half, whole = (merge_lora(lm, FOLDER / "llama_everything", scale=scale).params for scale in (0.0, 0.5, 1.0))
    jax.tree.map(np.testing.assert_array_equal, none, lm.params)
    jax.tree.map(lambda a, b, c: np.testing.assert_allclose(a, (b + c) / 2, atol=1e-5), half, lm.params, whole)


def test_types_layouts_and_arrays_that_do_not_change_are_kept(bases: Any) -> None:
    lm = bases("gpt2")
    merged = merge_lora(lm, FOLDER / "gpt2")
    assert (
        merged.params["embed"]["W_E"] is lm.params["embed"]["W_E"]
        and merged.params["blocks"][0]["ln1"]["w"] is lm.params["blocks"][0]["ln1"]["w"]
    )
    by_layer = merge_lora(lm.by_layer(), FOLDER / "gpt2")
    assert isinstance(by_layer.params["blocks"][0], tuple)
    jax.tree.map(np.testing.assert_array_equal, by_layer.stacked().params, merged.params)
    narrow = lm.replace(params=jax.tree.map(lambda w: w.astype("bfloat16"), lm.params))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(merge_lora(narrow, FOLDER / "gpt2").params)} == {"bfloat16"}


def test_an_adapter_in_a_folder_of_its_name(tmp_path: Path, bases: Any) -> None:
    lm = bases("gpt2")
    shutil.copytree(FOLDER / "gpt2", tmp_path / "french")
    named, plain = merge_lora(lm, tmp_path, adapter="french"), merge_lora(lm, FOLDER / "gpt2")
    jax.tree.map(np.testing.assert_array_equal, named.params, plain.params)
    with pytest.raises(CheckpointError, match="name one of french by adapter="):
        merge_lora(lm, tmp_path)


def _field(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def _tensor(change: Callable[[dict[str, np.ndarray]], Any]) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        tensors = load_file(folder / "adapter_model.safetensors")
        change(tensors)
        save_file(tensors, folder / "adapter_model.safetensors")

    return changed


def _cut(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-64])


def _pickled(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


A = "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"
PROBLEMS: dict[str, Callable[[Path], Any]] = {
    "use_dora is True": _field(use_dora=True),
    "lora_bias is True": _field(lora_bias=True),
    r"target_parameters is \['mlp.experts'\]": _field(target_parameters=["mlp.experts"]),
    "something_new is 3": _field(something_new=3),
    "peft_type is 'IA3'": _field(peft_type="IA3"),
    "init_lora_weights is 'pissa', which changed": _field(init_lora_weights="pissa"),
    "r is None, expected a whole number": _field(r=None),
    r"alpha_pattern\['x'\] is -1, expected": _field(alpha_pattern={"x": -1}),
    "not a regular expression": _field(rank_pattern={"(": 1}),
    r"lora_A \[2, 20\] and lora_B \[60, 2\]; expected \[4, in\]": _field(r=4),
    "cut off": _cut,
    "is a pickle, which can run any code": _pickled,
    "holds no weights": lambda folder: (folder / "adapter_model.safetensors").unlink(),
    "expected adapter_config.json": lambda folder: (folder / "adapter_config.json").unlink(),
    "has lora_B; expected lora_A and lora_B": _tensor(lambda tensors: tensors.pop(A)),
    "not understood: other": _tensor(lambda tensors: tensors.update(other=np.zeros(3, np.float32))),
    "not understood: .*magnitude": _tensor(
        lambda tensors: tensors.update({A.replace("A.weight", "magnitude_vector"): np.ones(3, np.float32)})
    ),
    "does not have: .*c_fc2": _tensor(lambda tensors: [tensors.update({k.replace("c_fc", "c_fc2"): v}) for k, v in list(tensors.items())]),
    "not finite": _tensor(lambda tensors: tensors[A].fill(np.nan)),
    r"is \[19, 60\], and this model's is \[20, 60\]": _tensor(lambda tensors: tensors.update({A: tensors[A][:, 1:].copy()})),
    "also this model's unembedding": _tensor(
        lambda tensors: tensors.update({"base_model.model.transformer.wte.weight": np.zeros((29, 20), np.float32)})
    ),
    "holds no tensors": _tensor(lambda tensors: tensors.clear()),
}


@pytest.mark.parametrize("message", PROBLEMS)
def test_what_is_not_understood_is_refused_in_one_sentence(message: str, tmp_path: Path, bases: Any) -> None:
    shutil.copytree(FOLDER / "gpt2", tmp_path / "adapter")
    PROBLEMS[message](tmp_path / "adapter")
    with pytest.raises(CheckpointError, match=message) as caught:
        merge_lora(bases("gpt2"), tmp_path / "adapter")
    assert "\n" not in str(caught.value)


def test_models_that_no_family_describes_and_bad_scales_are_refused(bases: Any) -> None:
    config = tiny.CONFIGS["attention"]
    with pytest.raises(CheckpointError, match="of no family"):
        merge_lora(LanguageModel(params=tiny.params(config), config=config), FOLDER / "gpt2")
    with pytest.raises(InputError, match="scale is nan"):
        merge_lora(bases("gpt2"), FOLDER / "gpt2", scale=float("nan"))
