"""Sweeps: `ji.patch` on whole grids beside TransformerLens and nnsight, which run a Python forward for each cell.

The same pairs and grids in the same run. Peers are timed on some of the cells of a grid, drawn at random, and scaled to all of
them (each cell is a whole forward there, whatever it patches); the first two grids they also compute whole, once. What
they give is compared cell by cell before anything is timed.
"""

import dataclasses
import functools
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxinterp as ji
from benchmarks.context import Context, Measurement, Suite
from benchmarks.counting import Observed
from benchmarks.harness import Contender, Race, WrongResult, fresh, log, race, timed
from benchmarks.plot import speedups
from benchmarks.runs import PAIRS, TEXT
from jaxinterp.model.config import TransformerConfig
from jaxinterp.model.parameters import parameter_shapes
from jaxinterp.runs.plan import free_memory
from jaxinterp.runs.results import GridResult

APART = 1e-3
"""Largest difference from a peer at any cell, of the clean-corrupt range of the metric."""
ROUNDING = 1e-5
"""The same on a small model of random weights."""

GPT2 = TransformerConfig(
    n_layers=6, d_model=384, n_heads=6, n_kv_heads=6, d_head=64, d_mlp=1536, d_vocab=5000, n_ctx=64, positions="learned", norm="layer",
    norm_bias=True, gated=False, activation="gelu_tanh", q_bias=True, k_bias=True, v_bias=True, o_bias=True, mlp_in_bias=True,
    mlp_out_bias=True,
)  # fmt: skip

CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPT = "When Mary and John went to the store, Mary gave a drink to"
ANOTHER = "After Mary and John went to the store, Mary gave a drink to"  # differs from the first token on

LENS, SIGHT, OURS, FIRST, PRODUCT = "TransformerLens", "nnsight", "ji.patch", "first ji.patch of a process", "matrix product"
SIDE = 2048  # of the matrices whose product shows what the machine can do


@dataclasses.dataclass(frozen=True)
class Grid:
    """One sweep.

    Attributes:
        clean, corrupt: ids [B P].
        answers, others: ids [B].
        site: the site that is patched.
        over: the axes and their indices.
    """

    clean: np.ndarray
    corrupt: np.ndarray
    answers: np.ndarray
    others: np.ndarray
    site: str
    over: Mapping[str, Sequence[int]]

    @property
    def cells(self) -> list[tuple[int, int]]:
        """(layer, index) of every cell, in the order of the result."""
        layers, indices = self.over.values()
        return [(int(layer), int(index)) for layer in layers for index in indices]

    def patch(self, lm: ji.LanguageModel, **changes: Any) -> GridResult:
        """The sweep by jaxinterp."""
        metric = ji.metrics.logit_difference(self.answers, self.others)
        given: dict[str, Any] = {"site": self.site, "over": self.over} | changes
        return ji.patch(lm, self.clean, self.corrupt, metric, **given)

    @property
    def ids(self) -> dict[str, Any]:
        """Prompts and answers as lists, for other processes."""
        return {name: np.asarray(getattr(self, name)).tolist() for name in ("clean", "corrupt", "answers", "others")}

    @property
    def points(self) -> dict[str, list[int]]:
        """The indices of each axis as lists."""
        return {name: [int(index) for index in indices] for name, indices in self.over.items()}


@dataclasses.dataclass(frozen=True)
class Bars:
    """What is to be reached: times faster than TransformerLens, warm and with compiling, and for several pairs batched there."""

    warm: float | None = None
    compiling: float | None = None
    batched: float | None = None
    accelerator: float | None = None

    @property
    def here(self) -> "Bars":
        return self if jax.default_backend() == "cpu" else Bars(self.accelerator)


# ------------------------------------------------------------------------------------------------------------ the grids


def pair_grid(ctx: Context, site: str, corrupt: str = CORRUPT, lm: ji.LanguageModel | None = None) -> Grid:
    """One pair over all layers and positions, or heads."""
    lm = lm or ctx.lm
    good, bad = (np.asarray(lm.to_tokens(text).ids) for text in (CLEAN, corrupt))
    return Grid(good, bad, *_names(lm, ["Mary"], ["John"]), site, _axes(lm, site, good.shape[1]))


def eight_grid(ctx: Context, site: str) -> Grid:
    """Eight pairs over all layers and positions, or heads."""
    text = "Then, {} and {} went to the {}. {} gave a {} to"
    sides = []
    for giver in (1, 0):
        texts = [text.format(*names[:2], names[3], names[giver], names[4]) for names in PAIRS]
        sides.append(np.asarray(ctx.lm.to_tokens(texts).ids))
    answers, others = _names(ctx.lm, [names[0] for names in PAIRS], [names[1] for names in PAIRS])
    return Grid(sides[0], sides[1], answers, others, site, _axes(ctx.lm, site, sides[0].shape[1]))


def long_grid(ctx: Context, spread: bool) -> Grid:
    """256 tokens, 32 positions: the last of a pair that differs only there, or evenly spread ones of a pair that shares nothing."""
    last = " Then, {0} and {1} went to the store after work. {0} was happy to see {1} there, and so {1} gave a drink to"
    before = np.asarray(ctx.lm.to_tokens(TEXT).ids)[0]
    ends = [np.asarray(ctx.lm.to_tokens(last.format(*names)).ids)[0] for names in (("Mary", "John"), ("John", "Mary"))]
    good, bad = (np.concatenate([before[: 256 - len(end)], end])[None] for end in ends)
    assert good.shape == bad.shape == (1, 256), "the text is long enough"
    if spread:
        bad = bad.copy()
        bad[0, 0] = ctx.lm.to_id("When")
    positions = np.linspace(0, 255, 32).round().astype(int) if spread else np.arange(224, 256)
    over = {"layer": range(ctx.lm.config.n_layers), "position": positions.tolist()}
    return Grid(good, bad, *_names(ctx.lm, ["Mary"], ["John"]), "resid_pre", over)


def _names(lm: ji.LanguageModel, answers: Sequence[str], others: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Ids of names with their leading space."""
    mine, its = (np.asarray([lm.to_id(f" {name}") for name in names], np.int32) for names in (answers, others))
    return mine, its


def _axes(lm: ji.LanguageModel, site: str, positions: int) -> dict[str, Sequence[int]]:
    second: dict[str, Sequence[int]] = {"head": range(lm.config.n_heads)} if site == "z" else {"position": range(positions)}
    return {"layer": range(lm.config.n_layers)} | second


# --------------------------------------------------------------------------------------------------------- side by side


def compare(
    ctx: Context, grid: Grid, bars: Bars, title: str, *, whole: bool = False, sight: bool = False, first: bool = False, slow: bool = False
) -> None:
    """One grid: ours and the peers', compared and timed.

    Args:
        ctx: the run's.
        grid: the sweep.
        bars: what is to be reached.
        title: what reports call it.
        whole: whether the peer computes the whole grid once.
        sight: whether nnsight takes part.
        first: whether first sweeps of fresh processes take part.
        slow: whether a sweep takes minutes: three rounds of one each.
    """
    ours = functools.partial(grid.patch, ctx.lm)
    with Observed() as observed:
        result = ours()
    report, bars = ctx.report, bars.here
    contenders = [Contender(OURS, timed(ours), 1 if slow else 2, warm=True), Contender(PRODUCT, timed(_product()), 3)]
    contenders += _peers(ctx, grid, result, title, sight)
    founds: list[dict[str, Any]] = []
    if first and not ctx.options.device_only:
        contenders.append(Contender(FIRST, functools.partial(_first_sweep, ctx, grid, founds), 1, warm=True))
    times = race(contenders, min(ctx.few, 3) if slow else ctx.few, ctx.pids)
    report.race(f"{title}: {len(grid.cells)} cells, {len(grid.clean)} x {grid.clean.shape[1]} tokens", times)
    for name, least in _against(times, bars).items():
        report.speedup(f"{title}: times faster than {name}", times, OURS, name, least)
    if founds:
        if ctx.peer:
            report.speedup(f"{title}, with compiling: times faster than {LENS}", times, FIRST, LENS, bars.compiling)
        _compiling(ctx, title, founds)
    if whole and ctx.peer and not ctx.options.sample_only:
        _whole(ctx, grid, result, title, times)
    _counted(ctx, observed, title, times)


def _against(times: Race, bars: Bars) -> dict[str, float | None]:
    """Peers of a race, and how many times faster ours is to be."""
    least = {LENS: bars.warm, f"{LENS}, one pair at a time": bars.warm, f"{LENS}, batched": bars.batched, SIGHT: None}
    return {name: bar for name, bar in least.items() if name in times.seconds}


def _peers(ctx: Context, grid: Grid, result: GridResult, title: str, sight: bool) -> list[Contender]:
    """The peers' work on a sample of the cells, once it gives the same, scaled to the grid."""
    if ctx.peer is None:
        return []
    cells, count, pairs = grid.cells, ctx.options.cells, len(grid.clean)
    ways: dict[str, tuple[str, list[Any]]] = {}
    if pairs == 1:
        ways[LENS] = ("lens_grid", _sample(cells, count))
    else:
        ways[f"{LENS}, one pair at a time"] = ("lens_grid", _sample([(*cell, pair) for cell in cells for pair in range(pairs)], count))
        ways[f"{LENS}, batched"] = ("lens_grid", _sample(cells, max(count // 2, 1)))
    if sight:
        ways[SIGHT] = ("nnsight_grid", _sample(cells, max(count // 4, 1)))
    contenders = []
    for name, (function, sample) in ways.items():
        alone = len(sample[0]) == 3
        extra = {"batched": False} if alone else {}
        work = ctx.peer.prepare(f"peer_sweeps.{function}", folder=str(ctx.folder), site=grid.site, cells=sample, **grid.ids, **extra)
        _agree(ctx, f"{title}: {name}", grid, result, sample, work.arrays()["values"])
        scale = len(cells) * (pairs if alone else 1) / len(sample)
        contenders.append(Contender(name, lambda work=work, scale=scale: work.once() * scale, 1))
        ctx.report.note(f"{title}: {name} was timed on {len(sample)} cells and scaled by {scale:.3g}.")
    return contenders


def _sample(cells: list[Any], count: int) -> list[Any]:
    """So many cells of a grid, drawn with one seed, in the order of the grid."""
    order = np.random.default_rng(0).permutation(len(cells))[:count]
    return [cells[i] for i in np.sort(order)]


def _agree(
    ctx: Context, what: str, grid: Grid, result: GridResult, cells: Sequence[tuple[int, ...]], theirs: np.ndarray, most: float = APART
) -> None:
    """Refuses to time what does not agree, and reports by how much it differs."""
    flat = np.asarray(result.per_example).reshape(len(grid.clean), -1)
    place = {cell: number for number, cell in enumerate(grid.cells)}
    rows = [flat[:, place[cell[0], cell[1]]] for cell in cells]
    ours = np.stack([row if len(cell) == 2 else row[cell[2] : cell[2] + 1] for cell, row in zip(cells, rows, strict=True)])
    apart = float(np.abs(ours - theirs).max()) / abs(float(np.mean(result.clean) - np.mean(result.corrupt)))
    if not apart <= most:
        raise WrongResult(f"{what}: some cell differs by {apart:.1e} of the metric's range; at most {most:.0e} is rounding.")
    ctx.report.figure(f"{what}: largest difference, of the metric's range", apart, unit="", bar=most, detail=f"{len(cells)} cells")


def _whole(ctx: Context, grid: Grid, result: GridResult, title: str, times: Race) -> None:
    """The whole grid by TransformerLens, once: its values, and how far the scaled time is from it."""
    assert ctx.peer is not None
    log(f"    {LENS}, the whole grid, once")
    work = ctx.peer.prepare("peer_sweeps.lens_grid", folder=str(ctx.folder), site=grid.site, cells=grid.cells, **grid.ids)
    start = time.perf_counter()
    values = work.arrays()["values"]
    seconds, scaled = time.perf_counter() - start, times.median(LENS)
    _agree(ctx, f"{title}: {LENS}, whole grid", grid, result, grid.cells, values)
    ctx.report.figure(f"{title}: {LENS}, whole grid once", seconds, unit="s", detail=f"scaled from the sample: {scaled:.1f} s")


def _product() -> Callable[[], Any]:
    """A product of large square matrices in float32: the rate that the machine can reach."""
    a, b = (jnp.asarray(np.random.default_rng(seed).normal(size=(SIDE, SIDE)), jnp.float32) for seed in (0, 1))
    product = jax.jit(functools.partial(jnp.matmul, precision="highest"))
    return lambda: product(a, b)


def _counted(ctx: Context, observed: Observed, title: str, times: Race) -> None:
    """Operations against the fewest, and against the machine's rate."""
    executed, fewest = observed.executed(ctx.lm), observed.fewest(ctx.lm)
    detail = f"{executed / 1e9:.1f} / {fewest / 1e9:.1f} GFLOP, {len(observed.chunks)} chunks"
    ctx.report.figure(f"{title}: operations executed / fewest possible", executed / fewest, bar=1.25, detail=detail)
    share = executed / (2 * SIDE**3) / times.ratio(OURS, PRODUCT)
    rate, best = executed / times.median(OURS), 2 * SIDE**3 / times.median(PRODUCT)
    detail = f"{rate / 1e9:.0f} of {best / 1e9:.0f} GFLOP/s"
    ctx.report.figure(f"{title}: rate, of a large matrix product's", share, unit="", detail=detail, race=times)


def _first_sweep(ctx: Context, grid: Grid, founds: list[dict[str, Any]]) -> float:
    """Seconds of the first sweep of a process that has no compiled programs."""
    founds.append(fresh(sys.executable, "ours_sweeps", path=str(ctx.gguf), over=grid.points, sites=[grid.site], **grid.ids))
    return float(founds[-1]["first"])


def _compiling(ctx: Context, title: str, founds: list[dict[str, Any]]) -> None:
    """What compiling takes of a first sweep, and that a second one compiles nothing."""
    seconds = statistics.median(found["first"] - found["second"] for found in founds)
    stages = {name: statistics.median(found["stages"].get(name, 0.0) for found in founds) for name in founds[0]["stages"]}
    detail = ", ".join(f"{name.replace('_', ' ')} {value:.2f} s" for name, value in stages.items())
    ctx.report.figure(f"{title}: compiling", seconds, unit="s", detail=detail)
    again = founds[0]["again"]
    ctx.report.figure(f"{title}: programs compiled by a second sweep", len(again), unit="", bar=0, detail=", ".join(again))


# ------------------------------------------------------------------------------------------------------ measurements


def pair(ctx: Context, site: str, bars: Bars) -> None:
    """The pair of the documentation."""
    compare(ctx, pair_grid(ctx, site), bars, f"{site}, one pair", whole=True, sight=True, first=True)


def apart(ctx: Context, site: str, bars: Bars) -> None:
    """A pair that differs from its first token: nothing is shared."""
    compare(ctx, pair_grid(ctx, site, ANOTHER), bars, f"{site}, nothing shared")


def eight(ctx: Context, site: str, bars: Bars) -> None:
    """Eight pairs in one call."""
    compare(ctx, eight_grid(ctx, site), bars, f"{site}, 8 pairs")


def long(ctx: Context, spread: bool, bars: Bars) -> None:
    """256 tokens."""
    title = "256 tokens, 32 spread positions, nothing shared" if spread else "256 tokens, the last 32 positions"
    compare(ctx, long_grid(ctx, spread), bars, title, slow=True)


def together(ctx: Context) -> None:
    """Three sites in one call, beside three calls, and what that compiles."""
    grid, sites = pair_grid(ctx, "resid_pre"), ["attn_out", "mlp_out", "resid_pre"]
    at_once = functools.partial(grid.patch, ctx.lm, sites=sites)
    one_by_one = {site: functools.partial(grid.patch, ctx.lm, site=site) for site in sites}
    for number, (site, sweep) in enumerate(one_by_one.items()):
        if not np.allclose(at_once().values[number], sweep().values, rtol=0, atol=1e-5 * np.ptp(sweep().values)):
            raise WrongResult(f"{site} alone and with others gives two results.")
    times = race([Contender("one call", timed(at_once)), *(Contender(site, timed(sweep)) for site, sweep in one_by_one.items())], ctx.few)
    ctx.report.race("three sites, 3 x 30 x 14 cells", times)
    ratio = statistics.median(
        one / sum(rest) for one, *rest in zip(times.seconds["one call"], *(times.seconds[site] for site in sites), strict=True)
    )
    detail = f"{1e3 * times.median('one call'):.0f} / {1e3 * sum(times.median(site) for site in sites):.0f} ms"
    ctx.report.figure("three sites: one call / the sum of three", ratio, bar=1.1, detail=detail, race=times)
    if not ctx.options.device_only:
        found = fresh(sys.executable, "ours_sweeps", path=str(ctx.gguf), over=grid.points, sites=sites, **grid.ids)
        sweeps = [name for name in found["programs"] if "program" in name]
        ctx.report.figure("three sites: sweeping programs compiled", len(sweeps), unit="", bar=3, detail=", ".join(sweeps))
        ctx.report.figure("three sites: programs compiled by a second call", len(found["again"]), unit="", bar=0)


def memory(ctx: Context) -> None:
    """Bytes of a sweep by the compiler's own analysis beside the plan, and the anonymous memory of whole processes."""
    grids = {"one pair": pair_grid(ctx, "resid_pre"), "8 pairs": eight_grid(ctx, "resid_pre"), "256 tokens": long_grid(ctx, spread=True)}
    for name, grid in grids.items():
        with Observed(run=False) as observed:
            grid.patch(ctx.lm)
        planned, compiled = observed.planned_bytes(ctx.lm, sites=(grid.site,)), observed.compiled_bytes()
        detail = f"{compiled / 1e6:.1f} / {planned / 1e6:.1f} MB; {(free_memory()[0] or 0) / 1e9:.1f} GB free"
        ctx.report.figure(f"{name}: memory by the compiler / planned", compiled / planned, bar=1.2, least=0.8, detail=detail)
    if ctx.options.device_only:
        return
    grid = grids["one pair"]
    given = {"path": str(ctx.gguf), "over": grid.points, "sites": [grid.site]}
    ours = fresh(sys.executable, "ours_sweeps", watch_memory=True, **given, **grid.ids)
    ctx.report.figure("one pair: anonymous memory of a process beyond the model, compiling included", ours["anonymous"] / 1e6, unit="MB")
    if ctx.peer_python:
        cells = _sample(grid.cells, 8)
        given = {"folder": str(ctx.folder), "site": grid.site, "cells": cells}
        theirs = fresh(ctx.peer_python, "lens_sweep", watch_memory=True, **given, **grid.ids)
        ctx.report.figure(f"one pair: the same of {LENS}, 8 cells", theirs["anonymous"] / 1e6, unit="MB")


def gpt2(ctx: Context) -> None:
    """A random model of GPT-2's architecture: every cell of three grids, both ways round, beside TransformerLens. Nothing is timed."""
    if ctx.peer is None:
        return
    lm = _random_gpt2()
    folder = ji.save(lm, ctx.scratch / "gpt2")
    random = np.random.default_rng(1)
    good, bad = random.integers(0, lm.config.d_vocab, (2, 2, 24))
    bad[0, :5] = good[0, :5]  # one pair shares what comes first, the other nothing
    change = np.asarray(ji.run(lm, good).logits - ji.run(lm, bad).logits)[:, -1]
    answers, others = (place(change, axis=1).astype(np.int32) for place in (np.argmax, np.argmin))
    for site in ("resid_pre", "z", "mlp_out"):
        grid = Grid(good, bad, answers, others, site, _axes(lm, site, good.shape[1]))
        for mode, sides in (("denoise", grid), ("noise", dataclasses.replace(grid, clean=bad, corrupt=good))):
            work = ctx.peer.prepare("peer_sweeps.lens_grid", folder=str(folder), site=site, cells=grid.cells, bare=True, **sides.ids)
            what = f"random GPT-2, {site}, {mode}: {LENS}"
            _agree(ctx, what, grid, grid.patch(lm, mode=mode), grid.cells, work.arrays()["values"], ROUNDING)


def _random_gpt2() -> ji.LanguageModel:
    """Weights that are large enough for a wrong model to show, and no gain or bias at its neutral value."""
    random = np.random.default_rng(0)

    def leaf(path: Any, shape: jax.ShapeDtypeStruct) -> jax.Array:
        name, value = jax.tree_util.keystr(path), random.normal(size=shape.shape)
        if "['W" not in name:
            return jnp.asarray(0.3 * value + ("['w']" in name), jnp.float32)
        fan_in = GPT2.d_mlp if "W_out" in name else GPT2.d_model
        return jnp.asarray(value * (0.8 if "embed" in name else 1.5 / np.sqrt(fan_in)), jnp.float32)

    return ji.LanguageModel(jax.tree_util.tree_map_with_path(leaf, parameter_shapes(GPT2)), GPT2)


def gemma(ctx: Context) -> None:
    """Gemma 3 270M, where its file is given."""
    if ctx.options.gemma is None:
        ctx.report.note("Gemma 3 270M was left out: its file is named by --gemma.")
        return
    other = ctx.of(ctx.options.gemma)
    compare(other, pair_grid(other, "resid_pre"), Bars(60), "Gemma 3 270M, resid_pre")


def _part(run: Callable[..., None], about: str, *given: Any) -> Measurement:
    return Measurement(lambda ctx: run(ctx, *given), about)


SUITE = Suite(
    "Sweeps: activation patching of whole grids, SmolLM2-135M-Instruct, float32",
    {
        "pair-resid": _part(pair, "30 layers x 14 positions, beside the peers", "resid_pre", Bars(45, 18, accelerator=200)),
        "pair-z": _part(pair, "30 layers x 9 heads, beside the peers", "z", Bars(20, 11, accelerator=200)),
        "apart-resid": _part(apart, "positions where the prompts differ from the first token on", "resid_pre", Bars(16)),
        "apart-z": _part(apart, "heads where the prompts differ from the first token on", "z", Bars(8)),
        "eight-resid": _part(eight, "8 pairs in one call, positions", "resid_pre", Bars(20, batched=12)),
        "eight-z": _part(eight, "8 pairs in one call, heads", "z", Bars(10, batched=4)),
        "sites": _part(together, "three sites in one call, and what it compiles"),
        "long-last": _part(long, "256 tokens, the last 32 positions", False, Bars(15)),
        "long-spread": _part(long, "256 tokens, 32 positions, nothing shared", True, Bars(2.8)),
        "random-gpt2": _part(gpt2, "a random GPT-2 beside TransformerLens, cell by cell, both ways round"),
        "sweep-memory": _part(memory, "memory by the compiler, by the plan and of processes"),
        "gemma": _part(gemma, "Gemma 3 270M, 18 layers x 15 positions (--gemma FILE)"),
    },
    speedups,
)
