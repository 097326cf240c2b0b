"""Causal scrubbing: how much of a behaviour a hypothesis explains (Chan et al. 2022, Redwood Research).

A hypothesis is a tree. Its root is the output; a node is an activation together with a feature, a label of every input, and
says: for what is above it, this activation carries that feature and nothing else; its children say how it is computed.
What a hypothesis does not name must not matter. The algorithm samples activations that agree with all of this:

    scrub(node, x):                                  the activation of `node`, where x is the input it stands for
        no children: the activation of `node` on x
        for each child c: draw x_c with c's feature equal to that of x;  v_c = scrub(c, x_c)
        draw y from all inputs                       for everything that the hypothesis does not name
        the activation of `node` computed from the v_c of its children, and from y for every other input of it

    loss recovered = (E metric(scrubbed) - E metric(random)) / (E metric(intact) - E metric(random))

metric(scrubbed) is of the root's output on a reference input x, judged by the answers of x; "random" is the plain output on an
independent input, judged by those of x. The model is a tree of all its paths, as in the original: a child reaches its parent
directly through the residual stream, and every attention and MLP layer between them sees what it saw on y. One y serves all
that a node does not name.

Exact: every activation is computed in a run. Cost: for every sample one run for a node without children, two for one with.
Misleads: a high share does not prove a hypothesis. Features that are finer than claimed (the input itself at worst) recover
everything, errors may cancel on average, and a model may not need what it carries: look at `scrubbed` example by example, and
test coarser hypotheses beside it.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxinterp.errors import InputError
from jaxinterp.methods.positions import position_table, role_positions
from jaxinterp.model import edits as edit_makers
from jaxinterp.model.edits import Edit, check_edits
from jaxinterp.model.language_model import LanguageModel, Prompts
from jaxinterp.model.sites import SITES, check_site
from jaxinterp.model.tokens import Tokens
from jaxinterp.model.trace import Trace
from jaxinterp.runs.kept import Kept, code_of, digest_of
from jaxinterp.runs.measure import precise
from jaxinterp.runs.progress import Progress
from jaxinterp.runs.provenance import record
from jaxinterp.runs.run import run

BATCH = 32  # samples run at once
ORDER = tuple(SITES)


@dataclasses.dataclass(frozen=True)
class ScrubNode:
    """An activation of the model and what a hypothesis says it carries.

    Attributes:
        site: the site, "z", "mlp_out", "q" ...
        feature: [N] labels, one an input: the activation may be taken from any input of the same label. Numbers or strings.
        layer: the layer; None at "embed".
        head: int or [n], or None for all.
        position: an int or [n], the same in every input; [N n], those of each input, or {role: [N]}: the activation at an input's
            own positions is then written at those of the input that is run. None for all.
        neuron: as `head`.
        children: what it is computed from; none: it is taken whole from an input with the feature.
        name: for messages and results; by default the site, layer and head.
    """

    site: str
    feature: Any
    layer: int | None = None
    head: Any = None
    position: Any = None
    neuron: Any = None
    children: Sequence["ScrubNode"] = ()
    name: str = ""

    @property
    def label(self) -> str:
        where = ".".join(str(part) for part in (self.layer, self.head) if part is not None)
        return self.name or f"{self.site} {where}".strip()

    @property
    def selection(self) -> dict[str, Any]:
        chosen = {"layer": self.layer, "head": self.head, "position": self.position, "neuron": self.neuron}
        return {name: index for name, index in chosen.items() if index is not None}

    @property
    def order(self) -> tuple[int, int]:
        """Where it stands in the forward pass."""
        return (-1 if self.layer is None else self.layer, ORDER.index(self.site))


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["scrubbed", "intact", "random", "references", "inputs", "others"], meta_fields=["how"]
)
@dataclasses.dataclass(frozen=True)
class ScrubResult:
    """What scrubbing measured, on S samples.

    Attributes:
        scrubbed: [S], the metric of the scrubbed model.
        intact: [S], that of the model itself on the reference inputs.
        random: [S], that of its output on independent inputs.
        references: [S], the reference input of each sample.
        inputs: {path of a node: [S], the inputs that its activation stands for}; a path is "output > parent > node".
        others: {path of a node with children: [S], the inputs that all else was taken from}.
        how: how it was made.
    """

    scrubbed: Any
    intact: Any
    random: Any
    references: Any
    inputs: dict[str, Any]
    others: dict[str, Any]
    how: tuple[tuple[str, str], ...] = ()

    @property
    def recovered(self) -> float:
        """The share of the metric that the hypothesis recovers, a ratio of means: 1 all of it, 0 no more than a random input."""
        scrubbed, intact, random = (float(np.mean(value)) for value in (self.scrubbed, self.intact, self.random))
        if intact == random:
            raise InputError(f"The metric is {intact:.4g} intact and on random inputs, so there is nothing to recover.")
        return (scrubbed - random) / (intact - random)

    def __repr__(self) -> str:
        means = ", ".join(f"{name}={float(np.mean(getattr(self, name))):.4g}" for name in ("scrubbed", "intact", "random"))
        return f"ScrubResult({len(self.scrubbed)} samples, {means}, {', '.join(f'{k}={v}' for k, v in self.how)})"


@dataclasses.dataclass(frozen=True)
class _Drawn:
    """A node with the inputs that were drawn for it: `x` it stands for, `y` for all that it does not name."""

    node: ScrubNode | None
    path: str
    x: np.ndarray
    y: np.ndarray
    children: tuple["_Drawn", ...]

    def rows(self, chosen: np.ndarray) -> "_Drawn":
        return dataclasses.replace(self, x=self.x[chosen], y=self.y[chosen], children=tuple(child.rows(chosen) for child in self.children))

    def below(self) -> list["_Drawn"]:
        """It and all nodes below it."""
        return [self, *(node for child in self.children for node in child.below())]


def causal_scrubbing(
    lm: LanguageModel,
    prompts: Prompts,
    metric: Any,
    hypothesis: Sequence[ScrubNode],
    *,
    draws: int = 1,
    seed: int = 0,
    edits: Sequence[Edit] = (),
    batch_size: int | None = None,
    out: str | Path | None = None,
    bos: str | bool = "model",
    precision: str | None = "highest",
) -> ScrubResult:
    """Scrubs a hypothesis on a data set and measures what is left of the behaviour.

    Args:
        lm: the model.
        prompts: the data set, N inputs that align token by token.
        metric: what is measured, with answers for each input: arrays with N rows are taken to be one an input.
        hypothesis: the children of the output: what it is computed from.
        draws: samples for each input; every input is the reference that often.
        seed: of all samples.
        edits: act in every run.
        batch_size: samples run at once; None is 32.
        out: a folder that keeps finished batches; the same call goes on from them after a crash or Ctrl-C.
        bos: as for `run`.
        precision: as for `run`.

    Returns:
        A ScrubResult: `.scrubbed`, `.intact`, `.random` [S] and `.recovered`.

    Raises:
        InputError: inputs of different lengths, features without a label for each input, nodes that the model lacks, positions
            that an input lacks or names twice, a child that does not come before its parent, nodes of one parent that overlap in
            name, or a folder that holds something else.

    Example:
        >>> mover = ji.ScrubNode("z", feature=answers, layer=23, head=3, position=-1)
        >>> ji.causal_scrubbing(lm, prompts, metric, [mover]).recovered
    """
    tokens = lm.to_tokens(prompts, bos=bos)
    count, lengths = tokens.ids.shape[0], np.asarray(tokens.lengths)
    if lengths.min() != lengths.max() or not np.asarray(tokens.mask)[:, : lengths[0]].all():
        raise InputError(f"causal_scrubbing(): inputs must align token by token; they have {lengths.min()} to {lengths.max()} tokens.")
    if draws < 1 or count < 2:
        raise InputError(f"causal_scrubbing(): there are {count} inputs and draws is {draws}; expected at least 2 and 1.")
    if batch_size is not None and batch_size < 1:
        raise InputError(f"causal_scrubbing(): batch_size is {batch_size}; expected at least 1 sample, or None.")
    bound = metric if metric.bound else metric.bind(lm, tokens)
    hypothesis = _placed(hypothesis, tokens)
    _check(hypothesis, None, lm, tokens, "output")
    check_edits(edits, lm.config, tokens)
    random = np.random.default_rng(seed)
    references = np.tile(np.arange(count), draws)
    tree = _draw(None, "output", references, count, hypothesis, random)
    other = random.integers(0, count, len(references))
    runs = _Runs(lm, tokens, tuple(edits), precision)
    kept = None if out is None else Kept(out, _digest(runs, tree, other, bound))
    scrubbed, intact, baseline = _measured(runs, tree, other, bound, batch_size or BATCH, kept)
    nodes = tree.below()
    how = (("nodes", str(len(nodes) - 1)), ("seed", str(seed)), ("draws", str(draws)), ("bos", tokens.bos))
    how = (*how, *record(lm, tokens, bound, edits=edits))
    inputs, others = {node.path: node.x for node in nodes[1:]}, {node.path: node.y for node in nodes if node.children or node.node is None}
    return ScrubResult(scrubbed, intact, baseline, references, inputs, others, how)


def _measured(runs: "_Runs", tree: "_Drawn", other: np.ndarray, metric: Any, size: int, kept: Kept | None) -> np.ndarray:
    """[3 S]: the metric of every sample scrubbed, intact and on an independent input, batch by batch."""
    references, count = tree.x, runs.count
    values, done = np.full((3, len(references)), np.nan, precise(runs.setting[0])), np.zeros(len(references), bool)
    for part in kept.read() if kept else ():
        values[:, part["samples"]], done[part["samples"]] = part["values"], True
    waiting, size = np.flatnonzero(~done), min(size, len(references))
    with Progress("scrubbing", len(references), "samples") as progress:
        progress.advance(int(done.sum()))
        for begin in range(0, len(waiting), size):
            rows = waiting[begin : begin + size]
            filled = np.resize(rows, size)  # the last batch has the others' shape, and so their programs
            judge = _judge(metric, references[filled], count)
            traces = [runs.output(tree.rows(filled), judge.sites), *(runs.plain(x[filled], judge.sites) for x in (references, other))]
            judged = [dataclasses.replace(trace, padded_tokens=traces[1].padded_tokens) for trace in traces]  # of the reference inputs
            values[:, rows] = np.stack([np.asarray(judge(trace))[: len(rows)] for trace in judged])
            if kept is not None:
                kept.write({"samples": rows, "values": values[:, rows]}, int(rows.min()))
            progress.advance(len(rows))
    return values


def _digest(runs: "_Runs", tree: "_Drawn", other: np.ndarray, metric: Any) -> str:
    """A hash of everything that decides the samples' values."""
    lm, tokens, edits, precision = runs.setting
    nodes = [(node.path, None if node.node is None else node.node.site) for node in tree.below()]
    functions = [code_of(function) for function in (getattr(metric, "function", None), *(edit.function for edit in edits))]
    drawn = [(node.x, node.y, {} if node.node is None else node.node.selection) for node in tree.below()]
    return digest_of(lm.params, (tokens.arrays_only(), metric, edits, drawn, other), repr((nodes, functions, lm.config, precision)))


def _draw(
    node: ScrubNode | None, path: str, x: np.ndarray, count: int, children: Sequence[ScrubNode], random: np.random.Generator
) -> _Drawn:
    """Draws inputs for a node and all below it: x_c agrees with x on c's feature, y is any input."""
    below = []
    for child in children:
        labels = np.unique(np.asarray(child.feature), return_inverse=True)[1].reshape(-1)
        agreeing = [np.flatnonzero(labels == label) for label in range(labels.max() + 1)]
        mine = np.asarray([random.choice(agreeing[labels[i]]) for i in x])
        below.append(_draw(child, f"{path} > {child.label}", mine, count, child.children, random))
    return _Drawn(node, path, x, random.integers(0, count, len(x)), tuple(below))


def _judge(metric: Any, references: np.ndarray, count: int) -> Any:
    """The metric with the answers of the reference inputs, row by row."""
    return jax.tree.map(lambda leaf: leaf[references] if np.ndim(leaf) and np.shape(leaf)[0] == count else leaf, metric)


class _Runs:
    """The runs that scrubbing makes, on rows of the data set."""

    def __init__(self, lm: LanguageModel, tokens: Tokens, edits: tuple[Edit, ...], precision: str | None) -> None:
        self._lm, self._tokens, self._edits, self._precision = lm, tokens, edits, precision

    @property
    def setting(self) -> tuple[LanguageModel, Tokens, tuple[Edit, ...], str | None]:
        """What every run shares."""
        return self._lm, self._tokens, self._edits, self._precision

    @property
    def count(self) -> int:
        """Inputs of the data set."""
        return self._tokens.ids.shape[0]

    def plain(self, rows: np.ndarray, sites: Any = (), edits: Sequence[Edit] = ()) -> Trace:
        """The model on some inputs, in their order."""
        types = None if self._tokens.types is None else np.asarray(self._tokens.types)[rows]
        ids, mask, positions = (np.asarray(a)[rows] for a in (self._tokens.ids, self._tokens.mask, self._tokens.positions))
        prompts = Tokens(ids, mask, positions, types)
        return run(self._lm, prompts, sites=sites, edits=[*self._edits, *edits], precision=self._precision)

    def output(self, drawn: _Drawn, sites: Any) -> Trace:
        """The scrubbed model's output."""
        return self.plain(drawn.y, sites, self._inputs(drawn) if drawn.children else ())

    def value(self, drawn: _Drawn) -> Any:
        """The scrubbed activation of a node, on its site's axes without L."""
        node = drawn.node
        assert node is not None
        trace = self.plain(drawn.y, (node.site,), self._inputs(drawn)) if drawn.children else self.plain(drawn.x, (node.site,))
        return trace[node.site] if node.layer is None else trace[node.site][trace.layers_of(node.site).index(node.layer)]

    def _inputs(self, drawn: _Drawn) -> list[Edit]:
        """What a node sees: its children's scrubbed activations, and y for all else, since the layers between see y alone."""
        config = self._lm.config
        live = {name: _live(name, drawn.node, config.n_layers) for name in ("attn_in", "mlp_in") if not SITES[name].absent(config)}
        intact = self.plain(drawn.y, tuple(live))
        held = [edit_makers.replace(name, intact[name], where=~rows[:, None, None]) for name, rows in live.items()]
        return [*held, *(self._written(child, drawn.y) for child in drawn.children)]

    def _written(self, child: _Drawn, run: np.ndarray) -> Edit:
        """A child's activation in the run on the inputs `run`; where positions are each input's own, moved from its to theirs."""
        node, value = child.node, self.value(child)
        assert node is not None
        if np.ndim(node.position) < 2:
            return edit_makers.replace(node.site, value, **node.selection)
        came, goes, rows = node.position[child.y if child.children else child.x], node.position[run], np.arange(len(run))[:, None]
        moved = np.array(value)
        moved[rows, goes] = np.asarray(value)[rows, came]
        return edit_makers.replace(node.site, moved, **node.selection | {"position": goes})


def _live(name: str, node: ScrubNode | None, depth: int) -> np.ndarray:
    """[L] bool: the layers whose attention (MLP) is part of a node, and so sees what the node sees; all later ones do not matter."""
    if node is None or node.layer is None:
        return np.zeros(depth, bool)
    layers, place = np.arange(depth), ORDER.index(node.site)
    begin, end = ("attn_in", "attn_out") if name == "attn_in" else ("mlp_in", "mlp_out")
    return (layers == node.layer) & (ORDER.index(begin) <= place <= ORDER.index(end))


def _placed(nodes: Sequence[ScrubNode], tokens: Tokens) -> tuple[ScrubNode, ...]:
    """Nodes whose positions, where each input has its own, are an array [N n]."""
    out = []
    for node in nodes:
        what, position = f"causal_scrubbing(): positions of node {node.label!r}", node.position
        if isinstance(position, Mapping):
            position = np.stack(list(role_positions(position, tokens, what).values()), axis=1)
        elif np.ndim(position) > 1 if not isinstance(position, list | tuple) else any(np.ndim(row) for row in position):
            position = position_table(position, tokens, what)
        for number, row in enumerate(position if isinstance(position, np.ndarray) and position.ndim == 2 else ()):
            if len(set(row.tolist())) < len(row):
                raise InputError(f"{what}: input {number} has {row.tolist()}; expected as many different ones in every input.")
        out.append(dataclasses.replace(node, position=position, children=_placed(node.children, tokens)))
    return tuple(out)


def _check(nodes: Sequence[ScrubNode], parent: ScrubNode | None, lm: LanguageModel, tokens: Tokens, path: str) -> None:
    count = tokens.ids.shape[0]
    names = [node.label for node in nodes]
    for node in nodes:
        what = f"causal_scrubbing(): node {node.label!r} below {path}"
        site = check_site(node.site, lm.config)
        if not site.per_layer and node.site not in ("embed", "pos_embed", "type_embed"):
            raise InputError(f"{what}: site {node.site!r} comes after the blocks; name what it is computed from.")
        if (node.layer is None) == site.per_layer:
            raise InputError(f"{what}: expected a layer at sites of a block, and none at the embedding; got layer={node.layer}.")
        if np.shape(node.feature) != (count,):
            raise InputError(f"{what}: feature has shape {list(np.shape(node.feature))}; expected a label for each of the {count} inputs.")
        if any(np.ndim(index) > 1 for name, index in node.selection.items() if name != "position"):
            raise InputError(f"{what}: heads and neurons are an int or [n], the same in every input.")
        if parent is not None and node.order >= parent.order:
            raise InputError(f"{what}: it is not computed before its parent.")
        if names.count(node.label) > 1:
            raise InputError(f"{what}: two of its siblings have this name; give them names of their own.")
        check_edits([edit_makers.zero(node.site, **node.selection)], lm.config, tokens)
        _check(node.children, node, lm, tokens, node.label)
