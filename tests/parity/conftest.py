"""Collects what the parity tests measure, writes docs/parity.md and docs/families.md once every row was, and finds the real weights."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxinterp.checkpoints import fetch
from jaxinterp.checkpoints.cache import weights_folder
from jaxinterp.checkpoints.registry import entries
from tests.parity import families
from tests.parity.report import Findings, write
from tests.parity.table import ROWS


@pytest.fixture(scope="session")
def findings() -> Iterator[Findings]:
    """Filled by the tests; the document is written only when every row is within its bounds."""
    findings = Findings()
    yield findings
    if set(findings.rows) == set(ROWS):
        measured = [findings.rows[name] for name in ROWS]
        write(measured, findings.real_weights)
        families.write(measured)


@pytest.fixture(scope="session")
def smollm2_file() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct: golden numbers are of its quantised weights, not of the hub's originals."""
    name = "smollm2-135m-instruct"
    for source in entries()[name].sources:
        if isinstance(source, fetch.WheelFile):
            kept = weights_folder(name) / source.file
            found = kept if kept.exists() else fetch.installed(source)
            if found is not None:
                return found
    pytest.skip("the SmolLM2 file is not on this machine")
