"""How far attribution estimates can be trusted on SmolLM2: each held against the exact patching grid of the same cells.

`python -m benchmarks.attribution_report` writes results/attribution-smollm2.md: one pair of indirect-object prompts and eight
pairs, denoising; correlation, sign agreement and overlap of the ten largest cells.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jaxinterp as ji
from jaxinterp.methods.attribution.activations import attribution_patch, relp
from jaxinterp.methods.attribution.compare import Comparison
from jaxinterp.methods.attribution.paths import integrated_attribution

OUT = Path(__file__).parent / "results" / "attribution-smollm2.md"
STEPS = 8
ROWS = """Mary John store drink; Anna James park ball; Sarah Paul school book; David Lisa office ring; Emma Mark store book;
Tom Kate park drink; Lisa David school ball; John Sarah office ring"""

GRIDS: Mapping[str, tuple[str, ...]] = {"resid_pre": ("layer", "position"), "z": ("layer", "head")}
METHODS: Mapping[str, Callable[..., Any]] = {
    "AtP": attribution_patch,
    "AtP, slopes at both runs": lambda *args, **how: attribution_patch(*args, slopes_at="both", **how),
    "AtP* (GradDrop; sizes only)": lambda *args, **how: attribution_patch(*args, grad_drop=True, **how),
    f"IG along activations, {STEPS} steps": lambda *args, **how: integrated_attribution(*args, path="activations", steps=STEPS, **how),
    f"IG along inputs, {STEPS} steps": lambda *args, **how: integrated_attribution(*args, path="inputs", steps=STEPS, **how),
    "RelP": relp,
}
QUERY_KEY: Mapping[str, Callable[..., Any]] = {
    "AtP": attribution_patch,
    "AtP* (query/key fix)": lambda *args, **how: attribution_patch(*args, softmax="exact", **how),
    "AtP* (query/key fix, GradDrop; sizes only)": lambda *args, **how: attribution_patch(*args, softmax="exact", grad_drop=True, **how),
}


def pairs() -> dict[str, tuple[list[str], list[str], Any]]:
    """Clean and corrupt prompts and the metric, by name."""
    one = "When Mary and John went to the store, {} gave a drink to"
    rows = [row.split() for row in ROWS.split(";")]
    text = "Then, {0} and {1} went to the {2}. {4} gave a {3} to"
    clean = [text.format(*row, row[1]) for row in rows]
    corrupt = [text.format(*row, row[0]) for row in rows]
    names = [[f" {row[i]}" for row in rows] for i in (0, 1)]
    return {
        "one pair, 14 tokens": ([one.format("John")], [one.format("Mary")], ji.metrics.logit_difference(" Mary", " John")),
        "eight pairs, 15 tokens": (clean, corrupt, ji.metrics.logit_difference(names[0], names[1])),
    }


def row(name: str, found: Comparison, error: float | None) -> str:
    """A line of the table."""
    signs = f"{found.sign_agreement:.0%}" if found.signed else "-"
    missed = "-" if error is None else f"{error:.1%}"
    return (
        f"| {name} | {found.pearson:.2f} | {found.spearman:.2f} | {signs} | {found.overlap:.0%} | {found.slope:.2f} | "
        f"{found.mean_error:.2g} | {missed} |"
    )


def section(title: str, methods: Mapping[str, Callable[..., Any]], args: tuple[Any, ...], over: tuple[str, ...]) -> list[str]:
    """The table of one grid."""
    exact = ji.patch(*args, over=over)
    lines = [f"### {title}", "", "| estimate | Pearson | Spearman | signs | top-10 overlap | slope | mean error | path error |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, method in methods.items():
        found = method(*args, over=over)
        lines.append(row(name, found.compare(exact), getattr(found, "error", None)))
        print(lines[-1], flush=True)
    return [*lines, ""]


def main() -> None:
    """Runs everything and writes the report."""
    lm = ji.load("smollm2-135m-instruct")
    lines = [
        "# Attribution estimates against exact patching",
        "",
        "SmolLM2-135M-Instruct, float32, denoising (slopes at the corrupt run, values from the clean one), metric: logit difference of",
        "indirect object and subject. Written by `python -m benchmarks.attribution_report`. Signs are compared where the exact effect is",
        "at least 1 % of the largest; slope is that of the line exact = slope x estimate + intercept; errors are in shares of the",
        "clean-corrupt difference; the path error is the part of the metric's change that the sum over the path's points misses, at the",
        "worst prompt and layer. GradDrop gives sizes, and is held against the sizes of the exact effects. At `resid_pre` some twenty",
        "cells have an exact effect near 1, so which of them are the ten largest is decided by thousandths: there the slope and the errors",
        "say more.",
        "",
    ]
    for name, (clean, corrupt, metric) in pairs().items():
        lines += [f"## {name[0].upper()}{name[1:]}", ""]
        for site, over in GRIDS.items():
            lines += section(f"`{site}`, by {' and '.join(over)}", METHODS, (lm, clean, corrupt, metric, site), over)
        if len(clean) == 1:
            for site in ("q", "k"):
                over = ("layer", "head", "position")
                lines += section(f"`{site}`, by {', '.join(over)}", QUERY_KEY, (lm, clean, corrupt, metric, site), over)
        OUT.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
