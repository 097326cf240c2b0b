"""Generation on every causal model of the parity table, in float64: with the cache and without, and beside transformers.

The rows need no torch; the last two tests do. Greedy tokens of SmolLM2 are compared in float32.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.model.position import BY_LENGTH
from jaxinterp.runs.generate import generate
from tests.parity import fixtures, ours
from tests.runs.test_generate import apart, cached
from tests.tiny import prompts

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]
ENCODERS = ("bert", "distilbert", "roberta")
ROWS = [name for name in fixtures.names() if not name.startswith(ENCODERS)]
NEW = 12


def causal(name: str, folder: Path) -> ji.LanguageModel:
    lm = ours.load_ours(fixtures.load(name).write_folder(folder), "float64")
    if not lm.config.causal or lm.config.unembed == "none":
        pytest.skip("it generates no text")
    return lm


@pytest.mark.parametrize("name", ROWS)
def test_the_cache_gives_what_a_run_of_the_whole_text_gives(name: str, tmp_path: Path) -> None:
    with jax.enable_x64(True):
        lm = causal(name, tmp_path)
        new = np.random.default_rng(1).integers(0, lm.config.d_vocab, (2, 7))
        exact, found = cached(lm.config, lm.params, prompts(lm.config, (6, 3), left=True), new, (dict,))
    assert apart(found, exact) < 1e-10


@pytest.mark.parametrize("name", ROWS)
def test_greedy_tokens_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    with jax.enable_x64(True):
        lm = causal(name, tmp_path)
        if any(setting.scaling and setting.scaling.kind in BY_LENGTH for setting in lm.config.rotary):
            pytest.skip("transformers changes its frequencies as the text grows; here the planned length fixes them")
        ids = np.asarray(prompts(lm.config, (6,)).ids)
        found = generate(lm, ids, NEW, stop_tokens=())
    # transformers' default for experts multiplies in bfloat16 and float32 only
    experts = {"experts_implementation": "eager"} if lm.config.experts else {}
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64, **experts).eval()
    np.testing.assert_array_equal(found.ids, greedy(model, ids, NEW))


def greedy(model: Any, ids: np.ndarray, new: int) -> np.ndarray:
    """New tokens by transformers, none of which ends the text."""
    import torch

    model.generation_config.eos_token_id = model.generation_config.pad_token_id = None
    given = torch.tensor(ids.astype(np.int64))
    with torch.inference_mode():
        made = model.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=new, do_sample=False)
    return made[:, ids.shape[1] :].numpy()


PROMPTS = (
    "When Mary and John went to the store, John gave a drink to", "The capital of France is", "def fibonacci(n):",
    "Once upon a time there was a small dragon who", "In 1969 the first people",
)  # fmt: skip


@pytest.mark.weights
def test_greedy_tokens_of_smollm2_are_those_of_transformers(smollm2: ji.LanguageModel, tmp_path: Path) -> None:
    """Five prompts of 64 tokens, together in a batch and from weights a layer at a time, in float32."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(ji.save(smollm2, tmp_path / "model"), dtype=torch.float32).eval()
    theirs = [greedy(model, np.asarray(smollm2.to_tokens(text).ids), 64)[0] for text in PROMPTS]
    np.testing.assert_array_equal(generate(smollm2, list(PROMPTS), 64, stop_tokens=()).ids, theirs)
    alone = smollm2.by_layer()
    for text, wanted in zip(PROMPTS, theirs, strict=True):
        np.testing.assert_array_equal(generate(alone, text, 64, stop_tokens=()).ids[0], wanted)
