"""Makes the committed fixtures: `python -m tests.parity.make_fixtures [ROW ...]`, where torch and transformers are installed."""

import sys
import tempfile
from pathlib import Path

import torch
import transformers

from tests.parity.fixtures import FOLDER, Fixture
from tests.parity.reference import describe, run_reference
from tests.parity.table import FAMILIES, ROWS, Row


def fixture_of(row: Row) -> Fixture:
    """What rebuilds the model of a row."""
    config, shapes = describe(row)
    versions = {"transformers": transformers.__version__, "torch": torch.__version__.split("+")[0]}
    return Fixture(row.name, config, shapes, FAMILIES[row.family].gain_center, versions=versions)


def main(wanted: list[str]) -> None:
    """Writes the fixtures of the rows named, or of all."""
    for name in wanted or ROWS:
        fixture = fixture_of(ROWS[name])
        with tempfile.TemporaryDirectory() as folder:
            fixture.save(*run_reference(ROWS[name], fixture.write_folder(Path(folder)), fixture.batch, "float64"))
    print(f"{sum(path.stat().st_size for path in FOLDER.iterdir()) / 2**20:.2f} MiB in {FOLDER}")


if __name__ == "__main__":
    main(sys.argv[1:])
