"""MEMIT: many facts are written into the W_outs of several layers at once (Meng et al. 2022, arXiv:2210.07229).

    z_i = h_i + delta_i at the last of the layers, with which target i follows (see `facts`); then for each layer, the lowest first:
    W' = W + R K^T (lambda C + K K^T)^-1,   R = (z - h) / (layers left),   K and h read again from the model as it is by then

K [M R] are the requests' keys, mean over contexts, and C = E[k k^T] (see `covariance`). Each layer writes its share of what is still
missing, and lambda weighs what other texts need against it. Cost: one optimisation a request as for `rome`, one forward pass of all
requests and an equation of M unknowns a layer. Misleads as `rome` does.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxinterp.errors import InputError
from jaxinterp.methods.weights.covariance import SecondMoment, check_layers
from jaxinterp.methods.weights.facts import Contexts, FactEdit, Settings, best_value, check_request, contexts, make_prefixes, measured
from jaxinterp.methods.weights.low_rank import low_rank
from jaxinterp.methods.weights.rome import check_settings, check_texts, how_made, moment_of
from jaxinterp.model.language_model import LanguageModel
from jaxinterp.model.selection import at
from jaxinterp.runs.progress import Progress
from jaxinterp.runs.run import run


def memit(
    lm: LanguageModel, requests: Sequence[Sequence[str]], *, layers: Sequence[int], texts: Sequence[Any] | None = None,
    covariance: SecondMoment | None = None, weight: float | None = None, ridge: float = 0.0,
    prefixes: Sequence[str] | None = None,
    paraphrases: Sequence[Sequence[str]] = (), neighbours: Sequence[str] = (), steps: int = 25, learning_rate: float = 0.5,
    clamp: float = 0.75, kl: float = 0.0625, decay: float = 1e-3, seed: int = 0, bos: str | bool = "model",
    precision: str | None = "highest",
) -> tuple[LanguageModel, FactEdit]:  # fmt: skip
    """A model in which many prompts are followed by other targets, by updates of the W_outs of several layers.

    Equations, source, cost and when it misleads: see the module.

    Args:
        lm: a causal model with dense MLPs, without norms behind them, and a tokenizer; nothing of it is changed.
        requests: (prompt, subject, target) of each fact, as for `rome`.
        layers: whose W_outs are changed, up to the one where values are optimised.
        texts: what C is the second moment over; or
        covariance: C itself, of `second_moment` at these layers.
        weight: lambda; None is the number of neurons, near the authors' 15,000 of 16,384.
        ridge: as for `rome`.
        prefixes: as for `rome`.
        paraphrases: for each request, prompts that its target should follow too.
        neighbours: prompts whose next token should stay as it is.
        steps: as for `rome`.
        learning_rate: as for `rome`; v is the residual stream after the last of the layers.
        clamp: the largest |delta| / |v|.
        kl: as for `rome`.
        decay: as for `rome`.
        seed: as for `rome`.
        bos: as for `run`.
        precision: as for `run`.

    Returns:
        The changed LanguageModel, and a FactEdit of what that did.

    Raises:
        InputError: as `rome`; also norms behind the MLPs, no requests, or paraphrases that are not one list a request.

    Example:
        >>> facts = [("The Eiffel Tower is in the city of", "The Eiffel Tower", " Rome")]
        >>> changed, found = ji.weights.memit(lm, facts, layers=[3, 4, 5], texts=texts)
    """
    if isinstance(requests, str) or not len(requests):
        raise InputError("memit(): expected one or more requests, each (prompt, subject, target).")
    facts = tuple(check_request(lm, request, "memit()") for request in requests)
    chosen = sorted(check_layers(lm.config, layers, "memit()"))
    if lm.config.norm_position != "pre":
        raise InputError(
            f"memit(): what it spreads over layers is added to the residual stream, and a norm stands between W_out and the stream here "
            f"(norm_position={lm.config.norm_position!r}): use ji.weights.rome, one fact after the other."
        )
    if len(paraphrases) not in (0, len(facts)) or isinstance(paraphrases, str) or any(isinstance(p, str) for p in paraphrases):
        raise InputError(f"memit(): paraphrases are a list for each of {len(facts)} requests; got {len(paraphrases)} entries.")
    weight = float(lm.config.d_mlp) if weight is None else weight
    if not 0 < weight < np.inf:
        raise InputError(f"memit(): weight is {weight}; expected a number above 0.")
    settings = check_settings(Settings(steps, learning_rate, clamp, kl, decay), "memit()")
    pairs = [(number, text) for number, own in enumerate(paraphrases) for text in own]
    near = check_texts([text for _, text in pairs], neighbours, "memit()")[1]
    stacked = lm.stacked()
    moment = moment_of(stacked, texts, covariance, chosen, bos, precision, "memit()")
    every = _contexts(stacked, facts, make_prefixes(stacked, prefixes, seed, bos), bos)
    with Progress("memit", len(facts) + len(chosen), "parts") as progress:
        found = []
        progress.phase("finding values")
        for given in every:
            found.append(best_value(stacked, given, chosen[-1], "resid_post", settings, precision))
            progress.advance(1)
        goals = np.stack([np.asarray(value.start + value.delta, np.float64) for value in found])
        progress.phase("updating layers")
        changed, keys, sizes = stacked, [], []
        for number, layer in enumerate(chosen):
            key, now = _read(changed, every, layer, chosen[-1], precision)
            missing = (goals - now) / (len(chosen) - number) / lm.config.residual_multiplier
            # (lambda C + K K^T)^-1 K, by C + K K^T / lambda
            a = moment.solve(layer, key.T, ridge, key.T @ key / weight) / weight
            changed = low_rank(changed, "blocks.mlp.W_out", a.astype(np.float32), missing.astype(np.float32), layer=layer)
            old = np.asarray(stacked.params["blocks"][0]["mlp"]["W_out"][layer], np.float32)
            sizes.append(np.linalg.norm(a @ missing) / np.linalg.norm(old))
            keys.append(key.astype(np.float32))
            progress.advance(1)
    numbers = measured(stacked, changed, facts, pairs, near, bos, precision)
    how = how_made(lm, "memit", moment, settings, weight=weight, ridge=ridge, prefixes=len(every[0].tokens.ids) - 2, seed=seed, bos=bos)
    result = FactEdit(
        **numbers, changes=np.asarray(sizes), keys=np.stack(keys), values=np.stack([value.delta for value in found]),
        losses=np.asarray([value.loss for value in found]), requests=facts, paraphrases=tuple(pairs), neighbour_texts=near,
        layers=tuple(chosen), how=how,
    )  # fmt: skip
    return changed.by_layer() if isinstance(lm.params["blocks"][0], tuple) else changed, result


def _contexts(lm: LanguageModel, facts: Sequence[Any], prefixes: Sequence[str], bos: str | bool) -> list[Contexts]:
    """Those of every request, of one shape, so that all share a program."""
    own = [contexts(lm, fact, prefixes, bos) for fact in facts]
    width, size = (max(array.shape[1] for array in arrays) for arrays in zip(*((c.tokens.ids, c.columns) for c in own), strict=True))
    return [contexts(lm, fact, prefixes, bos, width, size) for fact in facts]


def _read(lm: LanguageModel, every: Sequence[Contexts], layer: int, last: int, precision: str | None) -> tuple[Any, Any]:
    """The requests' keys at a layer [R M], mean over contexts, and the stream after the last layer in the plain prompts [R D]."""
    keys, streams = [], []
    for given in every:
        sites = {"mlp_post": at(layer=layer, position=given.position), "resid_post": at(layer=last, position=given.position)}
        trace = run(lm, given.tokens, sites, stop=last + 1, precision=precision)
        fact = given.weight.sum(axis=1) > 0
        keys.append(np.asarray(trace["mlp_post"], np.float64)[fact, 0].mean(axis=0))
        streams.append(np.asarray(trace["resid_post"], np.float64)[0, 0])
    return np.stack(keys), np.stack(streams)
