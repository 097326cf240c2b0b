"""A tiny model in a folder, and a way to call the command line inside this process."""

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from jaxinterp.checkpoints.save import save
from jaxinterp.cli.main import main
from jaxinterp.model.language_model import LanguageModel
from tests import tiny

TOKENIZER = Path(__file__).parents[1] / "fixtures" / "tokenizers" / "byte_level"


class Outcome(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a byte-level tokenizer, as a folder."""
    from jaxinterp.checkpoints.tokenizer import tokenizer_from_folder

    tokenizer = tokenizer_from_folder(TOKENIZER)
    assert tokenizer is not None
    config = tiny.CONFIGS["qwen3"].replace(d_vocab=tokenizer.vocab_size)
    return save(LanguageModel(tiny.params(config), config, tokenizer), tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Calls `jaxinterp` with a line of arguments."""
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("NO_COLOR", "1")

    def call(line: str, *more: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["jaxinterp", *shlex.split(line), *map(str, more)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return Outcome(int(ended.value.code or 0), printed.out, printed.err)

    return call
