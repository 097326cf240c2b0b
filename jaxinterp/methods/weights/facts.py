"""What editing a fact takes, for one fact or many: where its subject ends, the value that says the target, and what an edit did.

    v* = v + delta,  delta = argmin  mean over contexts of -log P(target | context, prompt) + kl KL(before || now) + decay |delta|^2 / |v|^2

delta is added at the subject's last token, found by Adam within |delta| <= clamp |v|. The KL divergence is that of the next token after
"{subject} is a", so that what the subject is stays. Meng et al. 2022 (arXiv:2202.05262), section 3.1; the weight decay here is of the
square, and steps are in units of |v|, so that one learning rate does for every model.
"""

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxinterp.errors import InputError
from jaxinterp.model import edits
from jaxinterp.model.config import TransformerConfig
from jaxinterp.model.language_model import LanguageModel
from jaxinterp.model.selection import at
from jaxinterp.model.tokens import Tokens, check_ids
from jaxinterp.model.transformer import forward, read_forward, unembed_at
from jaxinterp.runs.generate import generate
from jaxinterp.runs.metrics import kl_divergence
from jaxinterp.runs.metrics.distributions import divergence
from jaxinterp.runs.program import bucket
from jaxinterp.runs.run import run
from jaxinterp.runs.score import score

STARTS = ("The", "Therefore", "Because", "I", "You")
"""First words of the contexts that are generated."""

CONTEXT_TOKENS = 10
"""Tokens that are generated after each of them."""

PARTS = 4
"""Of the stack: an optimisation begins at the last of these that its layer is in, so that all layers share four programs."""


class Request(NamedTuple):
    """One fact to write.

    Attributes:
        prompt: a text that holds the subject and ends before the target: "The Eiffel Tower is in the city of".
        subject: as it stands in the prompt: "The Eiffel Tower".
        target: what is to follow, with its leading space: " Rome".
    """

    prompt: str
    subject: str
    target: str


class Settings(NamedTuple):
    """How a value is optimised; numbers, all of them data of the compiled loop.

    Attributes:
        steps: of Adam, at most.
        learning_rate: in units of the value's root mean square.
        clamp: the largest |delta| / |v|.
        kl: weight of the KL divergence after "{subject} is a".
        decay: weight of |delta|^2 / |v|^2.
        enough: the loss at which it ends.
    """

    steps: int
    learning_rate: float
    clamp: float
    kl: float
    decay: float
    enough: float = 5e-2


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["before", "after", "paraphrases_before", "paraphrases_after", "neighbours", "changes", "keys", "values", "losses"],
    meta_fields=["requests", "paraphrases", "neighbour_texts", "layers", "how"],
)
@dataclasses.dataclass(frozen=True)
class FactEdit:
    """What an edit of facts did.

    Attributes:
        before: [R], the probability of each target after its prompt before the edit; of several tokens, of all of them.
        after: [R], after the edit.
        paraphrases_before: [n], that of the target after each paraphrase before the edit.
        paraphrases_after: [n], after the edit.
        neighbours: [m], KL(before || after) of the next token after prompts that should not change, in nats.
        changes: [N], the Frobenius norm of the change of W_out over that of W_out, for each layer.
        keys: [N R M], the keys that were written to.
        values: [R D], what was to be added: of `rome` to what W_out writes for the key, of `memit` to the stream after the last layer.
        losses: [R], where the optimisation of each value ended.
        requests: the facts.
        paraphrases: (number of the request, text) of each.
        neighbour_texts: their prompts.
        layers: whose W_out was changed.
        how: how it was made.
    """

    before: Any
    after: Any
    paraphrases_before: Any
    paraphrases_after: Any
    neighbours: Any
    changes: Any
    keys: Any
    values: Any
    losses: Any
    requests: tuple[Request, ...]
    paraphrases: tuple[tuple[int, str], ...]
    neighbour_texts: tuple[str, ...]
    layers: tuple[int, ...]
    how: tuple[tuple[str, str], ...] = ()

    def __repr__(self) -> str:
        one = len(self.requests) == 1
        about = f"{self.requests[0].target!r} after {self.requests[0].prompt!r}" if one else f"{len(self.requests)} facts"
        said = f"{np.mean(self.before):.3f} -> {np.mean(self.after):.3f}"
        more = f", paraphrases {np.mean(self.paraphrases_after):.3f}" if len(self.paraphrases) else ""
        more += f", neighbours' KL {np.mean(self.neighbours):.3f}" if len(self.neighbour_texts) else ""
        return f"FactEdit({about}: {said}{more}; layers {', '.join(map(str, self.layers))}, change {np.max(self.changes):.2%})"

    def to_dataframe(self) -> Any:
        """A pandas DataFrame with a row for each prompt, paraphrase and neighbour: probabilities of the target, or the KL divergence."""
        try:
            import pandas
        except ImportError:
            raise InputError("to_dataframe() needs pandas: pip install pandas.") from None
        rows = [("prompt", r.prompt, r.target, *pair, np.nan) for r, *pair in zip(self.requests, self.before, self.after, strict=True)]
        both = zip(self.paraphrases, self.paraphrases_before, self.paraphrases_after, strict=True)
        rows += [("paraphrase", text, self.requests[i].target, *pair, np.nan) for (i, text), *pair in both]
        near = zip(self.neighbour_texts, self.neighbours, strict=True)
        rows += [("neighbour", text, "", np.nan, np.nan, divergence) for text, divergence in near]
        return pandas.DataFrame(rows, columns=["kind", "text", "target", "before", "after", "kl"])

    def save(self, path: str | Path) -> Path:
        """Writes the arrays as safetensors, with texts, layers and how in the header."""
        from safetensors.numpy import save_file

        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        about = {name: json.dumps(fields.pop(name)) for name in ("requests", "paraphrases", "neighbour_texts", "layers", "how")}
        save_file({name: np.ascontiguousarray(value) for name, value in fields.items()}, str(path), metadata=about)
        return Path(path)


# ---------------------------------------------------------------------------------------------------------- the texts


class Contexts(NamedTuple):
    """A request in several contexts, and the prompt that should stay as it is, which is the last row.

    Attributes:
        tokens: context, prompt and target together.
        position: [B 1], the subject's last token.
        columns: [B n], the column before each token of the target; the last one of the last row.
        targets: [B n], those tokens.
        weight: [B n], 1 / their number where there is one.
    """

    tokens: Tokens
    position: Int[np.ndarray, "B 1"]
    columns: Int[np.ndarray, "B n"]
    targets: Int[np.ndarray, "B n"]
    weight: Float[np.ndarray, "B n"]


def check_request(lm: LanguageModel, given: Sequence[str], what: str) -> Request:
    """A request, checked.

    Raises:
        InputError: not three strings, a subject that its prompt does not hold, or an empty target.
    """
    if lm.tokenizer is None:
        raise InputError(f"{what} finds the subject in text, and this model has no tokenizer.")
    if isinstance(given, str) or len(given) != 3 or not all(isinstance(text, str) for text in given):
        raise InputError(f"{what}: a request is (prompt, subject, target), three strings; got {given!r:.80}.")
    request = Request(*given)
    if not request.subject.strip() or request.subject not in request.prompt:
        raise InputError(f"{what}: the subject {request.subject!r} does not stand in the prompt {request.prompt!r}.")
    if not request.target.strip():
        raise InputError(f"{what}: the target is empty; expected what is to follow the prompt, such as ' Rome'.")
    if request.prompt.endswith(" ") and not request.target.startswith(" "):
        raise InputError(f"{what}: the prompt ends with a space, which belongs to the target: put it there, {' ' + request.target!r}.")
    return request


def make_prefixes(lm: LanguageModel, prefixes: Sequence[str] | None, seed: int, bos: str | bool) -> list[str]:
    """The contexts that stand before prompts: those given, or some that the model writes itself; the first is empty."""
    if prefixes is None:
        room = max(1, min(CONTEXT_TOKENS, lm.config.n_ctx // 4))
        written = generate(lm, list(STARTS), room, temperature=1.0, seed=seed, bos=bos).text
        prefixes = [f"{start}{text.rstrip()}. " for start, text in zip(STARTS, written, strict=True)]
    return ["", *prefixes]


def contexts(
    lm: LanguageModel, request: Request, prefixes: Sequence[str], bos: str | bool, width: int = 0, tokens_of_target: int = 0
) -> Contexts:
    """A request behind each prefix, and its subject alone.

    Args:
        lm: the model.
        request: what to write.
        prefixes: texts before the prompt.
        bos: as for `run`.
        width: columns at least.
        tokens_of_target: room for so many at least.
    """
    heads = [prefix + request.prompt for prefix in prefixes]
    texts = [*(head + request.target for head in heads), f"{request.subject} is a"]
    ends = [len(prefix) + request.prompt.rfind(request.subject) + len(request.subject) for prefix in prefixes] + [len(request.subject)]
    tokens = lm.to_tokens(texts, bos=bos)
    check_ids(tokens, lm.config.d_vocab, lm.config.n_ctx)
    lengths = np.asarray(tokens.lengths)
    spans = [lm._tokenizer.encode_with_offsets(text)[1] for text in texts]
    # tokens before a text, such as the beginning of the sequence, have no place in it
    before = lengths - np.asarray([len(span) for span in spans])
    last = [next(i for i, (_, end) in enumerate(span) if end >= subject) for span, subject in zip(spans, ends, strict=True)]
    counts = [sum(end > len(head) for _, end in span) for span, head in zip(spans, heads, strict=False)]
    if any(own + place >= length - count for own, place, length, count in zip(before, last, lengths, counts, strict=False)):
        raise InputError(f"The subject's last token reaches into the target {request.target!r}: let a word or a space stand between.")
    size = max(tokens_of_target, *counts)
    columns = np.full((len(texts), size), lengths[:, None] - 1)
    weight = np.zeros((len(texts), size), np.float32)
    for row, count in enumerate(counts):
        columns[row, :count] = lengths[row] - count - 1 + np.arange(count)
        weight[row, :count] = 1 / count
    padded = tokens.padded(bucket(max(tokens.ids.shape[1], width), lm.config.n_ctx))
    following = np.minimum(columns + 1, lengths[:, None] - 1)
    targets = np.take_along_axis(np.asarray(padded.ids), following, axis=1)
    position = (before + np.asarray(last)).astype(np.int32)[:, None]
    return Contexts(padded.arrays_only(), position, columns.astype(np.int32), targets, weight)


# ---------------------------------------------------------------------------------------------------------- the value


class Value(NamedTuple):
    """What was found for a request.

    Attributes:
        delta: [D], what is added.
        loss: the least that was found, of that delta.
        start: [D], the value in the plain prompt.
        key: [L M], mlp_post at the subject's last token of every layer, mean over the contexts.
    """

    delta: Any
    loss: Any
    start: Any
    key: Any


def best_value(lm: LanguageModel, given: Contexts, layer: int, site: str, settings: Settings, precision: str | None) -> Value:
    """The vector to add at a site of a layer at the subject's last token, so that the target follows.

    Raises:
        InputError: nothing that was tried there makes the target likelier.
    """
    depth = lm.config.n_layers
    first = layer * PARTS // depth * depth // PARTS
    numbers: Any = Settings(*map(np.float32, settings))  # type: ignore[arg-type]
    value = _best_value(lm.params, given, np.int32(layer), numbers, config=lm.config, site=site, first=first, precision=precision)
    if not np.asarray(value.delta).any():
        raise InputError(
            f"Nothing that was added to layer {layer} at the subject's last token made the target likelier: choose an earlier layer, whose "
            "values later ones still read at the prompt's end, or a smaller learning_rate, kl or decay."
        )
    return value


@functools.partial(jax.jit, static_argnames=("config", "site", "first", "precision"))
def _best_value(
    params: Any, given: Contexts, layer: Int[Array, ""], settings: Settings, *, config: TransformerConfig, site: str, first: int,
    precision: str | None,
) -> Value:  # fmt: skip
    """The optimisation, compiled: one loop of forward and backward passes from layer `first` up."""
    import optax

    wide = jnp.promote_types(params["embed"]["W_E"].dtype, jnp.float32)
    how: dict[str, Any] = {"dtype": wide, "precision": precision}
    here = at(position=given.position)
    base = forward(
        params, given.tokens, config, sites={"resid_pre": at(layer=first), site: here, "mlp_post": here}, stop=config.n_layers, **how
    )
    start = (first, base.padded["resid_pre"])
    fact = given.weight.sum(axis=1) > 0
    value = base.padded[site][layer, 0, 0]
    unit = jnp.linalg.norm(value) / jnp.sqrt(value.size)

    def logits(delta: Array) -> Float[Array, "B n V"]:
        edit = edits.add(site, delta, layer=layer, position=given.position)
        read = lambda resid, tap: unembed_at(params, resid, config, tap, jnp.asarray(given.columns), None)  # noqa: E731
        return read_forward(params, given.tokens, config, read, edits=[edit], start=start, **how)[0]

    plain = logits(jnp.zeros_like(value))

    def loss(steps: Array) -> Array:
        now = logits(unit * steps)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(now, axis=-1), given.targets[:, :, None], axis=2)[:, :, 0]
        said = -(given.weight * chosen).sum() / fact.sum()
        kept = divergence(plain[-1, -1], now[-1, -1])
        return said + settings.kl * kept + settings.decay * jnp.square(steps).mean()

    optimiser = optax.adam(settings.learning_rate)

    def more(carry: Any) -> Bool[Array, ""]:
        number, _, _, _, least = carry
        return (number <= settings.steps) & (least > settings.enough)

    def step(carry: Any) -> Any:
        number, steps, state, best, least = carry
        value, slope = jax.value_and_grad(loss)(steps)
        best = jnp.where(value < least, steps, best)
        change, state = optimiser.update(slope, state)
        moved: Any = optax.apply_updates(steps, change)
        # |delta| / |v| is the root mean square of the steps
        size = jnp.sqrt(jnp.square(moved).mean())
        steps = moved * jnp.where(size > settings.clamp, settings.clamp / size, 1)
        return number + 1, steps, state, best, jnp.minimum(value, least)

    zero = jnp.zeros_like(value)
    begin = (jnp.float32(0), zero, optimiser.init(zero), zero, jnp.asarray(jnp.inf, wide))
    _, _, _, best, least = jax.lax.while_loop(more, step, begin)
    keys = base.padded["mlp_post"][:, :, 0]
    key = jnp.einsum("LBM,B->LM", keys, fact.astype(wide)) / fact.sum()
    return Value(unit * best, least, value, key)


# ------------------------------------------------------------------------------------------------------ what it did


def measured(
    lm: LanguageModel, changed: LanguageModel, requests: Sequence[Request], paraphrases: Sequence[tuple[int, str]],
    neighbours: Sequence[str], bos: str | bool, precision: str | None,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Probabilities of the targets before and after, and KL divergences at prompts that should not change."""
    prompts = [request.prompt for request in requests] + [text for _, text in paraphrases]
    targets = [request.target for request in requests] + [requests[number].target for number, _ in paraphrases]
    how: dict[str, Any] = {"bos": bos, "precision": precision}
    before, after = (np.exp(score(model, prompts, targets, **how).total) for model in (lm, changed))
    far = np.zeros(0, np.float32)
    if neighbours:
        metric = kl_divergence(run(lm, list(neighbours), **how))
        far = np.asarray(metric(run(changed, list(neighbours), **how)))
    n = len(requests)
    return {
        "before": before[:n], "after": after[:n], "paraphrases_before": before[n:], "paraphrases_after": after[n:], "neighbours": far,
    }  # fmt: skip
