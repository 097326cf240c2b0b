"""Speed of models beside one another: a forward pass, and tokens a second, in turns within one run.

Times on a shared machine drift by more than models differ, so models take turns and the median of the turns counts. What is
compiled is compiled before.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxinterp.errors import InputError
from jaxinterp.model.language_model import LanguageModel
from jaxinterp.model.tokens import Tokens
from jaxinterp.runs.generate import generate
from jaxinterp.runs.progress import Progress
from jaxinterp.runs.run import run


@dataclasses.dataclass(frozen=True)
class Speed:
    """How fast a model is.

    Attributes:
        forward: seconds of a forward pass of a batch with all its logits, the median of the turns.
        decoding: tokens a second of one text that is generated from weights a layer at a time, by the median of the turns.
    """

    forward: float
    decoding: float


def speed(
    models: Sequence[LanguageModel], tokens: Tokens, *, rounds: int = 5, new_tokens: int = 32, precision: str | None = "highest"
) -> tuple[Speed, ...]:
    """Times models in turns.

    Args:
        models: with weights in stacks.
        tokens: the batch of the forward pass; what is generated goes on from the beginning of its first text.
        rounds: turns of each model.
        new_tokens: that are generated a turn.
        precision: as for `run`.

    Returns:
        A Speed for each model.

    Raises:
        InputError: a context that is too short for so many new tokens.
    """
    for lm in models:
        check_speed(lm, new_tokens)
    length = min(int(tokens.lengths[0]), models[0].config.n_ctx - new_tokens)
    prompt = Tokens.from_ids(tokens.ids[:1][tokens.mask[:1]][:length])
    apart = [lm.by_layer() for lm in models]

    def forward(lm: LanguageModel) -> Any:
        return run(lm, tokens, precision=precision).padded_logits

    def decode(lm: LanguageModel) -> Any:
        return generate(lm, prompt, new_tokens, stop_tokens=(), precision=precision).ids

    works = [(forward, lm) for lm in models] + [(decode, lm) for lm in apart]
    seconds: list[list[float]] = [[] for _ in works]
    with Progress("timing", rounds + 1, "rounds") as progress:
        for turn in range(rounds + 1):
            for work, kept in zip(works, seconds, strict=True):
                took = _seconds(*work)
                # the first turn compiles
                kept += [took] if turn else []
            progress.advance(1)
    middle = [statistics.median(kept) for kept in seconds]
    return tuple(Speed(middle[i], new_tokens / middle[len(models) + i]) for i in range(len(models)))


def check_speed(lm: LanguageModel, new_tokens: int) -> None:
    """Refuse more new tokens than a context has room for.

    Raises:
        InputError: with what would fit.
    """
    if new_tokens >= lm.config.n_ctx:
        raise InputError(f"{new_tokens} new tokens do not fit a context of {lm.config.n_ctx}; give new_tokens below that.")


def _seconds(work: Callable[[LanguageModel], Any], lm: LanguageModel) -> float:
    start = time.perf_counter()
    jax.block_until_ready(work(lm))
    return time.perf_counter() - start
