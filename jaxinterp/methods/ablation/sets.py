"""Sequences of ablations over a set of components: leave one out, and greedy selection.

Cost: leave-one-out is one grid of as many cells as components; greedy is one such grid a step. Greedy misleads where
components only matter together (each alone seems idle) or back one another up (the first of them hides the rest).
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from jaxinterp.errors import InputError
from jaxinterp.methods.ablation.ablate import AblationResult, Setting, measure, prepare
from jaxinterp.methods.ablation.draws import draw
from jaxinterp.methods.ablation.layout import Layout, Mask, Part, set_masks, single_components
from jaxinterp.methods.ablation.recipe import Kind, Recipe
from jaxinterp.model.language_model import LanguageModel, Prompts
from jaxinterp.model.selection import pick
from jaxinterp.runs.results import mean_of

MOST = 4096  # components that greedy goes through unnamed


def leave_one_out(
    lm: LanguageModel,
    prompts: Prompts,
    metric: Any,
    components: Sequence[Any] | Mapping[str, Any],
    site: str | Sequence[str] = "z",
    kind: Kind = "zero",
    *,
    keep: bool = False,
    at: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    **how: Any,
) -> Any:
    """Ablates a whole set but one of its members, for each member in turn.

    Args:
        lm: the model.
        prompts: as for `run`.
        metric: what is measured, or {name: metric}.
        components: the members, two or more, as the sets of `ablate`; a member may itself be a set.
        site: as for `ablate`.
        kind: as for `ablate`.
        keep: the set is what is kept and the rest of the sites is ablated; each member in turn is ablated as well (the
            minimality test of a circuit).
        at: as for `ablate`.
        out: a folder that keeps finished chunks, as for `ablate`.
        **how: reference, by, groups, seed, draws, edits ... as for `ablate`.

    Returns:
        An AblationResult on the axis "left out". Its `clean` is the run with the whole set ablated (kept), so `effects` are
        what leaving each member out of the set changes. With several metrics, {name: AblationResult}.

    Raises:
        InputError: as for `ablate`; also fewer than two members.

    Example:
        >>> ji.leave_one_out(lm, prompts, metric, [ji.heads("23.3"), ji.heads("29.1"), ji.heads("20.0")]).effects
    """
    setting = prepare(lm, prompts, site, Recipe(kind, **how), "leave_one_out()")
    masks = set_masks(components, setting.sites, lm.config, setting.what)
    if len(masks) < 2:
        raise InputError(f"leave_one_out(): there is {len(masks)} component; expected at least two.")
    whole = _union(list(masks.values()))
    rest = [_union([mask for other, mask in masks.items() if other != label]) for label in masks]
    fixed = pick(**(at or {}))
    layout = Layout((("left out", ("nothing", *masks)),), tuple(_parts(mask, fixed, keep) for mask in [whole, *rest]))
    drawn = draw(setting.recipe, lm, setting.tokens, setting.sites, layout, setting.what)
    found = measure(setting, layout, drawn, metric, (("set", "kept" if keep else "ablated"),), out=out)
    results = {name: _against_first(result, tuple(masks)) for name, result in found.items()}
    return results if isinstance(metric, Mapping) else results[""]


def _against_first(found: AblationResult, labels: tuple[str, ...]) -> AblationResult:
    """Every cell but the first, which becomes what effects are measured from."""
    base, per_example = found.per_example[:, 0], found.per_example[:, 1:]
    return dataclasses.replace(
        found, values=found.values[1:], effects=mean_of(per_example - base[:, None]), per_example=per_example, clean=base,
        axes=(("left out", labels),), per_draw=None if found.per_draw is None else found.per_draw[:, :, 1:],
        constants=None if found.constants is None else {site: values[1:] for site, values in found.constants.items()},
    )  # fmt: skip


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["values", "per_example", "candidates"], meta_fields=["order", "labels", "how"]
)
@dataclasses.dataclass(frozen=True)
class GreedyResult:
    """A greedy sequence of n steps over N components.

    Attributes:
        values: [n + 1], the metric before the first step and after each.
        per_example: [B n + 1], the same of each prompt.
        candidates: [n N], the metric of every candidate at each step; NaN once it was chosen.
        order: the components in the order in which they were chosen.
        labels: all components, in the order of `candidates`.
        how: how it was made.
    """

    values: Any
    per_example: Any
    candidates: Any
    order: tuple[str, ...]
    labels: tuple[str, ...]
    how: tuple[tuple[str, str], ...] = ()

    def __repr__(self) -> str:
        steps = ", ".join(f"{label} {value:.4g}" for label, value in zip(self.order, self.values[1:], strict=True))
        return f"GreedyResult({self.values[0]:.4g}; {steps})"


def greedy(
    lm: LanguageModel,
    prompts: Prompts,
    metric: Any,
    steps: int,
    components: Sequence[Any] | Mapping[str, Any] | None = None,
    site: str | Sequence[str] = "z",
    kind: Kind = "zero",
    *,
    choose: Literal["lowest", "highest", "closest"] = "lowest",
    keep: bool = False,
    at: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    **how: Any,
) -> GreedyResult:
    """Ablates one component more at each step, the one that changes the metric as asked; or keeps one more.

    Args:
        lm: the model.
        prompts: as for `run`.
        metric: what is measured, mean over prompts.
        steps: how many components are chosen.
        components: the candidates, as the sets of `ablate`; None is every head, MLP ... of the site.
        site: as for `ablate`; one site where `components` is None.
        kind: as for `ablate`, but not "optimal".
        choose: "lowest" and "highest" take the candidate with the lowest or highest metric, "closest" the one that leaves
            it closest to the intact model's: with it, what matters least is ablated first.
        keep: begin with everything at these sites ablated, and keep one component more at each step.
        at: as for `ablate`.
        out: a folder that keeps finished chunks, a folder a step in it; the same call, or one of more steps, goes on from them.
        **how: reference, by, groups, seed, draws, edits ... as for `ablate`.

    Raises:
        InputError: as for `ablate`; also steps out of range, or an unknown choice.

    Example:
        >>> ji.greedy(lm, prompts, metric, 3, kind="mean", reference=abc).order
    """
    if choose not in ("lowest", "highest", "closest"):
        raise InputError(f"greedy(): choose is {choose!r}; expected 'lowest', 'highest' or 'closest'.")
    if isinstance(metric, Mapping):
        raise InputError("greedy(): each metric has a sequence of its own; give one.")
    if kind == "optimal":
        raise InputError("greedy(): kind='optimal' would train the constants of every candidate anew at each step; use another kind.")
    setting = prepare(lm, prompts, site, Recipe(kind, **how), "greedy()")
    masks = set_masks(_all(setting) if components is None else components, setting.sites, lm.config, setting.what)
    if not 1 <= steps <= len(masks):
        raise InputError(f"greedy(): steps is {steps}; expected from 1 to the number of components, {len(masks)}.")
    fixed = pick(**(at or {}))
    search = _Search(setting, masks, fixed, keep, metric, None if out is None else Path(out))
    return search.run(steps, choose)


def _all(setting: Setting) -> Mapping[str, Any]:
    if len(setting.sites) != 1:
        raise InputError("greedy(): with several sites name the components.")
    site, config = setting.sites[0], setting.lm.config
    found = single_components(site, config)
    if len(found) > MOST:
        raise InputError(f"greedy(): site {site.name!r} has {len(found)} components; name those to go through.")
    return found


class _Search:
    """The runs of a greedy sequence. What is already ablated acts in the base run, so that a step costs one plain grid."""

    def __init__(
        self, setting: Setting, masks: dict[str, dict[str, Mask]], fixed: dict[str, Any], keep: bool, metric: Any, out: Path | None
    ) -> None:
        self._setting, self._masks, self._fixed, self._keep, self._metric, self._out = setting, masks, fixed, keep, metric, out
        cells = tuple(_parts(mask, fixed, False) for mask in masks.values())
        self._alone = Layout((("component", tuple(masks)),), cells)
        self._drawn = draw(setting.recipe, setting.lm, setting.tokens, setting.sites, self._alone, setting.what)
        self._nothing = {name: np.zeros_like(mask) for name, mask in next(iter(masks.values())).items()}

    def run(self, steps: int, choose: str) -> GreedyResult:
        """The sequence."""
        labels = tuple(self._masks)
        chosen: list[str] = []
        values, rows, table = [], [], []
        intact = None
        for _ in range(steps):
            found, before, clean = self._step(chosen)
            intact = clean if intact is None else intact
            if not values:
                values, rows = [float(np.nanmean(before))], [before]
            score = found.values.astype(np.float64)
            score[[labels.index(label) for label in chosen]] = np.nan
            table.append(score)
            goal = {"lowest": score, "highest": -score, "closest": np.abs(score - np.mean(intact))}[choose]
            best = int(np.nanargmin(goal))
            chosen.append(labels[best])
            values.append(float(score[best]))
            rows.append(found.per_example[:, best])
        how = (*found.how, ("choose", choose), *([("keep", "one more a step")] if self._keep else []))
        return GreedyResult(np.asarray(values), np.stack(rows, axis=1), np.stack(table), tuple(chosen), labels, how)

    def _step(self, chosen: Sequence[str]) -> tuple[AblationResult, np.ndarray, np.ndarray]:
        """Every candidate beside the chosen ones, the run with these alone [B], and the intact one [B]."""
        union = _union([self._masks[label] for label in chosen], self._nothing)
        out = None if self._out is None else self._out / f"step {len(chosen) + 1}"
        if self._keep:
            parts = [_parts(union, self._fixed, True), *(_parts(_union([union, m]), self._fixed, True) for m in self._masks.values())]
            layout = Layout((("component", ("", *self._masks)),), tuple(parts))
            found = measure(self._setting, layout, self._drawn, self._metric, out=out)[""]
            rest = dataclasses.replace(found, values=found.values[1:], per_example=found.per_example[:, 1:])
            return rest, found.per_example[:, 0], found.clean
        found = measure(self._setting, self._alone, self._drawn, self._metric, base=_parts(union, self._fixed, False), out=out)[""]
        return found, found.clean, found.clean


def _parts(mask: Mapping[str, Mask], fixed: dict[str, Any], keep: bool) -> dict[str, Part]:
    return {name: Part(fixed, ~rows if keep else rows) for name, rows in mask.items()}


def _union(masks: Sequence[Mapping[str, Mask]], nothing: Mapping[str, Mask] | None = None) -> dict[str, Mask]:
    """What is in any of the sets."""
    every = [*masks, *([nothing] if nothing is not None else [])]
    return {name: np.logical_or.reduce([mask[name] for mask in every]) for name in every[0]}
