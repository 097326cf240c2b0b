"""jaxinterp generate, on a tiny model from a folder."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.cli import generate as command
from jaxinterp.runs.generate import generate
from tests.cli.conftest import Outcome

Cli = Callable[..., Outcome]


def test_help_has_an_example(cli: Cli) -> None:
    outcome = cli("generate --help")
    assert outcome.code == 0 and " ".join(command.EXAMPLE.split()) in " ".join(outcome.out.split())
    assert "--json" in outcome.out and "--debug" in outcome.out


def test_it_prints_what_generate_writes(cli: Cli, folder: Path) -> None:
    lm = ji.load(folder).by_layer()
    found = generate(lm, "to the store", 6)
    shown = cli("generate -n 6 --json", folder, "to the store").json()
    assert (shown["text"], shown["ended"]) == (found.text[0], found.ended[0])
    assert [token["id"] for token in shown["tokens"]] == found.ids[0].tolist()
    np.testing.assert_allclose([token["log_probability"] for token in shown["tokens"]], found.log_probabilities[0], rtol=1e-5)
    assert cli("generate -n 6", folder, "to the store").out == f"{found.text[0]}\n"
    assert cli("generate -n 6 --stream", folder, "to the store").out == f"{found.text[0]}\n"
    warm = generate(lm, "to the store", 6, temperature=0.7, top_k=20, seed=3)
    assert cli("generate -n 6 --temperature 0.7 --top-k 20 --seed 3", folder, "to the store").out == f"{warm.text[0]}\n"


def test_a_chat_is_answered(cli: Cli, folder: Path, tmp_path: Path) -> None:
    lm = ji.load(folder)
    config = lm.config.replace(n_ctx=256)  # the template alone is longer than the tiny model's context
    folder = ji.save(ji.LanguageModel(lm.params, config, lm.tokenizer), tmp_path / "model")
    lm = ji.load(folder).by_layer()
    messages = [{"role": "system", "content": "Mary"}, {"role": "user", "content": "to"}]
    found = generate(lm, lm.chat(messages), 3)
    assert cli("generate -n 3 --chat --system Mary", folder, "to").out == f"{found.text[0]}\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("-n 3 --top-p 0", "top_p is 0; expected above 0 and at most 1"),
        ("--json --stream", "give one of them"),
        ("--system Mary", "give --chat too"),
        ("-n 9999", "this model's context is"),
    ],
)
def test_bad_options_give_one_sentence(cli: Cli, folder: Path, line: str, message: str) -> None:
    outcome = cli(f"generate {line}", folder, "to")
    assert outcome.code == 1 and message in outcome.err and outcome.err.count("\n") == 1
