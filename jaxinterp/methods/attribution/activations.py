"""Attribution patching: every cell of a patching grid estimated from two runs and one backward pass (Nanda 2023; Syed et al. 2023).

    estimate of a cell = sum over what it selects of  d metric / d activation at the base run . (other run's activation - base run's)

Axes, modes, selections and normalisation are those of `ji.patch`, so that `result.compare(ji.patch(...))` is cell by cell and
`result.verify()` runs the exact cells that matter. A first-order estimate is exact on a linear model. It misleads where
something saturates between base and other: a softmax (`softmax="exact"` repairs queries and keys), a norm far upstream (early
residual streams), or where a direct and an indirect effect cancel (`grad_drop`).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np

from jaxinterp.errors import InputError
from jaxinterp.methods.attribution.cells import Selected, beyond, select
from jaxinterp.methods.attribution.estimates import AttributionResult, Call, Places, attribution_result
from jaxinterp.methods.attribution.grad_drop import divisor, gates_of
from jaxinterp.methods.attribution.query_key import KEYS, QUERIES, check_exact
from jaxinterp.methods.attribution.slopes import attribution_program
from jaxinterp.methods.grid import Points, axes_of, component_masks, strings_of
from jaxinterp.methods.pairs import same_until
from jaxinterp.methods.patching import Mode, Pair
from jaxinterp.model import edits as edit_makers
from jaxinterp.model.edits import Edit, check_edits
from jaxinterp.model.language_model import LanguageModel, Prompts
from jaxinterp.model.rules import Rules
from jaxinterp.model.sites import check_site, site_of
from jaxinterp.model.stack import check_stacked
from jaxinterp.model.tokens import Tokens, check_ids
from jaxinterp.runs.measure import precise
from jaxinterp.runs.program import bucket
from jaxinterp.runs.provenance import record
from jaxinterp.runs.results import grid_result, stacked
from jaxinterp.runs.run import pad_edit

Over = Sequence[str] | Mapping[str, Points]


def attribution_patch(
    lm: LanguageModel,
    clean: Prompts,
    corrupt: Prompts,
    metric: Any,
    site: str = "resid_pre",
    over: Over = ("layer", "position"),
    mode: Mode = "denoise",
    *,
    sites: Sequence[str] | Mapping[str, Over] | None = None,
    at: Mapping[str, Any] | None = None,
    components: Any = None,
    position_map: Any = None,
    edits: Sequence[Edit] = (),
    clean_edits: Sequence[Edit] = (),
    corrupt_edits: Sequence[Edit] = (),
    rules: Rules | None = None,
    softmax: Literal["linear", "exact"] = "linear",
    grad_drop: bool = False,
    slopes_at: Literal["base", "both"] = "base",
    bos: str | bool = "model",
    precision: str | None = "highest",
) -> Any:
    """Estimates every cell of a patching grid by the slope of the metric at the base run.

    estimate = sum over what the cell selects of d metric / d activation . (other - base); for a query or key with
    softmax="exact", sum of d metric / d pattern . (pattern with the other query or key - pattern).

    Sources: Nanda 2023, "Attribution patching"; Syed et al. 2023, arXiv:2310.10348; softmax="exact" and grad_drop are the two
    parts of AtP*, Kramar et al. 2024, arXiv:2403.00745. Cost, for all sites and cells together: two forward passes and one
    backward pass; softmax="exact" adds at most a forward pass a site; grad_drop L backward passes in place of one, batched;
    slopes_at="both" one more forward and backward pass.

    Args:
        lm: the model.
        clean: prompts of the behaviour, one or many.
        corrupt: as many prompts; without a `position_map` each has as many tokens as its clean one.
        metric: what is differentiated, such as `ji.metrics.logit_difference(" Mary", " John")`; or {name: metric}, one call each.
        site: the site whose patching is estimated.
        over: axes of the grid, as for `ji.patch`: selectors, or {axis: indices or roles}.
        mode: "denoise": slopes at the corrupt run, values from the clean one. "noise": the other way round.
        sites: several sites in the same passes: names (the result's first axis is then "site"), or {site: its own axes} (the
            result is then {site: AttributionResult}).
        at: selections that all cells share, as for `ji.patch`.
        components: sets of components, one cell each, as for `ji.patch`.
        position_map: as for `ji.patch`.
        edits: act in both runs.
        clean_edits: act in the run on the clean prompts only.
        corrupt_edits: likewise for the corrupt prompts.
        rules: what the backward pass holds constant; `Rules.affine("half")` makes this RelP.
        softmax: "linear", or "exact": at sites q, q_rot, k and k_rot the softmax is recomputed with the other run's query or key
            (for each key alone where "position" is an axis, else for all selected keys together); other sites are not affected.
        grad_drop: the mean size of the estimate over backward passes in which one layer's attention and MLP are blocked, which no
            cancellation between paths can hide. Estimates are then sizes, without a sign.
        slopes_at: "base", or "both": the mean of the slopes at both runs (the trapezium rule).
        bos: as for `run`.
        precision: as for `run`.

    Returns:
        AttributionResult: a GridResult of estimates, with `.compare(exact)` and `.verify(top=20)`.

    Raises:
        InputError: what `ji.patch` refuses; also a metric without a slope (rank; KL divergence to the base run itself), a site
            of whole numbers, softmax="exact" without a query or key site, or slopes_at="both" with a position_map.

    Example:
        >>> estimate = ji.attribution_patch(lm, clean, corrupt, difference, "z", over=("layer", "head"))
        >>> estimate.compare(ji.patch(lm, clean, corrupt, difference, "z", over=("layer", "head"))).pearson > 0.8
        True
    """
    if isinstance(metric, Mapping):
        options: dict[str, Any] = {
            "sites": sites, "at": at, "components": components, "position_map": position_map, "edits": edits, "clean_edits": clean_edits,
            "corrupt_edits": corrupt_edits, "rules": rules, "softmax": softmax, "grad_drop": grad_drop, "slopes_at": slopes_at, "bos": bos,
            "precision": precision,
        }  # fmt: skip
        return {name: attribution_patch(lm, clean, corrupt, one, site, over, mode, **options) for name, one in metric.items()}
    _check_choices(mode, softmax, slopes_at, position_map)
    asked = dict(sites) if isinstance(sites, Mapping) else dict.fromkeys(sites or (site,), over)
    pair = Pair.of(lm, clean, corrupt, position_map, mode, bos)
    grids = places_of(lm, pair, asked, dict(at or {}), components)
    job = Job.of(lm, pair, grids, metric, by_run(mode, edits, clean_edits, corrupt_edits), rules or Rules(), softmax, slopes_at, precision)
    found, base, other = job.run(grad_drop)
    results = {place.site: job.result(place, found[place.site], base, other, mode, grad_drop) for place in grids}
    if sites is None:
        return results[site]
    if isinstance(sites, Mapping):
        return results
    return attribution_result(stacked(list(results.values()), "site", tuple(results)), job.call(tuple(grids)))


def relp(
    lm: LanguageModel, clean: Prompts, corrupt: Prompts, metric: Any, site: str = "resid_pre", over: Over = ("layer", "position"),
    mode: Mode = "denoise", **options: Any,
) -> Any:  # fmt: skip
    """RelP: attribution patching whose backward pass is relevance propagation, under `Rules.affine("half")`.

    estimate = sum of relevance coefficient . (other - base), the coefficient being the gradient with every norm's scale and
    the attention pattern held, activations as activation(x) / x times x, and a gate's product shared equally by its factors.

    Source: Jafari et al. 2025, arXiv:2508.21258. Cost: that of `attribution_patch`. Misleads about queries and keys, to which the
    held pattern gives an effect of zero, and wherever what matters is where attention looks and not what it moves.

    Args:
        lm: the model.
        clean: as for `attribution_patch`, as are the others.
        corrupt: as many prompts.
        metric: what is differentiated.
        site: the site whose patching is estimated.
        over: axes of the grid.
        mode: "denoise" or "noise".
        **options: those of `attribution_patch`, without rules.

    Returns:
        AttributionResult.

    Raises:
        InputError: as for `attribution_patch`; also rules, which are RelP's own.

    Example:
        >>> ji.relp(lm, clean, corrupt, difference, "mlp_out").effects.shape
        (30, 14)
    """
    if "rules" in options:
        raise InputError("relp() has rules of its own, Rules.affine('half'); use attribution_patch() for others.")
    return attribution_patch(lm, clean, corrupt, metric, site, over, mode, rules=Rules.affine("half"), **options)


def _check_choices(mode: str, softmax: str, slopes_at: str, position_map: Any) -> None:
    for name, value, allowed in (
        ("mode", mode, ("denoise", "noise")), ("softmax", softmax, ("linear", "exact")), ("slopes_at", slopes_at, ("base", "both")),
    ):  # fmt: skip
        if value not in allowed:
            raise InputError(f"{name} is {value!r}; expected {' or '.join(map(repr, allowed))}.")
    if slopes_at == "both" and position_map is not None:
        raise InputError("slopes_at='both' needs prompts of one length: with a position_map, take the slopes at the base run.")


def by_run(mode: str, edits: Sequence[Edit], clean: Sequence[Edit], corrupt: Sequence[Edit]) -> tuple[tuple[Edit, ...], Any]:
    """Edits of the base run, and of the other run (None: the same)."""
    own, others = (corrupt, clean) if mode == "denoise" else (clean, corrupt)
    return (*edits, *own), (*edits, *others) if clean or corrupt else None


def places_of(lm: LanguageModel, pair: Pair, asked: Mapping[str, Over], at: dict[str, Any], components: Any) -> list[Places]:
    """The cells of each site, checked as `patch` checks them."""
    out = []
    for name, over in asked.items():
        place = check_site(name, lm.config)
        over = () if components is not None and not isinstance(over, Mapping) else over
        axes = axes_of("attribution_patch()", place, over, lm, pair.base)
        twice = [axis.name for axis in axes if axis.name in at]
        if twice:
            raise InputError(f"attribution_patch(): {twice[0]!r} is in `over` and in `at`.")
        if pair.mapped is not None and "P" not in place.axes:
            raise InputError(f"attribution_patch(): a position_map cannot be used at site {name!r}, which has the axes {place.axes}.")
        check_edits([edit_makers.zero(name, **at)], lm.config, pair.base)
        out.append(Places(name, tuple(axes), component_masks("attribution_patch()", components, place, lm.config), at))
    return out


@dataclasses.dataclass(frozen=True)
class Job:
    """An attribution whose metric is bound and whose cells are arrays.

    Attributes:
        lm, pair, places, metric, rules, precision: as given; the metric bound to the base prompts.
        edits, other_edits: of the base run, and of the other run (None: the same).
        base, other: the prompts, padded to their bucket.
        grids: what each cell selects.
        exact: sites whose softmax is recomputed.
        both: whether slopes are taken at both runs.
    """

    lm: LanguageModel
    pair: Pair
    places: Sequence[Places]
    metric: Any
    rules: Rules
    precision: str | None
    edits: tuple[Edit, ...]
    other_edits: tuple[Edit, ...] | None
    base: Tokens
    other: Tokens
    grids: tuple[Selected, ...]
    exact: tuple[str, ...]
    both: bool

    @classmethod
    def of(
        cls, lm: LanguageModel, pair: Pair, places: Sequence[Places], metric: Any, edits: tuple[tuple[Edit, ...], Any], rules: Rules,
        softmax: str, slopes_at: str, precision: str | None,
    ) -> "Job":  # fmt: skip
        config = lm.config
        check_stacked(lm.params, "attribution_patch()")
        for tokens, group in zip((pair.base, pair.other), (edits[0], edits[1] or ()), strict=True):
            check_ids(tokens, config.d_vocab, config.n_ctx)
            check_edits(group, config, tokens)
        rules.check()
        bound = metric if metric.bound else metric.bind(lm, pair.base)
        bound.check_slope(None)
        width = bucket(pair.base.ids.shape[1], config.n_ctx)
        base, other = (tokens.padded(width).arrays_only() for tokens in (pair.base, pair.other))
        mapped = None if pair.mapped is None else np.pad(pair.mapped, ((0, 0), (0, width - pair.mapped.shape[1])))
        grids = tuple(select(site_of(p.site, config), p.axes, p.sets, p.at, mapped, base, config) for p in places)
        exact = tuple(p.site for p in places if p.site in QUERIES + KEYS) if softmax == "exact" else ()
        if softmax == "exact" and not exact:
            raise InputError(f"softmax='exact' repairs estimates of {', '.join(QUERIES + KEYS)}; none of them is asked for.")
        for grid in grids:
            if grid.site in exact:
                check_exact(grid.site, grid, [*edits[0], *(edits[1] or ())], config)
        return cls(lm, pair, places, bound, rules, precision, *edits, base, other, grids, exact, slopes_at == "both")

    def run(self, grad_drop: bool) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        """Estimates [C B] of each site, and the metric [B] of the base run and of the other one."""
        config, size, width = self.lm.config, self.pair.base.ids.shape[1], self.base.ids.shape[1]
        own = tuple(pad_edit(edit, size, width, config) for edit in self.edits)
        others = own if self.other_edits is None else tuple(pad_edit(edit, size, width, config) for edit in self.other_edits)
        align = None if self.pair.align is None else _columns(self.pair.align, self.base, self.other)
        args = (self.lm.params, self.base, self.other, align, self.metric, self.grids, own, others, self.rules)
        found: dict[str, Any] = {}
        base = other = None
        for gates in gates_of(config, self.base.ids.size) if grad_drop else [None]:
            part, base, other = attribution_program(*args, gates, config=config, exact=self.exact, both=self.both, precision=self.precision)
            found = {site: np.asarray(value, precise(self.lm)) + found.get(site, 0) for site, value in part.items()}
        base, other = np.asarray(base), np.asarray(other)
        for values in (base, other) if self.both else (base,):
            self.metric.check_slope(values)
        if grad_drop:
            found = {site: value / divisor(site, config) for site, value in found.items()}
        return {site: value.reshape(-1, value.shape[-1]) for site, value in found.items()}, base, other

    def result(self, place: Places, estimate: np.ndarray, base: np.ndarray, other: np.ndarray, mode: str, sizes: bool) -> AttributionResult:
        """The estimates of a site as a grid."""
        axes, sets, softmax = list(place.axes), place.sets, f"exact at {', '.join(self.exact)}" if self.exact else "linear"
        towards = np.sign(other.mean() - base.mean()) if sizes else 1.0
        values = base + towards * estimate
        values[beyond(axes, sets, place.at, np.asarray(self.pair.base.lengths))] = np.nan
        if self.pair.mapped is not None:
            values = self.pair.without_unmapped(values, place.labels)
        made = record(
            self.lm, self.pair.base, self.metric, other=self.pair.other, edits=self.edits, other_edits=self.other_edits,
            align=self.pair.align,
        )  # fmt: skip
        how = (
            ("site", place.site), ("bos", self.pair.base.bos), ("estimator", "attribution patching"),
            ("slopes", "mean of both runs" if self.both else "base run"), ("softmax", softmax),
            ("sign", "size" if sizes else "signed"), ("dropped", "each layer in turn" if sizes else "nothing"),
            ("rules", repr(self.rules)), ("precision", str(self.precision)), *made,
        )  # fmt: skip
        grid = grid_result(values, base, other, place.labels, mode, how, strings_of(self.lm, self.pair.base))
        return attribution_result(grid, self.call((place,)))

    def call(self, places: tuple[Places, ...]) -> Call:
        """What `verify` needs to run cells exactly."""
        pair, edited = self.pair, self.other_edits is not None
        options = {
            "edits": self.edits, "other_edits": self.other_edits, "align": pair.align, "precision": self.precision,
            "same_until": None if edited else same_until(pair.base, pair.other, self.lm.config, pair.align),
        }  # fmt: skip
        return Call(self.lm, pair, self.metric, places, options)


def _columns(align: np.ndarray, base: Tokens, other: Tokens) -> Any:
    """[B P]: the column of the other prompt whose values each column of a base prompt takes (any, where it takes none)."""
    positions = np.clip(np.asarray(base.positions), 0, align.shape[1] - 1)
    wanted = np.maximum(np.take_along_axis(align, positions, axis=1), 0)
    return jax.tree.map(np.asarray, other).columns(wanted)
