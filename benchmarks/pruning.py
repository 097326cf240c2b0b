"""Pruning: how much faster a model is without a third of its heads and half of its neurons, beside the model whose parts are zeroed.

SmolLM2-135M-Instruct in float32. One of three key/value heads of every layer goes with its query heads; which parts they are does not
matter for speed, so they are drawn. The pruned model is compared with the zeroed one before either is timed.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

import jaxinterp as ji
from benchmarks.context import Context, Measurement, Suite
from benchmarks.harness import Contender, agree, race, timed
from benchmarks.runs import PROMPT
from jaxinterp.data.plain import PARAGRAPHS
from jaxinterp.methods.weights.balance import balance
from jaxinterp.methods.weights.prune import prune
from jaxinterp.methods.weights.pruned_layout import Pruning, pruned_layout
from jaxinterp.model.language_model import LanguageModel
from jaxinterp.runs.generate import generate

HEADS, NEURONS, NEW = 1 / 3, 1 / 2, 64
WHOLE, PRUNED = "the whole model", "the pruned model"


@functools.lru_cache(1)
def pruned(ctx: Context) -> tuple[LanguageModel, Pruning]:
    """The smaller model, equal to the zeroed one to rounding, and what it lost."""
    lost = balance(ctx.lm.config, HEADS, NEURONS).random(0)
    small, layout = prune(ctx.lm, **lost), pruned_layout(ctx.lm.config, **lost)
    trace, zeroed = ji.run(small, PROMPT, "resid_post"), ji.run(ctx.lm, PROMPT, "resid_post", layout.ablation())
    agree("pruned and zeroed, residual stream", trace["resid_post"], zeroed["resid_post"])
    error = agree("pruned and zeroed, logits", trace.logits, zeroed.logits)
    before, after = layout.parameters
    config = layout.after
    detail = f"{after:,} / {before:,}; {config.n_heads} heads on {config.n_kv_heads}, {config.d_mlp} neurons a layer"
    ctx.report.figure("parameters of the pruned model", 100 * after / before, unit="%", detail=detail)
    ctx.report.note(f"No logit of the pruned model differs from the zeroed model's by more than {error:.1e}.")
    return small, layout


def beside(ctx: Context, what: str, works: dict[str, Callable[[], Any]], least: float) -> None:
    """The whole model and the pruned one in turns."""
    times = race([Contender(name, timed(work)) for name, work in works.items()], ctx.few)
    ctx.report.race(what, times)
    ctx.report.speedup(f"{what}: time whole / pruned", times, PRUNED, WHOLE, least)


def forward(ctx: Context) -> None:
    """A forward pass of eight prompts of about 64 tokens, with all logits."""
    small, layout = pruned(ctx)
    texts = [f"{first} {second}" for first, second in zip(PARAGRAPHS[::2], PARAGRAPHS[1::2], strict=True)]
    tokens = ji.Tokens.from_ids(np.asarray(ctx.lm.to_tokens(texts).ids)[:, :64])

    def running(lm: LanguageModel, edits: Any = ()) -> Callable[[], Any]:
        return lambda: ji.run(lm, tokens, edits=edits).padded_logits

    works = {WHOLE: running(ctx.lm), PRUNED: running(small), "the whole model, parts zeroed": running(ctx.lm, layout.ablation())}
    beside(ctx, "forward pass, 8 prompts of 64 tokens", works, 1.2)


def decode(ctx: Context) -> None:
    """Greedy decoding of one prompt, weights a layer at a time."""
    small, _ = pruned(ctx)

    def writing(lm: LanguageModel) -> Callable[[], Any]:
        apart = lm.by_layer()
        return lambda: generate(apart, PROMPT, NEW, stop_tokens=()).ids

    beside(ctx, f"greedy decoding, batch 1, {NEW} tokens", {WHOLE: writing(ctx.lm), PRUNED: writing(small)}, 1.2)


SUITE = Suite(
    "Pruning: SmolLM2-135M-Instruct without a third of its heads and half of its neurons, float32",
    {
        "prune-forward": Measurement(forward, "a forward pass of eight prompts, whole and pruned"),
        "prune-decode": Measurement(decode, "greedy decoding of one prompt, whole and pruned"),
    },
)
