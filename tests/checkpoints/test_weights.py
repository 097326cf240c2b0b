"""The real SmolLM2, where the cache or an installed package holds it: the parameters, and what it predicts."""

import jax
import numpy as np
import pytest

from jaxinterp.checkpoints import registry
from jaxinterp.checkpoints.load import load
from jaxinterp.model.language_model import LanguageModel
from jaxinterp.model.transformer import forward

NAME = "smollm2-135m-instruct"
PROMPT = "When Mary and John went to the store, {} gave a drink to"

# of the same file, as transformers 5.23 reads it
EMBED_SUM = -15353.04449415207
QUERY_SUM = 627.0135955810547

pytestmark = pytest.mark.weights


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    found = registry.local(NAME)
    if found is None or found.suffix != ".gguf":
        pytest.skip("the SmolLM2 GGUF file is not on this machine")
    return load(found)


def test_the_parameters_are_counted(lm: LanguageModel):
    assert sum(leaf.size for leaf in jax.tree.leaves(lm.params)) == registry.entries()[NAME].parameters == 134_515_008


def test_sums_of_the_weights(lm: LanguageModel):
    """Row by row equal to transformers; the second sum depends on the order of the features within a head."""
    attn = lm.params["blocks"][0]["attn"]
    assert float(np.asarray(lm.params["embed"]["W_E"], np.float64).sum()) == pytest.approx(EMBED_SUM, rel=1e-12)
    weights = np.arange(lm.config.d_head)
    q = np.asarray(attn["W_Q"][0], np.float64)
    assert float(np.einsum("DHE,E->", q, weights)) == pytest.approx(QUERY_SUM, rel=1e-9)


def test_the_indirect_object(lm: LanguageModel):
    tokens = lm.to_tokens([PROMPT.format("John"), PROMPT.format("Mary")])
    logits = forward(lm.params, tokens, lm.config).logits[:, -1]
    mary, john = (lm.tokenizer.token_id(token) for token in ("\u0120Mary", "\u0120John"))
    difference = np.asarray(logits[:, mary] - logits[:, john])
    np.testing.assert_allclose(difference, [6.1196, -5.4853], atol=1e-3)
