"""The verifier: clean verdicts on clean models, and on wrong ones the first thing that is wrong. No torch."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxinterp as ji
from jaxinterp.checkpoints.save import save
from jaxinterp.checkpoints.tokenizer import tokenizer_from_folder
from jaxinterp.runs.verify import Verdict, identities
from tests import tiny
from tests.parity import fixtures

TOKENIZER = Path(__file__).parents[1] / "fixtures" / "tokenizers" / "byte_level"


def folder(name: str, place: Path) -> Path:
    return fixtures.load(name).write_folder(place)


def verify(model: Any, reference: Any = None) -> Verdict:
    return ji.verify(model, reference=reference, torch=False)


def changed(source: Path, target: Path, change: Callable[[dict[str, np.ndarray]], None]) -> Path:
    """A copy of a folder with other tensors."""
    tensors = load_file(source / "model.safetensors")
    change(tensors)
    target.mkdir()
    (target / "config.json").write_text((source / "config.json").read_text())
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def swap(first: str, second: str) -> Callable[[dict[str, np.ndarray]], None]:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors[first], tensors[second] = tensors[second], tensors[first]

    return change


@pytest.mark.parametrize("name", ["llama", "bert_model"])
def test_a_clean_model_has_a_clean_verdict(name: str, tmp_path: Path) -> None:
    verdict = verify(str(folder(name, tmp_path / "m")))
    assert verdict.ok and verdict.first == "" and not verdict.sites
    assert "torch" in verdict.reference
    checked = {check.name for check in verdict.checks if check.measured is not None}
    assert {"finite outputs", "residual sums", "layers follow", "heads add up", "pattern rows", "ids of padding", "padding left"} <= checked
    assert {"edits are live", "causality" if name == "llama" else "attention both ways"} <= checked
    assert json.loads(json.dumps(verdict.to_dict()))["ok"] is True


@pytest.mark.parametrize(
    ("first", "second", "found"),
    [
        ("layers.1.mlp.gate_proj", "layers.1.mlp.up_proj", "mlp_pre of layer 1, which mlp.W_gate makes"),
        ("layers.0.self_attn.q_proj", "layers.2.self_attn.q_proj", "q of layer 0, which attn.W_Q makes"),
        ("layers.1.self_attn.v_proj", "layers.2.self_attn.v_proj", "v of layer 1, which attn.W_V makes"),
        ("layers.2.mlp.down_proj", "layers.1.mlp.down_proj", "mlp_out of layer 1, which mlp.W_out makes"),
    ],
)
def test_of_two_swapped_matrices_the_first_site_is_named(first: str, second: str, found: str, tmp_path: Path) -> None:
    right = folder("llama", tmp_path / "right")
    wrong = changed(right, tmp_path / "wrong", swap(f"model.{first}.weight", f"model.{second}.weight"))
    verdict = verify(str(wrong), str(right))
    assert not verdict.ok and verdict.first.startswith(found)
    assert all(check.ok for check in verdict.checks), "a swapped matrix breaks no identity"


def test_an_error_of_2e_4_on_every_token_but_the_first_fails(tmp_path: Path) -> None:
    """Token 0's norm is a thousand times the others': over all tokens at once the error would be 1e-6."""

    def loud(tensors: dict[str, np.ndarray]) -> None:
        tensors["transformer.wpe.weight"][0] *= 1000

    right = ji.load(changed(folder("gpt2", tmp_path / "plain"), tmp_path / "right", loud))
    rows = np.asarray(right.params["embed"]["W_pos"])
    noise = np.random.default_rng(0).normal(size=rows[1:].shape)
    noise *= 2e-4 * np.linalg.norm(rows[1:], axis=-1, keepdims=True) / np.linalg.norm(noise, axis=-1, keepdims=True)
    off = jnp.asarray(rows).at[1:].add(noise.astype(np.float32))
    wrong = right.replace(params=right.params | {"embed": right.params["embed"] | {"W_pos": off}})
    verdict = verify(wrong, right)
    assert not verdict.ok and verdict.first.startswith("pos_embed")
    at_embedding = next(site for site in verdict.sites if site.site == "pos_embed")
    assert at_embedding.error == pytest.approx(2e-4, rel=0.01) and at_embedding.position > 0
    assert np.linalg.norm(off - rows) / np.linalg.norm(rows) < 2e-6
    assert verify(right, right).ok


def test_what_is_not_finite_and_what_is_dead_or_sees_ahead_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = ji.load(folder("llama_mqa_one_layer", tmp_path / "m"))
    broken = lm.replace(params=jax.tree.map(lambda w: w * np.nan, lm.params))
    assert verify(broken).first.startswith("finite outputs")

    plain = identities.final
    monkeypatch.setattr(identities, "final", lambda *run: (out := plain(*run)) + 1e-3 * out.mean(axis=1, keepdims=True))
    monkeypatch.setattr(
        identities,
        "forward",
        lambda *run, edits=(), **kw: ji.forward(*run, edits=[e for e in edits if e.site not in ("scores", "v")], **kw),
    )
    jax.clear_caches()
    failed = {check.name: check.note for check in verify(lm).checks if not check.ok}
    assert set(failed) == {"causality", "ids of padding", "padding left", "edits are live"}
    assert failed["edits are live"] == "not live: v, scores"
    jax.clear_caches()


def test_load_checks_the_cheap_part_when_asked(tmp_path: Path) -> None:
    right = folder("llama_mqa_one_layer", tmp_path / "right")
    assert ji.load(right, check=True).config == ji.load(right).config

    def spoil(tensors: dict[str, np.ndarray]) -> None:
        tensors["model.norm.weight"][0] = np.nan

    with pytest.raises(ji.CheckpointError, match="not finite numbers"):
        ji.load(changed(right, tmp_path / "nan", spoil), check=True)
    tokenizer = tokenizer_from_folder(TOKENIZER)
    assert tokenizer is not None
    config = tiny.CONFIGS["qwen3"].replace(d_vocab=tokenizer.vocab_size)
    untrained = save(ji.LanguageModel(tiny.params(config), config, tokenizer), tmp_path / "untrained")
    with pytest.raises(ji.CheckpointError, match=r"loss of \d+\.\d+ nats a token, where chance is"):
        ji.load(untrained, check=True)


def test_a_reference_of_another_architecture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ji.CheckpointError, match="another architecture"):
        verify(str(folder("llama_mqa_one_layer", tmp_path / "a")), str(folder("llama", tmp_path / "b")))
