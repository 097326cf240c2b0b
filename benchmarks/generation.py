"""Generation: greedy decoding beside transformers, as a share of what reading the weights allows, and in long contexts.

All on SmolLM2-135M-Instruct in float32, 64 new tokens; the peer's tokens are compared before it is timed.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxinterp as ji
from benchmarks.context import Context, Measurement, Suite
from benchmarks.harness import Contender, Race, WrongResult, race, timed
from benchmarks.runs import PAIRS, PROMPT, TEXT
from jaxinterp.model.language_model import LanguageModel
from jaxinterp.runs.generate import generate, stream

NEW = 64
OURS, STACKED, THEIRS = "ji.generate, weights a layer at a time", "ji.generate, weights in stacks", "transformers"
PROMPTS = [f"Then, {a} and {b} went to the {place}. {giver} gave a {thing} to" for a, b, _, place, thing in PAIRS for giver in (a, b)]


@functools.lru_cache(1)
def apart(ctx: Context) -> LanguageModel:
    """The model with its weights a layer at a time."""
    return jax.block_until_ready(ctx.lm.by_layer())


def writing(lm: LanguageModel, prompts: Any, new: int = NEW, **options: Any) -> Callable[[], Any]:
    """Greedy decoding that no token ends."""
    return lambda: generate(lm, prompts, new, stop_tokens=(), **options).ids


def beside(ctx: Context, prompts: list[str], what: str, bar: float, goal: str = "") -> Race:
    """Both layouts and transformers on the same prompts; speeds in tokens a second."""
    ours = {OURS: writing(apart(ctx), prompts), STACKED: writing(ctx.lm, prompts)}
    made = {name: work() for name, work in ours.items()}
    contenders = [Contender(name, timed(work)) for name, work in ours.items()]
    if ctx.peer:
        tokens = ji.Tokens.from_ids(*_left(ctx.lm.to_tokens(prompts)))
        given = {"ids": np.asarray(tokens.ids).tolist(), "mask": np.asarray(tokens.mask).astype(int).tolist(), "new": NEW}
        peer = ctx.peer.prepare("peer_generation.transformers_generate", folder=str(ctx.folder), **given)
        made[THEIRS] = peer.arrays()["ids"]
        contenders.append(Contender(THEIRS, peer.once))
    for name, ids in made.items():
        if (np.asarray(ids) != made[OURS]).any():
            raise WrongResult(f"{what}: {name} writes other tokens.")
    times = race(contenders, ctx.few, ctx.pids)
    ctx.report.race(f"greedy decoding, {what}, {NEW} tokens", times)
    for name in made:
        speed = len(prompts) * NEW / times.median(name)
        ctx.report.figure(f"{what}: {name}", speed, unit="tokens/s", race=times)
    if ctx.peer:
        ctx.report.speedup(f"{what}: transformers' time / {OURS}{goal}", times, OURS, THEIRS, bar)
        ctx.report.speedup(f"{what}: transformers' time / {STACKED}", times, STACKED, THEIRS)
    return times


def _left(tokens: ji.Tokens) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask with padding on the left."""
    ids, mask = np.asarray(tokens.ids), np.asarray(tokens.mask)
    order = np.argsort(mask, axis=1, kind="stable")
    return np.take_along_axis(ids, order, axis=1), np.take_along_axis(mask, order, axis=1)


def one(ctx: Context) -> None:
    """One prompt, and the share of the speed that reading every weight once a token would have."""
    beside(ctx, [PROMPT], "batch 1", 1.15, " (goal 1.35x)")
    lm = apart(ctx)
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(lm.params))

    @jax.jit
    def summed(leaves: list[jax.Array]) -> jax.Array:
        return jnp.stack([leaf.sum() for leaf in leaves]).sum()

    @jax.jit
    def multiplied(leaves: list[jax.Array]) -> list[jax.Array]:
        return [leaf.reshape(-1, leaf.shape[-1]) @ jnp.ones(leaf.shape[-1]) for leaf in leaves]

    stacks = jax.tree.leaves(ctx.lm.params)
    works: dict[str, Callable[[], Any]] = {
        "reading the weights: summed": lambda: summed(stacks), "reading the weights: times ones": lambda: multiplied(stacks),
        "64 tokens": writing(lm, [PROMPT]), "1 token": writing(lm, [PROMPT], 1),
    }  # fmt: skip
    times = race([Contender(name, timed(work)) for name, work in works.items()], ctx.few)
    reading = min(list(works)[:2], key=times.median)
    ctx.report.race("reading the weights, and decoding", times)
    seconds = [(long - short) / (NEW - 1) for long, short in zip(times.seconds["64 tokens"], times.seconds["1 token"], strict=True)]
    share = float(np.median([100 * once / token for once, token in zip(times.seconds[reading], seconds, strict=True)]))
    detail = f"{total / 1e6:.0f} MB read in {1e3 * times.median(reading):.1f} ms; a token takes {1e3 * float(np.median(seconds)):.1f} ms"
    ctx.report.figure("batch 1: share of weights-read-once speed", share, unit="%", least=55, detail=detail, race=times)


def sixteen(ctx: Context) -> None:
    """Sixteen prompts of unequal lengths."""
    beside(ctx, PROMPTS, "batch 16", 1.0)


def context(ctx: Context) -> None:
    """Decoding after 960 tokens and after 14, each less its prompt's time."""
    lm, short = apart(ctx), np.asarray(ctx.lm.to_tokens(PROMPT).ids)
    text = np.asarray(ctx.lm.to_tokens(" ".join([TEXT] * 4)).ids)
    long = text[:, :960]
    assert long.shape[1] == 960, f"the text has {text.shape[1]} tokens"
    works = {f"{name}, {new} tokens": writing(lm, ids, new) for name, ids in (("long", long), ("short", short)) for new in (NEW, 1)}
    times = race([Contender(name, timed(work)) for name, work in works.items()], ctx.few)
    ctx.report.race("decoding in a context of 1,024 tokens and in one of 78", times)
    net = {
        name: [a - b for a, b in zip(times.seconds[f"{name}, {NEW} tokens"], times.seconds[f"{name}, 1 tokens"], strict=True)]
        for name in ("long", "short")
    }
    ctx.report.speedup("speed at 1,024 tokens of context / at 64", Race(net, times.others), "long", "short", 0.7)


def more(ctx: Context) -> None:
    """Streaming, captured sites, edits and sampling against plain decoding; weights stored narrow; memory over 1,000 tokens."""
    lm = apart(ctx)
    vector = np.random.default_rng(0).normal(size=lm.config.d_model).astype(np.float32)
    edit = ji.edits.add("resid_post", vector, layer=12, when="new")
    narrow = lm.replace(params=jax.tree.map(lambda w: w.astype(jnp.bfloat16), lm.params))
    works = {
        "plain": writing(lm, PROMPT),
        "streamed": lambda: "".join(stream(lm, PROMPT, NEW, stop_tokens=())),
        "resid_post captured": writing(lm, PROMPT, sites="resid_post"),
        "an edit at layer 12": writing(lm, PROMPT, edits=edit),
        "sampled, top-p 0.9": writing(lm, PROMPT, temperature=1.0, top_p=0.9),
        "bfloat16 weights, float32 computed": writing(narrow, PROMPT, dtype="float32"),
        "bfloat16": writing(narrow, PROMPT),
    }
    times = race([Contender(name, timed(work)) for name, work in works.items()], ctx.few)
    ctx.report.race("batch 1, 64 tokens, from weights a layer at a time", times)
    for name in list(works)[1:]:
        ctx.report.ratio(f"{name} / plain", times, name, "plain")
    before = len(jax.live_arrays())
    writing(lm, PROMPT, 1000)()
    ctx.report.figure("arrays that live on after 1,000 tokens", len(jax.live_arrays()) - before, unit="", bar=0)


SUITE = Suite(
    "Generation: SmolLM2-135M-Instruct, float32",
    {
        "decode-1": Measurement(one, "greedy decoding of one prompt, beside transformers and beside reading the weights"),
        "decode-16": Measurement(sixteen, "greedy decoding of sixteen prompts, beside transformers"),
        "context": Measurement(context, "decoding in a context of 1,024 tokens"),
        "decode-more": Measurement(more, "streaming, sites, edits, sampling and narrow weights against plain decoding; memory"),
    },
)
