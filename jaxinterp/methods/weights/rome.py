"""ROME: one fact is written into the W_out of one layer by an update of rank one (Meng et al. 2022, arXiv:2202.05262).

    k* = mean over contexts of mlp_post at the subject's last token;   v* = W k* + delta, with which the target follows (see `facts`)
    W' = W + (v* - W k*) (C^-1 k*)^T / (k*^T C^-1 k*)

W' maps k* to v* exactly, and among all that do it is the one that changes what is written for other keys the least, E |(W' - W) k|^2
with C = E[k k^T] (see `covariance`). Cost: `steps` forward and backward passes of the prompt in a few contexts from a quarter of the
stack below the layer on, and an equation of M unknowns. Misleads where the target follows because it is said and not because it is
known: look at paraphrases and neighbours, which the result holds. Where a norm stands behind the MLP, values are those before it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxinterp.errors import InputError
from jaxinterp.methods.weights.covariance import SecondMoment, check_layers, second_moment
from jaxinterp.methods.weights.facts import FactEdit, Settings, best_value, check_request, contexts, make_prefixes, measured
from jaxinterp.methods.weights.low_rank import low_rank
from jaxinterp.model.language_model import LanguageModel
from jaxinterp.model.sites import SITES
from jaxinterp.runs.progress import Progress
from jaxinterp.runs.provenance import fingerprint_of_weights


def rome(
    lm: LanguageModel, prompt: str, subject: str, target: str, *, layer: int, texts: Sequence[Any] | None = None,
    covariance: SecondMoment | None = None, ridge: float = 0.0, prefixes: Sequence[str] | None = None,
    paraphrases: Sequence[str] = (), neighbours: Sequence[str] = (), steps: int = 20, learning_rate: float = 0.5, clamp: float = 4.0,
    kl: float = 0.0625, decay: float = 1e-3, seed: int = 0, bos: str | bool = "model", precision: str | None = "highest",
) -> tuple[LanguageModel, FactEdit]:  # fmt: skip
    """A model in which a prompt about a subject is followed by another target, by one rank-one update of one W_out.

    Equations, source, cost and when it misleads: see the module.

    Args:
        lm: a causal model with dense MLPs and a tokenizer; nothing of it is changed.
        prompt: a text that holds the subject and ends before the target.
        subject: as it stands in the prompt; its last occurrence counts.
        target: what is to follow, of one or more tokens, with its leading space.
        layer: whose W_out is changed; early and middle layers, where causal tracing finds the subject's MLPs to matter.
        texts: what C is the second moment over; or
        covariance: C itself, of `second_moment`, for many edits of one model.
        ridge: part of C's mean diagonal added to its diagonal; 0 wants as many tokens as neurons.
        prefixes: contexts before the prompt, such as "He said. "; None has the model write five of ten tokens.
        paraphrases: prompts that the target should follow too.
        neighbours: prompts whose next token should stay as it is.
        steps: of Adam, at most; it ends where the loss falls under 0.05.
        learning_rate: Adam's, in units of the value's root mean square.
        clamp: the largest |delta| / |v|.
        kl: weight of the KL divergence of the next token after "{subject} is a".
        decay: weight of |delta|^2 / |v|^2.
        seed: of the contexts that are written.
        bos: as for `run`.
        precision: as for `run`.

    Returns:
        The changed LanguageModel, and a FactEdit of what that did.

    Raises:
        InputError: a subject that is not in the prompt, an empty target, a layer out of range, neither or both of texts and covariance,
            a singular C, experts, or numbers out of range.

    Example:
        >>> fact = ("The Eiffel Tower is in the city of", "The Eiffel Tower", " Rome")
        >>> changed, found = ji.weights.rome(lm, *fact, layer=5, texts=texts, ridge=1e-2)
        >>> found.after > found.before
        array([ True])
    """
    request = check_request(lm, (prompt, subject, target), "rome()")
    check_layers(lm.config, [layer], "rome()")
    settings = check_settings(Settings(steps, learning_rate, clamp, kl, decay), "rome()")
    listed = check_texts(paraphrases, neighbours, "rome()")
    by_layer, stacked = isinstance(lm.params["blocks"][0], tuple), lm.stacked()
    moment = moment_of(stacked, texts, covariance, [layer], bos, precision, "rome()")
    with Progress("rome", 2, "parts") as progress:
        progress.phase("finding the value")
        given = contexts(stacked, request, make_prefixes(stacked, prefixes, seed, bos), bos)
        site = "mlp_out" if SITES["mlp_proj"].absent(lm.config) else "mlp_proj"
        value = best_value(stacked, given, layer, site, settings, precision)
        key, delta = np.asarray(value.key, np.float64)[layer], np.asarray(value.delta)
        progress.advance(1)
        progress.phase("solving")
        direction = moment.solve(layer, key[:, None], ridge)[:, 0]
        a = (direction / (key @ direction)).astype(np.float32)
        changed = low_rank(stacked, "blocks.mlp.W_out", a[:, None], delta[None], layer=layer)
        progress.advance(1)
    weight = np.asarray(stacked.params["blocks"][0]["mlp"]["W_out"][layer], np.float32)
    size = np.linalg.norm(a) * np.linalg.norm(delta) / np.linalg.norm(weight)
    numbers = measured(stacked, changed, [request], [(0, text) for text in listed[0]], listed[1], bos, precision)
    how = how_made(lm, "rome", moment, settings, ridge=ridge, prefixes=len(given.tokens.ids) - 2, seed=seed, bos=bos)
    result = FactEdit(
        **numbers, changes=np.asarray([size]), keys=key.astype(np.float32)[None, None], values=delta[None], losses=np.asarray([value.loss]),
        requests=(request,), paraphrases=tuple((0, text) for text in listed[0]), neighbour_texts=listed[1], layers=(layer,), how=how,
    )  # fmt: skip
    return changed.by_layer() if by_layer else changed, result


# --------------------------------------------------------------------------------------------------- shared with memit


def check_settings(settings: Settings, what: str) -> Settings:
    """How values are optimised, checked.

    Raises:
        InputError: numbers out of range.
    """
    if settings.steps < 1 or not all(0 < number < np.inf for number in settings[1:3]) or not all(0 <= n < np.inf for n in settings[3:5]):
        raise InputError(
            f"{what}: steps is {settings.steps}, learning_rate {settings.learning_rate}, clamp {settings.clamp}, kl {settings.kl}, decay "
            f"{settings.decay}; expected at least one step, a rate and a clamp above 0, and weights from 0 on."
        )
    return settings


def check_texts(paraphrases: Sequence[str], neighbours: Sequence[str], what: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Prompts to judge an edit by, checked.

    Raises:
        InputError: a string in place of a list, or an empty text.
    """
    for name, texts in (("paraphrases", paraphrases), ("neighbours", neighbours)):
        if isinstance(texts, str) or not all(isinstance(text, str) and text for text in texts):
            raise InputError(f"{what}: {name} are a list of texts; got {texts!r:.80}.")
    return tuple(paraphrases), tuple(neighbours)


def moment_of(
    lm: LanguageModel, texts: Sequence[Any] | None, covariance: SecondMoment | None, layers: Sequence[int], bos: Any,
    precision: str | None, what: str,
) -> SecondMoment:  # fmt: skip
    """The second moment that was given, or that of the texts.

    Raises:
        InputError: neither or both, or one of other layers or another width.
    """
    if (texts is None) == (covariance is None):
        raise InputError(
            f"{what}: give either texts=, some hundred sentences whose keys the edit should leave alone, or covariance= from "
            "ji.weights.second_moment."
        )
    if covariance is None:
        return second_moment(lm, texts or [], layers, bos=bos, precision=precision)
    missing = [layer for layer in layers if layer not in covariance.layers]
    if missing or np.shape(covariance.values)[1] != lm.config.d_mlp:
        raise InputError(
            f"{what}: the covariance is of layers {', '.join(map(str, covariance.layers))} and {np.shape(covariance.values)[1]} neurons; "
            f"expected layers {', '.join(map(str, layers))} and {lm.config.d_mlp}."
        )
    return covariance


def how_made(lm: LanguageModel, method: str, moment: SecondMoment, settings: Settings, **more: Any) -> tuple[tuple[str, str], ...]:
    """What a result says about how it was made."""
    about = {"method": method, "weights": fingerprint_of_weights(lm.params), "covariance": f"{int(moment.tokens)} tokens"}
    return tuple((name, str(value)) for name, value in (about | settings._asdict() | more).items())
