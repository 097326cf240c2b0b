"""The engine against plain runs, cell by cell, at every live site of a block, both ways round, in chunks of several sizes.

In float64 they agree to 1e-10 of the clean-corrupt range (1e-15 is usual): what is left in float32 is rounding, 1e-5 of it.
A few kinds of tiny models by default; every row of the parity table that has logits, with `make parity`.
"""

import dataclasses
import functools
import inspect
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.model.sites import SITES, site_names, site_of
from jaxinterp.runs import engine, measure
from jaxinterp.runs.cells import FromRun
from tests.parity import fixtures, ours
from tests.tiny import CONFIGS, params

BOUNDS = {"float64": 1e-10, "float32": 1e-5}
TINY = ("llama", "gemma", "moe")
CUT_AT_A_HEAD = ("q", "z", "head_out")
ROWS = fixtures.names()
WITHOUT_LOGITS = ("bert_model",)
Cells = list[list[ji.edits.Edit]]
SAME = np.asarray([2, 1, 1])  # positions of each pair before which it is equal


SWEEP = jax.jit(engine.sweep_program, static_argnames=engine.STATIC, compiler_options=ours.QUICK)
WHOLE = jax.jit(inspect.unwrap(engine.whole_program), static_argnames=(*engine.STATIC, "resume"), compiler_options=ours.QUICK)


@pytest.fixture(autouse=True)
def _compiled_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "jitted", lambda: SWEEP)
    monkeypatch.setattr(measure, "whole_program", WHOLE)


def pair(vocabulary: int) -> tuple[ji.Tokens, ji.Tokens]:
    """Three pairs of prompts: of the whole width, padded on the left, padded on the right."""
    random = np.random.default_rng(3)
    mask = np.ones((3, 8), bool)
    mask[1, :2] = mask[2, 5:] = False
    ids = random.integers(0, vocabulary, mask.shape)
    other = ids.copy()
    for row, column in ((0, 2), (0, 7), (1, 3), (1, 7), (2, 1), (2, 4)):
        other[row, column] = (other[row, column] + random.integers(1, vocabulary)) % vocabulary
    return ji.Tokens.from_ids(ids, mask), ji.Tokens.from_ids(other, mask)


def cells_of(config: ji.TransformerConfig) -> tuple[list[str], Cells]:
    """Every live site of a block, and three cells of each: its edit acts, those of other sites stand at a layer that no model has."""
    sites = [name for name in site_names(config, opt_in=True) if SITES[name].per_layer and not SITES[name].read_only]
    cells = []
    for own in sites:
        layers = site_of(own, config).layers(config)
        for layer, position in ((layers[0], 2), (layers[-1], 3), (layers[-1], -1)):
            edits = []
            for name in sites:
                axes = SITES[name].axes
                where: dict[str, Any] = {"query" if "Q" in axes else "position": position}
                where |= {"head": 1} if name in CUT_AT_A_HEAD else {}
                made = ji.edits.replace(name, np.zeros((1,) * len(axes)), layer=layer if name == own else config.n_layers, **where)
                edits.append(dataclasses.replace(made, arguments=(FromRun(name, len(axes)),)))
            cells.append(edits)
    return sites, cells


class Plain:
    """The same cells by plain runs, one after another; the answers are those that the two sides differ in most."""

    def __init__(
        self, lm: ji.LanguageModel, sides: tuple[ji.Tokens, ji.Tokens], sites: list[str], cells: list[list[ji.edits.Edit]]
    ) -> None:
        config, dtype, batch = lm.config, jax.tree.leaves(lm.params)[0].dtype, sides[0].ids.shape
        nothing = {name: jnp.zeros(site_of(name, config).shape(config, *batch), dtype) for name in sites}
        off = [dataclasses.replace(edit, select=edit.select | {"layer": np.asarray(config.n_layers)}) for edit in cells[0]]

        @functools.partial(jax.jit, compiler_options=ours.QUICK)
        def run(params: Any, tokens: ji.Tokens, edits: Any, values: Any) -> Any:
            edits = [dataclasses.replace(edit, arguments=(values[edit.site],)) for edit in edits]
            trace = ji.forward(params, tokens, config, edits=edits, sites=tuple(sites))
            return jnp.take_along_axis(trace.logits, jnp.asarray(tokens.last)[:, None, None], axis=1)[:, 0], trace.activations

        self._run = lambda side, edits, values: run(lm.params, side, [dataclasses.replace(edit, arguments=()) for edit in edits], values)
        (clean, corrupt), seen = zip(*(self._run(side, off, nothing) for side in sides), strict=True)
        self._seen, change = seen, np.asarray(clean - corrupt)
        self.answers, self.others = change.argmax(axis=1), change.argmin(axis=1)
        self.sides = (self._metric(clean), self._metric(corrupt))
        self.range = abs(float(self.sides[0].mean() - self.sides[1].mean()))

    def _metric(self, logits: Any) -> np.ndarray:
        rows = np.arange(len(self.answers))
        return np.asarray(logits)[rows, self.answers] - np.asarray(logits)[rows, self.others]

    def values(self, base: ji.Tokens, source: int, cells: Cells) -> np.ndarray:
        """[C B]: the metric of every cell with values of the side `source`."""
        return np.stack([self._metric(self._run(base, edits, self._seen[source])[0]) for edits in cells])


def compared(lm: ji.LanguageModel, dtype: str, sizes: tuple[int | None, ...]) -> None:
    """Cells in one chunk and in several, packed if the model is causal, against plain runs, both ways round."""
    sites, cells = cells_of(lm.config)
    sides = pair(lm.config.d_vocab)
    plain = Plain(lm, sides, sites, cells)
    metric = ji.metrics.logit_difference(plain.answers, plain.others)
    bound = BOUNDS[dtype] * plain.range
    for base, other in ((0, 1), (1, 0)):
        want = plain.values(sides[base], other, cells)
        moved = np.abs(want - plain.sides[base]).max(axis=1).reshape(len(sites), 3)
        assert moved.max(axis=1).min() > 10 * bound, f"no cell of {sites[moved.max(axis=1).argmin()]} changes anything"
        for size in sizes:
            found = measure.run_cells(lm, sides[base], sides[other], cells, metric, same_until=SAME, batch_size=size)
            assert dict(found.how)["run"] == ("packed" if lm.config.causal else "whole runs")
            apart = np.abs(found.values - want).max(axis=1)
            worst = int(apart.argmax())
            assert apart[worst] <= bound, f"{sites[worst // 3]}: {apart[worst] / plain.range:.1e} of the range"
            np.testing.assert_allclose(found.base, plain.sides[base], rtol=0, atol=bound)
            np.testing.assert_allclose(found.other, plain.sides[other], rtol=0, atol=bound)


@pytest.mark.parametrize("name", TINY)
def test_packed_cells_of_tiny_models_equal_their_own_runs_at_every_site(name: str) -> None:
    with jax.enable_x64(True):
        compared(ji.LanguageModel(params(CONFIGS[name], jnp.float64), CONFIGS[name]), "float64", (None,))


@pytest.mark.parity
@pytest.mark.parametrize("name", [name for name in ROWS if name not in WITHOUT_LOGITS])
def test_cells_of_every_family_equal_their_own_runs_at_every_site(name: str, tmp_path: Path) -> None:
    folder = fixtures.load(name).write_folder(tmp_path)
    for dtype in ("float64", "float32"):
        with jax.enable_x64(dtype == "float64"):
            lm = ours.load_ours(folder, dtype)
            compared(lm, dtype, (None, len(cells_of(lm.config)[0])) if dtype == "float64" else (None,))
    jax.clear_caches()  # thousands of kernels a row: a process may map only so many pieces of memory


def test_rows_without_logits_are_those_that_have_no_unembedding() -> None:
    assert {name for name in ROWS if fixtures.load(name).config["architectures"][0] == "BertModel"} == set(WITHOUT_LOGITS)
