"""Finding what to prune: rank heads and neurons on some texts, remove the least important ones, and measure on other texts.

    ranking on `texts`  ->  a balanced choice  ->  the pruned model  ->  loss on `held_out`, beside random choices of one size

Balanced means that every layer gets as much smaller, so that the whole model does: from every layer the same number of neurons,
and the same number of key/value heads with their query heads, or from every key/value head the same number of query heads. Whole
key/value heads save more (their own weights, and their part of the cache) and leave the choice which: on SmolLM2 without a third of
the heads, they left a loss of 3.69 on held-out texts where one query head of each gave 4.74 (whole 3.40; random 4.6 to 9.2 and 5.3 to
5.8). With a quarter of the neurons gone as well it was 4.29, at 79 % of the size. Nothing is trained afterwards.

Cost: a ranking (see `importance`), a forward pass of the held-out texts for the model, the pruned one and each random one, and the
timed passes. Misleads where `texts` are few or unlike the texts that the model is for; the ranking is of single parts, and what is
removed together costs more than the sum. Random choices are the control: a ranking that says nothing does no better than they do.
"""

import functools
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from jaxinterp.errors import InputError
from jaxinterp.methods.weights.balance import HeadUnit, balance
from jaxinterp.methods.weights.importance import Method, batches, importance, texts_of
from jaxinterp.methods.weights.prune import prune
from jaxinterp.methods.weights.pruned_layout import pruned_layout
from jaxinterp.methods.weights.shrunk import Shrunk
from jaxinterp.methods.weights.speed import Speed, check_speed, speed
from jaxinterp.model.config import TransformerConfig
from jaxinterp.model.language_model import LanguageModel, Prompts
from jaxinterp.model.tokens import Tokens
from jaxinterp.runs.metrics import cross_entropy
from jaxinterp.runs.objective import measured
from jaxinterp.runs.program import bucket
from jaxinterp.runs.progress import Progress
from jaxinterp.runs.provenance import record


def shrink(
    lm: LanguageModel, texts: Prompts, held_out: Prompts, *, heads: float = 0.33, neurons: float = 0.25, unit: HeadUnit | None = None,
    method: Method = "first_order", controls: int = 3, rounds: int = 5, new_tokens: int = 32, batch_size: int = 8, seed: int = 0,
    bos: str | bool = "model", precision: str | None = "highest",
) -> Shrunk:  # fmt: skip
    """Prunes the heads and neurons that matter least for the loss on some texts, and says what that costs on others.

    Args:
        lm: a causal language model.
        texts: to rank on, of two or more tokens each.
        held_out: to measure the loss on; none of them among `texts`.
        heads: share of the heads to remove, from 0 to below 1, rounded to what can be removed evenly; at least one stays.
        neurons: share of every layer's neurons to remove, in the same way.
        unit: "kv_head" removes whole key/value heads with their query heads, "head" the same number of query heads from every
            key/value head; None is "kv_head" where the share is at least one of them, and not all.
        method: of the ranking of heads: "first_order", one pass; or "exact", a run for each, which took minutes in place of seconds
            and ranked worse where it was tried (see `importance`). Neurons are ranked to first order.
        controls: random choices of the same size to measure beside it.
        rounds: times that speed is measured, the models in turn; 0 leaves speed out.
        new_tokens: that are generated each time.
        batch_size: texts in one pass.
        seed: of the random choices.
        bos: as for `run`.
        precision: as for `run`.

    Returns:
        A Shrunk: `.lm`, the pruned model with its weights in stacks; `.record`, what stands where in it; `.importance`; losses, sizes
        and speeds.

    Raises:
        InputError: a text that is in both sets, shares out of range or too small to remove anything, what `importance` refuses, and
            models that cannot lose heads or neurons (see `pruned_layout`): give a share of 0 there.

    Example:
        >>> from jaxinterp.data.plain import PARAGRAPHS
        >>> found = ji.weights.shrink(lm, PARAGRAPHS[:8], PARAGRAPHS[8:], heads=0.33, neurons=0.25)
        >>> found.loss_after.mean() < found.loss_random.mean()
        True
        >>> ji.save(found.lm, "smaller")
    """
    if min(controls, rounds) < 0 or min(new_tokens, batch_size) < 1:
        raise InputError(
            f"shrink(): controls is {controls}, rounds {rounds}, new_tokens {new_tokens} and batch_size {batch_size}; expected at least 0, "
            "0, 1 and 1."
        )
    size = balance(lm.config, heads, neurons, unit)
    # what cannot be removed is refused before anything is computed
    pruned_layout(lm.config, **size.random(seed))
    if rounds:
        check_speed(lm, new_tokens)
    lm = lm.stacked()
    ranked_on, measured_on = (texts_of(lm, group, bos, "shrink()") for group in (texts, held_out))
    _check_apart(ranked_on, measured_on)
    options: dict[str, Any] = {"batch_size": batch_size, "precision": precision}
    found = {}
    if size.heads:
        found["heads"] = importance(lm, ranked_on, unit=size.unit, method=method, **options)
    if size.neurons:
        found["neurons"] = importance(lm, ranked_on, unit="neuron", **options)
    chosen = size.choose({name: np.asarray(ranked.values) for name, ranked in found.items()})
    small = prune(lm, **chosen)
    losses = []
    with Progress("measuring the loss", controls + 2, "models") as progress:
        for number in range(-2, controls):
            model = (lm, small)[number] if number < 0 else prune(lm, **size.random([seed, number]))
            losses.append(_losses(model, measured_on, **options))
            progress.advance(1)
    speeds: tuple[Speed, ...] = ()
    if rounds:
        batch = next(batches(measured_on, batch_size))
        speeds = speed((lm, small), batch, rounds=rounds, new_tokens=new_tokens, precision=precision)
    how = (
        ("heads", str(heads)), ("neurons", str(neurons)), ("unit", size.unit), ("method", method), ("texts", str(len(ranked_on.ids))),
        ("held out", str(len(measured_on.ids))), ("seed", str(seed)), ("bos", ranked_on.bos),
        *record(lm, measured_on, cross_entropy(), other=ranked_on),
    )  # fmt: skip
    random = np.reshape(losses[2:], (controls, len(measured_on.ids)))
    return Shrunk(small, pruned_layout(lm.config, **chosen), found, losses[0], losses[1], random, _bytes(lm), _bytes(small), speeds, how)


def _check_apart(texts: Tokens, held_out: Tokens) -> None:
    """Refuse a held-out text that is among those ranked on."""

    def rows(tokens: Tokens) -> list[tuple[int, ...]]:
        return [tuple(np.asarray(ids)[np.asarray(mask)].tolist()) for ids, mask in zip(tokens.ids, tokens.mask, strict=True)]

    seen = set(rows(texts))
    shared = [number for number, row in enumerate(rows(held_out)) if row in seen]
    if shared:
        raise InputError(f"shrink(): held-out text {shared[0]} is among the texts that are ranked on; measure on texts that were not seen.")


def _losses(lm: LanguageModel, tokens: Tokens, batch_size: int, precision: str | None) -> Float[np.ndarray, "B"]:
    """The loss of each text, in nats a token."""
    width = bucket(tokens.ids.shape[1], lm.config.n_ctx)
    parts = [batch.padded(width).arrays_only() for batch in batches(tokens, batch_size)]
    return np.concatenate([np.asarray(_loss(lm.params, part, config=lm.config, precision=precision)) for part in parts])


@functools.partial(jax.jit, static_argnames=("config", "precision"))
def _loss(params: Any, tokens: Tokens, *, config: TransformerConfig, precision: str | None) -> Float[Array, "B"]:
    return measured(params, tokens, config, cross_entropy(), precision=precision)[0]


def _bytes(lm: LanguageModel) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(lm.params))
