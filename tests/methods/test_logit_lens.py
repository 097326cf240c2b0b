"""The logit lens against the model resumed at its end, in any chunks of the vocabulary."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.methods.lenses import LogitLens, logit_lens
from tests.programs import compiled
from tests.tiny import CONFIGS, params, prompts

WORDS = [3, 9]


def model(name: str) -> ji.LanguageModel:
    return ji.LanguageModel(params(CONFIGS[name]), CONFIGS[name])


def close(got: Any, want: Any) -> None:
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=5e-5)


@pytest.mark.parametrize(("name", "chunk"), [("gemma", 16), ("masked", 50)])
def test_it_is_the_model_resumed_at_its_end(name: str, chunk: int) -> None:
    """Soft cap, dense layer, projection and biases included; the last chunk overlaps the one before it."""
    lm, config = model(name), CONFIGS[name]
    tokens = prompts(config, (5, 7))
    site = "mlp_out" if name == "masked" else "resid_post"
    trace = ji.run(lm, tokens, sites=(site, "resid_post"))
    lens = logit_lens(lm, trace, site, tokens=WORDS, k=4, chunk=chunk)
    assert [name for name, _ in lens.axes] == ["layer", "position"] and lens.logits.shape == (2, 3, 7, 2)
    end = jax.jit(lambda x: ji.forward(lm.params, tokens, config, start=(config.n_layers, x)).logits)
    log_final = jax.nn.log_softmax(np.asarray(trace.logits, np.float32))
    real = np.asarray(tokens.mask)
    for layer in range(config.n_layers):
        logits = np.asarray(end(trace[site][layer]))
        log_lens = np.asarray(jax.nn.log_softmax(logits))
        found = {name: getattr(lens, name)[:, layer][real] for name in ("entropy", "kl", "logits", "log_probabilities", "ranks", "top_ids")}
        close(found["entropy"], -(np.exp(log_lens) * log_lens).sum(axis=-1)[real])
        close(found["kl"], (np.exp(log_final) * (log_final - log_lens)).sum(axis=-1)[real])
        close(found["logits"], logits[..., WORDS][real])
        close(found["log_probabilities"], log_lens[..., WORDS][real])
        order = np.argsort(-logits, axis=-1, kind="stable")[..., :4]
        np.testing.assert_array_equal(found["top_ids"], order[real])
        np.testing.assert_array_equal(found["ranks"], (logits[..., None] > logits[..., None, WORDS]).sum(axis=-2)[real])
        close(lens.top_probabilities[:, layer][real], np.exp(np.take_along_axis(log_lens, order, axis=-1))[real])
    if site == "resid_post":
        close(lens.kl[:, -1][real], 0)
    assert (
        np.isnan(lens.entropy[0, :, 5:]).all()
        and (lens.top_ids[0, :, 5:] == -1).all()
        and (lens.ranks[~real[:, None].repeat(3, 1)] == -1).all()
    )


def test_prompts_give_what_a_trace_gives_at_any_positions_and_layers() -> None:
    lm = model("llama")
    tokens = prompts(lm.config, (5, 7))
    trace = ji.run(lm, tokens, sites=("resid_mid", "head_out", "resid_post"))
    for site, position, layers in (("resid_mid", [[0, 1], [3, 6]], [2, 0]), ("head_out", -1, None)):
        of_prompts, of_trace = (
            logit_lens(lm, given, site, position=position, tokens=[[3], [4]], layers=layers) for given in (tokens, trace)
        )
        assert of_prompts.axes == of_trace.axes
        for name in ("entropy", "kl", "logits", "top_probabilities"):
            close(getattr(of_prompts, name), getattr(of_trace, name))
    assert of_prompts.entropy.shape == (2, 3, 4) and [name for name, _ in of_prompts.axes] == ["layer", "head"]
    last = logit_lens(lm, trace, position=-1, tokens=[[3], [4]])
    close(last.probabilities[:, -1, 0], ji.metrics.probability([3, 4])(trace))
    np.testing.assert_array_equal(last.ranks[:, -1, 0], ji.metrics.rank([3, 4])(trace))
    alone = logit_lens(lm, tokens, "embed", position=1)
    assert alone.axes == () and alone.entropy.shape == (2,) and alone.ids.shape == (2, 0)
    with compiled() as programs:
        logit_lens(lm, prompts(lm.config, (6, 7), seed=4), "resid_mid", position=[[2, 1], [0, 5]], layers=[0, 1], tokens=[[7], [8]])
    assert not programs


def test_the_result_saves_and_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lm = model("llama")
    tokens = prompts(lm.config, (5, 7))
    for position in (None, -1):
        lens = logit_lens(lm, tokens, position=position, tokens=WORDS)
        assert isinstance(jax.tree.map(lambda x: x, lens), LogitLens) and "resid_post" in repr(lens)
        lens.save(tmp_path / "lens.safetensors")
        lens.save(tmp_path / "lens.html")
        lens.show()
        shown = capsys.readouterr().out
        assert "The likeliest tokens" in shown and "The chosen tokens" in shown
        likely, chosen = lens.tables()
        place = (0, slice(None), 4) if position is None else 0  # the first prompt's last token
        assert list(likely.labels["1st"]) == [str(token) for token in lens.top_ids[place][..., 0]]
        assert list(chosen.labels["rank of 3"]) == [str(rank) for rank in lens.ranks[place][..., 0]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda lm, t: logit_lens(lm, t, "z"), "axes L B P H E; expected a site with an axis D"),
        (lambda lm, t: logit_lens(lm, t, "ln_final"), "before the final norm"),
        (lambda lm, t: logit_lens(lm, t, layers=[3]), "at layers 0 to 2"),
        (lambda lm, t: logit_lens(lm, t, "embed", layers=[0]), "has no layers"),
        (lambda lm, t: logit_lens(lm, t, position=7), "out of range for prompt 0"),
        (lambda lm, t: logit_lens(lm, t, tokens=[50]), "out of range"),
        (lambda lm, t: logit_lens(lm, t, tokens=[[1], [2], [3]]), r"shape \[3, 1\]"),
        (lambda lm, t: logit_lens(lm, t, k=51), "k from 1 to 50"),
        (lambda lm, t: logit_lens(lm, ji.run(lm, t, sites={"attn_out": ji.at(position=-1)}), "attn_out"), "lacks attn_out, resid_post"),
        (lambda lm, t: logit_lens(lm, ji.run(lm, t, sites=("resid_post",)), edits=ji.edits.zero("z")), "has been run already"),
    ],
)
def test_what_cannot_be_read_is_refused(call: Any, message: str) -> None:
    lm = model("llama")
    with pytest.raises(ji.InputError, match=message):
        call(lm, prompts(lm.config, (7, 7)))


@pytest.mark.weights
def test_smollm2_finds_the_name_in_its_last_layers(smollm2: Any) -> None:
    prompt = "When Mary and John went to the store, John gave a drink to"
    lens = logit_lens(smollm2, prompt, tokens=[" Mary", " John"], position=-1)
    assert lens.logits[0, -1, 0] - lens.logits[0, -1, 1] == pytest.approx(6.1196, abs=1e-3)
    assert lens.string(int(lens.top_ids[0, -1, 0])).strip() == "Mary" and lens.ranks[0, -1, 0] == 0 and lens.ranks[0, 0, 0] > 100
    assert lens.kl[0, -1] == pytest.approx(0, abs=1e-5) and (lens.kl[0, :23] > 10).all()
