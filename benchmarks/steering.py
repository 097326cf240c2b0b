"""Steering: a sweep of layers and strengths against as many batched forward passes of the same prompts in the same run.

SmolLM2-135M-Instruct in float32, the sentiment direction, 30 layers x 9 strengths. The ideal that the sweep is held against runs the
prompts once for each cell, compiled, as one batch; it is what a loop over `ji.run` would take without any overhead. Cells are compared with
such runs before anything is timed.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import jaxinterp as ji
from benchmarks.context import Context, Measurement, Suite
from benchmarks.counting import Chunk, Observed
from benchmarks.harness import Contender, Race, WrongResult, race, timed
from jaxinterp.data.plain import PARAGRAPHS
from jaxinterp.data.sentiment import sentiment
from jaxinterp.methods.steering.operations import STRENGTHS
from jaxinterp.methods.steering.sentiment import sentiment_metric, sentiment_vector
from jaxinterp.methods.steering.sweep import TEXTS, TOKENS, sweep
from jaxinterp.methods.steering.sweep_result import SteeringSweep
from jaxinterp.methods.steering.vector import SteeringVector
from jaxinterp.model.tokens import Tokens
from jaxinterp.runs import engine
from jaxinterp.runs.cost import Cost
from jaxinterp.runs.layout import tokens_of
from jaxinterp.runs.measure import run_cells
from jaxinterp.runs.metrics import cross_entropy, kl_divergence

OURS, FORWARD, BLOCKS = "ji.steering.sweep", "forward pass", "forward pass without unembedding"
APART = 1e-3
"""Largest difference of a cell from its own run, of the range of the metric over the grid."""


@dataclasses.dataclass(frozen=True)
class Grid:
    """One sweep: the model, its direction, the prompts and what is measured on them."""

    lm: ji.LanguageModel
    vector: SteeringVector
    prompts: Tokens
    metric: Any

    @property
    def cells(self) -> int:
        return len(self.vector.layers) * len(STRENGTHS)

    def sweep(self, neutral: Any) -> SteeringSweep:
        return sweep(self.lm, self.vector, self.prompts, self.metric, neutral=neutral)


def grid_of(ctx: Context) -> Grid:
    """Sentiment over all layers, on sixteen prompts."""
    lm = ctx.lm
    return Grid(lm, sentiment_vector(lm), lm.to_tokens(list(sentiment(lm).prompts)), sentiment_metric(lm).bind(lm))


def neutral_of(ctx: Context) -> Tokens:
    """The default neutral texts."""
    tokens = ctx.lm.to_tokens(list(PARAGRAPHS[:TEXTS]))
    return Tokens.from_ids(tokens.ids[:, :TOKENS], tokens.mask[:, :TOKENS])


def forward(ctx: Context, tokens: Tokens, stop: int | None = None) -> Callable[[], Any]:
    """One compiled pass of all prompts, as work that returns its arrays."""

    def work() -> Any:
        trace = ji.run(ctx.lm, tokens, sites={"resid_post": ji.at(layer=ctx.lm.config.n_layers - 1, position=-1)}, stop=stop)
        return trace.padded_logits, trace.padded

    return work


def check(grid: Grid, found: SteeringSweep) -> None:
    """Refuses to time a sweep with a cell that is not that of its own run.

    Raises:
        WrongResult: saying which.
    """
    random, spread = np.random.default_rng(0), float(np.ptp(found.values))
    for row, column in zip(random.integers(0, len(found.layers), 8), random.integers(0, len(found.strengths), 8), strict=True):
        edit = grid.vector.add(found.strengths[column], layer=found.layers[row])
        want = float(np.asarray(grid.metric(ji.run(grid.lm, grid.prompts, edits=edit))).mean())
        if not abs(want - float(found.values[row, column])) <= APART * spread:
            raise WrongResult(
                f"layer {found.layers[row]}, strength {found.strengths[column]:g}: {found.values[row, column]:.4f}, not {want:.4f}."
            )


def against(times: Race, count: int, parts: Sequence[str], name: str) -> Race:
    """The sweep beside as many passes, in the same rounds."""
    passes = [count * sum(seconds) for seconds in zip(*(times.seconds[part] for part in parts), strict=True)]
    return Race({OURS: times.seconds[OURS], name: passes}, times.others)


def alone(ctx: Context) -> None:
    """The prompts alone: what is compiled, and the time against the ideal."""
    grid = grid_of(ctx)
    programs = engine.jitted()._cache_size()
    found = grid.sweep(())
    ctx.report.figure("prompts: programs compiled for the grid", engine.jitted()._cache_size() - programs, unit="", bar=1)
    check(grid, found)
    works = {FORWARD: forward(ctx, grid.prompts), BLOCKS: forward(ctx, grid.prompts, ctx.lm.config.n_layers)}
    contenders = [Contender(OURS, timed(lambda: grid.sweep(())), 1, warm=True)]
    contenders += [Contender(name, timed(work), 5) for name, work in works.items()]
    times = race(contenders, min(ctx.few, 5), ctx.pids)
    ctx.report.race(f"{grid.cells} cells, {len(grid.prompts.ids)} prompts", times)
    for part in works:
        name = f"{grid.cells} x {part}"
        ctx.report.ratio(f"prompts: sweep / {name}", against(times, grid.cells, [part], name), OURS, name, 3.0)


def with_neutral(ctx: Context) -> None:
    """The same with neutral texts, whose every token is unembedded in every cell, twice: for KL and for the loss."""
    grid, texts = grid_of(ctx), neutral_of(ctx)
    check(grid, grid.sweep(None))
    parts = {f"{FORWARD}, prompts": forward(ctx, grid.prompts), f"{FORWARD}, neutral texts": forward(ctx, texts)}
    contenders = [Contender(OURS, timed(lambda: grid.sweep(None)), 1, warm=True)]
    contenders += [Contender(name, timed(work), 5) for name, work in parts.items()]
    times = race(contenders, min(ctx.few, 3), ctx.pids)
    ctx.report.race(f"{grid.cells} cells, {len(grid.prompts.ids)} prompts and {len(texts.ids)} neutral texts", times)
    name = f"{grid.cells} x both"
    ctx.report.ratio(f"with neutral texts: sweep / {name}", against(times, grid.cells, list(parts), name), OURS, name, 3.0)


def memory(ctx: Context) -> None:
    """What the compiler gives the first chunk of both halves of a sweep, against what was planned for it."""
    grid, texts = grid_of(ctx), neutral_of(ctx)
    cells = [[grid.vector.add(strength, layer=layer)] for layer in grid.vector.layers for strength in STRENGTHS if strength]
    last, everywhere = kl_divergence(ji.run(grid.lm, grid.prompts)), kl_divergence(ji.run(grid.lm, texts), position="all")
    halves = {"prompts": (grid.prompts, {"metric": grid.metric, "kl": last})}
    halves |= {"neutral texts": (texts, {"kl": everywhere, "loss": cross_entropy()})}
    for name, (tokens, metrics) in halves.items():
        with Observed(run=False) as observed:
            run_cells(grid.lm, tokens, None, cells, metrics)
        planned, compiled = planned_bytes(grid.lm, observed.chunks[0]), observed.compiled_bytes()
        detail = f"{compiled / 1e6:.0f} / {planned / 1e6:.0f} MB, {len(observed.chunks[0].reach.start)} cells at once"
        ctx.report.figure(f"{name}: memory by the compiler / planned", compiled / planned, bar=1.0, detail=detail)


def planned_bytes(lm: ji.LanguageModel, chunk: Chunk) -> int:
    """Bytes beyond the weights that the engine planned for a chunk whose metrics read the whole vocabulary."""
    cost = Cost(lm, chunk.tokens, chunk.columns, True, 1, chunk.layout.block)
    return cost.bytes(len(chunk.reach.start), int(tokens_of(chunk.reach, chunk.tokens, chunk.columns).sum()))


SUITE = Suite(
    "Steering: sweeps of layers and strengths, SmolLM2-135M-Instruct, float32",
    {
        "sweep-16": Measurement(alone, "30 layers x 9 strengths on 16 prompts, against 270 forward passes"),
        "sweep-neutral": Measurement(with_neutral, "the same with neutral texts"),
        "sweep-plan": Measurement(memory, "memory by the compiler and by the plan"),
    },
)
