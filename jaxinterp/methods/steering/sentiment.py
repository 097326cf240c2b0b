"""Sentiment steering, end to end: the direction from bad to good, a metric to judge it by, and texts written along it.

    v_l = mean x_l over positive sentences - mean x_l over negative ones    (x at each sentence's last token)
    log odds = log P(any held-out good word) - log P(any held-out bad word) after a held-out prompt

The classic of activation steering (Turner et al. 2023, arXiv:2308.10248), with sentences of our own (`ji.data.sentiment`). Approximation
and cost: those of `mean_difference`. Misleads: the sentences differ in more than their sentiment, so texts at large strengths repeat
words of praise, or fall apart: look at the KL and the norm beside them.
"""

from collections.abc import Sequence
from typing import Any

from jaxinterp.data.sentiment import sentiment
from jaxinterp.methods.steering.difference import mean_difference
from jaxinterp.methods.steering.side_by_side import SideBySide, side_by_side
from jaxinterp.methods.steering.vector import SteeringVector
from jaxinterp.model.language_model import LanguageModel, Prompts
from jaxinterp.runs.metrics import Metric, log_odds

DEPTH = 0.4
"""Where along the layers sentiment is steered by default: deep enough to be read, early enough to be carried on."""


def sentiment_vector(
    lm: LanguageModel, *, layers: int | Sequence[int] | None = None, bos: str | bool = "model", **settings: Any
) -> SteeringVector:
    """The direction from negative to positive sentences at each layer.

    Args:
        lm: the model, with a tokenizer.
        layers: a layer, some, or None for all.
        bos: as for `run`.
        **settings: as for `mean_difference`: site, folds, seed, precision.

    Example:
        >>> vector = ji.steering.sentiment_vector(lm)
        >>> ji.generate(lm, "I think this film is", 20, edits=[vector.add(1.5, layer=12)]).text
    """
    data = sentiment(lm)
    return mean_difference(lm, list(data.positive), list(data.negative), layers=layers, bos=bos, **settings)


def sentiment_metric(lm: LanguageModel) -> Metric:
    """Log-odds of held-out good against bad words as the next token, in nats; none of them is in the sentences.

    Args:
        lm: the model, for its tokenizer.

    Example:
        >>> metric = ji.steering.sentiment_metric(lm)
        >>> metric(ji.run(lm, "I think this film is")).shape
        (1,)
    """
    data = sentiment(lm)
    return log_odds([list(data.good)], [list(data.bad)])


def steer_sentiment(
    lm: LanguageModel, prompts: Prompts, strengths: float | Sequence[float] = 1.5, *, layer: int | Sequence[int] | None = None,
    vector: SteeringVector | None = None, **settings: Any,
) -> SideBySide:  # fmt: skip
    """Continues prompts plainly, and with their sentiment steered: up with strengths over 0, down under 0.

    Args:
        lm: a causal model with a tokenizer.
        prompts: as for `generate`.
        strengths: one, or several that are each a text.
        layer: where; None is two fifths of the way up.
        vector: from `sentiment_vector`, where there is one already.
        **settings: as for `side_by_side`: max_new_tokens, when, relative, temperature ...

    Returns:
        A SideBySide: `.plain`, `.steered`, `.kl`, `.norm_ratio`.

    Raises:
        InputError: as `side_by_side`.

    Example:
        >>> ji.steering.steer_sentiment(lm, "I think this film is", [-1.5, 1.5]).show()
    """
    layer = middle_layer(lm) if layer is None else layer
    vector = sentiment_vector(lm, layers=layer) if vector is None else vector
    return side_by_side(lm, vector, prompts, strengths, layer=layer, **settings)


def middle_layer(lm: LanguageModel) -> int:
    """The layer that is steered by default: 12 of 30."""
    return round(DEPTH * lm.config.n_layers)
