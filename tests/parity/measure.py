"""Ours against the reference for one row of the table: the error at every site, values and gradients, in both precisions."""

import dataclasses
from pathlib import Path

import jax

from jaxinterp.model.sites import site_names
from tests.parity import fixtures, ours
from tests.parity.compare import at_tokens, error
from tests.parity.inputs import Batch
from tests.parity.table import Row

FLOAT64_BOUND = 1e-10
FLOAT32_BOUND = 5e-5
BOUNDS = {"float64": FLOAT64_BOUND, "float32": FLOAT32_BOUND}


@dataclasses.dataclass(frozen=True)
class Errors:
    """Errors of one row.

    Attributes:
        row: of the table.
        values: by dtype and site.
        gradients: of the metric, by dtype and site.
        plain: how far a plain `.double()` model of transformers is from the reference without float32 inside, by site.
    """

    row: Row
    values: dict[str, dict[str, float]]
    gradients: dict[str, dict[str, float]]
    plain: dict[str, float]

    def over(self) -> list[str]:
        """What exceeds its bound, in words."""
        return [
            f"{kind} of {site} in {dtype}: {size:.1e} > {BOUNDS[dtype]:.0e}"
            for kind, table in (("value", self.values), ("gradient", self.gradients))
            for dtype, sites in table.items()
            for site, size in sites.items()
            if not size <= BOUNDS[dtype]
        ]


def errors(mine: ours.Arrays, reference: ours.Arrays, batch: Batch, *, gradient: bool) -> dict[str, float]:
    """The error at each site over all real tokens."""
    cut = {
        site: [at_tokens(site, side[site], batch.mask, batch.tokens, gradient=gradient) for side in (mine, reference)] for site in reference
    }
    return {site: error(*pair, gradient=gradient) for site, pair in cut.items()}


def measure(row: Row, folder: Path) -> tuple[Errors, fixtures.Fixture, tuple[ours.Arrays, ours.Arrays]]:
    """Runs both sides on one folder; also gives what a fixture of this row holds now."""
    from tests.parity.make_fixtures import fixture_of  # torch is there only where parity is measured
    from tests.parity.reference import run_reference

    fixture = fixture_of(row)
    batch = fixture.batch
    fixture.write_folder(folder)
    exact = run_reference(row, folder, batch, "float64")
    narrow = run_reference(row, folder, batch, "float32")
    plain = run_reference(row, folder, batch, "plain float64")[0]
    values, gradients = {}, {}
    for dtype, reference in (("float64", exact), ("float32", narrow)):
        with jax.enable_x64(dtype == "float64"):
            lm = ours.load_ours(folder, dtype)
            if set(site_names(lm.config)) != set(reference[0]):
                raise AssertionError(f"{row.name}: sites of one side only: {sorted(set(site_names(lm.config)) ^ set(reference[0]))}")
            values[dtype] = errors(ours.values(lm, batch), reference[0], batch, gradient=False)
            gradients[dtype] = errors(ours.values_and_gradients(lm, batch)[1], reference[1], batch, gradient=True)
    return Errors(row, values, gradients, errors(plain, exact[0], batch, gradient=False)), fixture, exact
