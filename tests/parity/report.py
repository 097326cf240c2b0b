"""docs/parity.md: the errors of every model at every site."""

import dataclasses
import datetime
import importlib.metadata
from pathlib import Path

from jaxinterp.model.sites import SITES
from tests.parity.measure import FLOAT32_BOUND, FLOAT64_BOUND, Errors

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "parity.md"
PACKAGES = ("jax", "flax", "numpy", "torch", "transformers")


@dataclasses.dataclass
class Findings:
    """What a session measured.

    Attributes:
        rows: by name of the row.
        real_weights: sentences about real checkpoints.
    """

    rows: dict[str, Errors] = dataclasses.field(default_factory=dict)
    real_weights: list[str] = dataclasses.field(default_factory=list)


HEAD = """# Parity with transformers

Written by `make parity` on {date}, with {versions}.

Every model of the table is a small random one: weights, norm gains and biases come from a NumPy seed by parameter name
and are large enough that scores and logits spread over several units. Both sides read the same folder in HF layout. The
prompts are one batch of four, of 11, 8, 6 and 1 tokens, padded left and right with random ids.

The error at a site is the maximum over layers and real tokens of ||ours - reference|| / ||reference||. `scores` are
compared up to a constant a row. Bounds: {float64:.0e} in float64, {float32:.0e} in float32.

* The float64 reference has no float32 inside: transformers computes norms, rotary angles and softmax in float32 even in
  a `.double()` model, and the reference takes these casts out. The column "plain `.double()`" is how far the unchanged
  model is from that.
* Gradients are those of a fixed random linear functional of the logits at real tokens, with respect to each site. A token
  whose gradient is below a thousandth of its layer's largest is compared with that thousandth (at a norm's denominator,
  where the gradient is one number, a sum that cancels, with the largest itself).
* Where transformers would choose rotary frequencies by the longest prompt of a batch (dynamic, longrope), the reference
  runs each prompt alone.
"""


def _worst(errors: dict[str, float]) -> str:
    site = max(errors, key=errors.__getitem__)
    return f"{errors[site]:.1e} `{site}`"


def _summary(measured: list[Errors]) -> list[str]:
    lines = [
        "## Worst site of each model",
        "",
        "| model | what it proves | float64 | float32 | gradient, float64 | gradient, float32 | plain `.double()` |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for errors in measured:
        cells = [errors.values["float64"], errors.values["float32"], errors.gradients["float64"], errors.gradients["float32"], errors.plain]
        lines.append(f"| {errors.row.name} | {errors.row.special} | {' | '.join(map(_worst, cells))} |")
    return lines


def _detail(errors: Errors) -> list[str]:
    lines = [
        f"### {errors.row.name}",
        "",
        "| site | float64 | float32 | gradient, float64 | gradient, float32 |",
        "| --- | --- | --- | --- | --- |",
    ]
    for site in (site for site in SITES if site in errors.values["float64"]):
        cells = [table[dtype].get(site) for table in (errors.values, errors.gradients) for dtype in ("float64", "float32")]
        lines.append(f"| `{site}` | {' | '.join('–' if cell is None else f'{cell:.1e}' for cell in cells)} |")
    return lines


def versions() -> str:
    """Versions of what was compared."""
    return ", ".join(f"{name} {importlib.metadata.version(name).split('+')[0]}" for name in PACKAGES)


def write(measured: list[Errors], real_weights: list[str]) -> None:
    """Writes the document.

    Args:
        measured: the rows of the table.
        real_weights: sentences about SmolLM2, empty where its file was not there.
    """
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    parts = [
        HEAD.format(date=date, versions=versions(), float64=FLOAT64_BOUND, float32=FLOAT32_BOUND).rstrip(),
        "\n".join(_summary(measured)),
    ]
    if real_weights:
        parts.append("\n".join(["## Real weights", "", *(f"* {line}" for line in real_weights)]))
    parts += ["## Every site", *("\n".join(_detail(errors)) for errors in measured)]
    DOCUMENT.parent.mkdir(exist_ok=True)
    DOCUMENT.write_text("\n\n".join(parts) + "\n")
