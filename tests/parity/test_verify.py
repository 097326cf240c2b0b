"""The verifier against transformers itself: clean models are clean, and a model that we hold wrongly is found where it is wrong."""

from pathlib import Path

import jax
import numpy as np
import pytest

import jaxinterp as ji
from tests.parity import fixtures

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(autouse=True)
def _torch() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")


@pytest.mark.parametrize("name", ["bert_model", "phi3", "mixtral", "gpt2"])
def test_a_clean_folder_is_clean(name: str, tmp_path: Path) -> None:
    verdict = ji.verify(str(fixtures.load(name).write_folder(tmp_path / "m")), torch=True)
    assert verdict.ok, verdict.first
    compared = {site.site for site in verdict.sites}
    assert {"resid_pre", "resid_post", "q", "k", "v", "pattern", "pooled" if name == "bert_model" else "logits"} <= compared
    assert name == "mixtral" or {"mlp_pre", "mlp_post"} <= compared
    assert {site.site for site in verdict.sites if site.kind == "gradient"} >= {"resid_pre", "q", "k", "v"}


def test_what_we_hold_wrongly_is_found_where_it_acts(tmp_path: Path) -> None:
    folder = fixtures.load("llama").write_folder(tmp_path / "m")
    lm = ji.load(folder)
    (stack,) = lm.params["blocks"]
    swapped = stack | {"mlp": stack["mlp"] | {"W_gate": stack["mlp"]["W_in"], "W_in": stack["mlp"]["W_gate"]}}
    wrong = lm.replace(params=lm.params | {"blocks": (swapped,)})
    verdict = ji.verify(wrong, reference=str(folder), torch=True)
    assert not verdict.ok and verdict.first.startswith("mlp_pre of layer 0")
    assert ji.verify(wrong, torch=True).ok, "what transformers makes of the saved model is the same swapped model"


def test_rounding_to_bfloat16_is_found(tmp_path: Path) -> None:
    folder = fixtures.load("gpt_neox").write_folder(tmp_path / "m")
    lm = ji.load(folder)
    rounded = lm.replace(params=jax.tree.map(lambda w: np.asarray(w.astype("bfloat16").astype("float32")), lm.params))
    assert ji.verify(rounded, reference=str(folder), torch=True).first.startswith("embed")
