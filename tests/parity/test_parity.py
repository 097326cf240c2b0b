"""Every site of every model against transformers, with torch: `make parity`."""

from pathlib import Path

import numpy as np
import pytest

from tests.parity import fixtures
from tests.parity.report import Findings
from tests.parity.table import ROWS

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(autouse=True)
def _torch() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")


@pytest.mark.parametrize("name", ROWS)
def test_every_site_and_gradient(name: str, findings: Findings, tmp_path: Path) -> None:
    from tests.parity.measure import measure

    errors, now, exact = measure(ROWS[name], tmp_path)
    assert not errors.over(), f"{name}: {'; '.join(errors.over())}"
    findings.rows[name] = errors
    committed = fixtures.load(name)
    assert (committed.config, committed.shapes, committed.gain_center) == (now.config, now.shapes, now.gain_center), (
        "run tests.parity.make_fixtures"
    )
    for stored, fresh, gradient in zip(committed.reference(), exact, (False, True), strict=True):
        for site, value in committed.cut(fresh, gradient=gradient).items():
            np.testing.assert_allclose(stored[site], value, rtol=1e-9, atol=1e-11, err_msg=f"{site}: run tests.parity.make_fixtures")


def test_every_fixture_has_a_row() -> None:
    assert set(fixtures.names()) == set(ROWS)


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2", "gemma3"])
def test_reference_does_not_depend_on_padding(name: str, tmp_path: Path) -> None:
    """Hooks, masks and positions of the harness itself: a padded batch equals its prompts one by one."""
    import dataclasses

    from tests.parity.measure import errors
    from tests.parity.reference import run_reference

    fixture = fixtures.load(name)
    fixture.write_folder(tmp_path)
    together = run_reference(ROWS[name], tmp_path, fixture.batch, "float64")
    alone = run_reference(dataclasses.replace(ROWS[name], alone=True), tmp_path, fixture.batch, "float64")
    for a, b, gradient in zip(together, alone, (False, True), strict=True):
        assert max(errors(a, b, fixture.batch, gradient=gradient).values()) < 1e-12
