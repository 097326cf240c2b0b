"""sweep: what a vector does at every layer and strength, and what that costs, on prompts held out.

    effect(l, s) = metric(run with x_l + s v_l) - metric(plain run)
    kl           = KL(plain || steered) of the next token after the prompts
    neutral_kl   = the same on neutral texts, mean over all their tokens;    perplexity = exp(their cross-entropy in nats a token)

Exact: every cell is a run. Cost: one compiled program for the prompts and one for the neutral texts, each of which computes only what a
cell changes (`runs.engine`); neutral texts are unembedded at every token, so they cost more than the prompts. Two plain runs come before.
Misleads where the metric is one word's: a strength that breaks the text can still raise it. So choose by `best`, under a budget for the
neutral texts, look at `norm_ratio`, and read `examples`.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxinterp.data.plain import PARAGRAPHS
from jaxinterp.errors import InputError
from jaxinterp.methods.steering.grid import filled
from jaxinterp.methods.steering.operations import STRENGTHS, Operation, edit_of, levels_of, steered_values
from jaxinterp.methods.steering.sweep_result import SteeringSweep
from jaxinterp.methods.steering.vector import SteeringVector, check_held_out
from jaxinterp.model.edits import Edit, check_edits
from jaxinterp.model.language_model import LanguageModel, Prompts
from jaxinterp.model.selection import at
from jaxinterp.model.tokens import Tokens
from jaxinterp.runs.measure import run_cells
from jaxinterp.runs.metrics import cross_entropy, kl_divergence
from jaxinterp.runs.results import mean_of
from jaxinterp.runs.run import run

TEXTS, TOKENS = 4, 20
"""How many paragraphs are the neutral texts where none are given, and how many tokens of each: every cell unembeds them all."""


def sweep(
    lm: LanguageModel, vector: SteeringVector, prompts: Prompts, metric: Any, *, layers: int | Sequence[int] | None = None,
    strengths: Sequence[float] = STRENGTHS, relative: bool = False, position: Any = None, neutral: Prompts | None = None,
    operation: Operation = "add", edits: Sequence[Edit] = (), batch_size: int | None = None, out: str | Path | None = None,
    bos: str | bool = "model", precision: str | None = "highest", force: bool = False,
) -> SteeringSweep:  # fmt: skip
    """Steers at each layer with each strength, and measures what that does on held-out prompts and costs on neutral texts.

    Args:
        lm: the model.
        vector: a direction for each layer that is swept.
        prompts: as for `run`; none of those that the vector was made from.
        metric: what steering is to raise, such as `ji.metrics.log_odds([good_words], [bad_words])`.
        layers: some of the vector's layers; None is all.
        strengths: of each cell; at 0 "add" is the plain run. With "replace" they are coordinates; "project_out" has none.
        relative: whether strengths of "add" are in units of the value's own norm.
        position: which positions of the prompts are steered, as for edits; None is all. Neutral texts are steered at all of theirs.
        neutral: texts on which side effects are measured; None takes the beginnings of four plain paragraphs, () leaves them out.
        operation: "add", "replace" or "project_out", as the methods of `SteeringVector`.
        edits: act in the plain run and in every cell, before the vector does.
        batch_size: cells run at once; None fits them to memory.
        out: a folder that keeps finished chunks; the same call goes on from them.
        bos: as for `run`.
        precision: as for `run`.
        force: as for `SteeringVector.check`.

    Returns:
        A SteeringSweep: `.effects`, `.kl`, `.neutral_kl`, `.perplexity`, `.norm_ratio` [L S], `.best(budget=0.1)`, `.view()`.

    Raises:
        InputError: another model's vector, prompts that it was made from, layers that it lacks, no strengths, neutral texts of one token.

    Example:
        >>> data = ji.data.sentiment(lm)
        >>> vector = ji.steering.mean_difference(lm, data.positive, data.negative)
        >>> found = ji.steering.sweep(lm, vector, data.prompts, ji.metrics.log_odds([data.good], [data.bad]), layers=[8, 12, 16])
        >>> found.best(budget=0.5).layer in (8, 12, 16)
        True
    """
    vector.check(lm, force=force)
    held = vector.layers if layers is None else vector.at(layers).layers
    levels = levels_of(strengths, operation, relative)
    tokens = lm.to_tokens(prompts, bos=bos)
    check_held_out(vector, tokens)
    texts = _neutral(lm, neutral, bos)
    if texts is not None:
        check_held_out(vector, texts)
    cells = [(layer, strength) for layer in held for strength in levels if operation != "add" or strength != 0]
    fixed: dict[str, Any] = {"edits": tuple(edits), "batch_size": batch_size, "precision": precision}

    def measure(tokens: Tokens, metrics: dict[str, Any], position: Any, part: str) -> dict[str, Any]:
        made = [[edit_of(vector, *cell, operation, relative, position=position)] for cell in cells]
        check_edits([*edits, *made[0]], lm.config, tokens)
        folder = None if out is None else Path(out) / part
        found = run_cells(lm, tokens, None, made, metrics, out=folder, title=f"steering, {part}", **fixed)
        return {name: dataclasses.replace(each, values=filled(each, cells, held, levels)) for name, each in found.items()}

    plain = run(lm, tokens, sites={vector.site: at(position=[-1])}, edits=edits, precision=precision)
    found = measure(tokens, {"metric": metric, "kl": kl_divergence(plain)}, position, "prompts")
    value = np.stack([np.asarray(plain.at(vector.site, layer=layer))[:, 0] for layer in held])
    steered = [steered_values(value, np.asarray(vector.at(held).values), level, operation, relative) for level in levels]
    ratio, step = (np.stack([_share(one, value) for one in each], axis=1) for each in (steered, [one - value for one in steered]))
    empty = np.full((len(held), len(levels)), np.nan)
    side, loss, plain_loss = empty, empty, np.float64(np.nan)
    if texts is not None:
        reference = run(lm, texts, edits=edits, precision=precision)
        sides = measure(texts, {"kl": kl_divergence(reference, position="all"), "loss": cross_entropy()}, None, "neutral texts")
        lengths = np.asarray(texts.lengths, np.float64)
        side = np.average(sides["kl"].values, axis=0, weights=lengths)
        loss, plain_loss = (np.average(each, axis=0, weights=lengths - 1) for each in (sides["loss"].values, sides["loss"].base))
    values, base = found["metric"].values, found["metric"].base
    mean = mean_of(values)
    how = (
        ("site", vector.site), ("operation", operation), ("relative", str(relative)), ("position", "all" if position is None else "given"),
        ("neutral", str(0 if texts is None else len(texts.ids))), *found["metric"].how, ("bos", tokens.bos),
    )  # fmt: skip
    return SteeringSweep(
        mean, mean - base.mean(), values, base, mean_of(found["kl"].values), side, loss, plain_loss, step, ratio, vector,
        held, levels, operation, relative, how,
    )  # fmt: skip


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """[L]: the norm of values [L B ...] over that of others, mean over prompts."""
    sizes = [np.linalg.norm(each.reshape(*each.shape[:2], -1), axis=-1) for each in (part, whole)]
    return (sizes[0] / sizes[1]).mean(axis=1)


def _neutral(lm: LanguageModel, neutral: Prompts | None, bos: str | bool) -> Tokens | None:
    """The texts on which side effects are measured; None without."""
    if isinstance(neutral, list | tuple) and not neutral:
        return None
    if neutral is None and lm.tokenizer is None:
        raise InputError("The neutral texts need a tokenizer, which this model lacks: give ids as neutral=, or () to leave them out.")
    if neutral is None:
        whole = lm.to_tokens(list(PARAGRAPHS[:TEXTS]), bos=bos)
        return Tokens.from_ids(*(np.asarray(part)[:, : min(TOKENS, lm.config.n_ctx)] for part in (whole.ids, whole.mask)), bos=whole.bos)
    tokens = lm.to_tokens(neutral, bos=bos)
    if int(np.asarray(tokens.lengths).min()) < 2:
        raise InputError("A neutral text has one token, so it has no next token to predict; expected two or more.")
    return tokens
