"""Gradients and attribution: `ji.gradients`, attribution patching and integrated gradients, in forward and backward passes.

All on SmolLM2-135M-Instruct in float32 and the pair of prompts of the sweeps. The peer's gradients are compared before they are timed.
"""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

import jaxinterp as ji
from benchmarks.context import Context, Measurement, Suite
from benchmarks.harness import Contender, Race, agree, race, timed
from benchmarks.runs import PAIRS
from benchmarks.sweeps import CLEAN, CORRUPT

METRIC = ji.metrics.logit_difference(" Mary", " John")
SITES = ("resid_pre", "z", "mlp_post")
NODES = {"z": ("layer", "head", "position"), "mlp_out": ("layer", "position")}
STARRED = dict.fromkeys(("q", "k", "v"), ("layer", "head", "position")) | NODES
OURS, FORWARD, COPIES = "ji.gradients", "ji.run", 30
LENS, LENS_ALONE = "TransformerLens, forward + backward", "TransformerLens, weights without gradients"


def _gradients(ctx: Context, prompts: Any, metric: Any = METRIC, sites: Any = SITES) -> Callable[[], Any]:
    return lambda: ji.gradients(ctx.lm, prompts, metric, sites)


def _forward(ctx: Context, prompts: Any) -> Callable[[], Any]:
    return lambda: ji.run(ctx.lm, prompts).padded_logits


def gradients(ctx: Context) -> None:
    """Gradients at three sites of all layers, beside TransformerLens; the memory that was planned for them."""
    report, tokens = ctx.report, ctx.lm.to_tokens(CLEAN)
    contenders = [Contender(OURS, timed(_gradients(ctx, tokens))), Contender(FORWARD, timed(_forward(ctx, tokens)))]
    if ctx.peer:
        answers = [ctx.lm.to_id(text) for text in (" Mary", " John")]
        given = {"folder": str(ctx.folder), "ids": np.asarray(tokens.ids).tolist(), "answer": answers[0], "other": answers[1]}
        found = ji.gradients(ctx.lm, tokens, METRIC, SITES)
        for name, weights in ((LENS, True), (LENS_ALONE, False)):
            work = ctx.peer.prepare("peer_attribution.lens_gradients", weights=weights, **given)
            for site, value in work.arrays().items():  # in the last layer only the last position has a gradient
                ours, theirs = (np.asarray(each).reshape(*value.shape[:3], -1)[:-1] for each in (found[site], value))
                agree(f"{name}, {site}", ours, theirs)
            contenders.append(Contender(name, work.once))
    times = race(contenders, ctx.rounds, ctx.pids)
    report.race("gradients at resid_pre, z and mlp_post, 14 tokens", times)
    if ctx.peer:
        report.ratio("gradients at three sites / TransformerLens, forward + backward", times, OURS, LENS, 0.5)
        report.ratio("gradients at three sites / TransformerLens, weights without gradients", times, OURS, LENS_ALONE)
    report.ratio("gradients at three sites / one forward pass", times, OURS, FORWARD)
    for remat in (False, True):
        planned, measured = (ji.plan(ctx.lm, tokens, SITES, metric=METRIC, remat=remat, compile=c).needed for c in (False, True))
        name = "gradients, remat: memory by the compiler / planned" if remat else "gradients: memory by the compiler / planned"
        report.figure(name, measured / planned, bar=1.2, least=0.8, detail=f"{measured / 1e6:.0f} / {planned / 1e6:.0f} MB")


def batches(ctx: Context) -> None:
    """Eight prompts in one call, and in eight."""
    prompts = [f"Then, {a} and {b} went to the {place}. {b} gave a {thing} to" for a, b, _, place, thing in PAIRS]
    metrics = [ji.metrics.logit_difference(f" {a}", f" {b}") for a, b, *_ in PAIRS]
    every = ji.metrics.logit_difference([f" {a}" for a, *_ in PAIRS], [f" {b}" for _, b, *_ in PAIRS])
    alone = lambda: [_gradients(ctx, prompt, metric)() for prompt, metric in zip(prompts, metrics, strict=True)]  # noqa: E731
    together = _gradients(ctx, prompts, every)
    agree("eight prompts in one call", together()["resid_pre"], np.concatenate([found["resid_pre"] for found in alone()], axis=1))
    times = race([Contender("one call", timed(together)), Contender("eight calls", timed(alone))], ctx.rounds)
    ctx.report.race("gradients of 8 prompts of 15 tokens", times)
    ctx.report.ratio("gradients of 8 prompts: one call / eight", times, "one call", "eight calls", 0.45)


def patching(ctx: Context) -> None:
    """Attribution patching of every node, with the query/key fix and with GradDrop, in forward and backward passes."""
    lm, tokens = ctx.lm, ctx.lm.to_tokens(CLEAN)

    def work(sites: Any, **options: Any) -> Callable[[], Any]:
        return lambda: {site: found.values for site, found in _patch(lm, sites, options).items()}

    copies, depth = [CLEAN] * COPIES, lm.config.n_layers
    every = {
        FORWARD: _forward(ctx, tokens), "AtP": work(NODES), "AtP, query/key fix": work(STARRED, softmax="exact"),
        "AtP, GradDrop": work(NODES, grad_drop=True), "gradients of 30 copies": _gradients(ctx, copies, sites=["z", "mlp_out"]),
        "forward of 30 copies": lambda: ji.run(lm, copies, {"resid_post": ji.at(layer=depth - 1)}, stop=depth)["resid_post"],
    }  # fmt: skip
    times = race([Contender(name, timed(one)) for name, one in every.items()], ctx.few)
    report = ctx.report
    report.race("attribution patching, 14 tokens", times)
    nodes = sum(found.values.size for found in _patch(lm, NODES, {}).values())
    report.ratio(f"AtP of {nodes} nodes / one forward pass", times, "AtP", FORWARD, 5)
    report.ratio("AtP of q, k, v, z and MLPs with the query/key fix / one forward pass", times, "AtP, query/key fix", FORWARD, 10)
    seconds = dict(times.seconds)
    backward = [both - ahead for both, ahead in zip(seconds["gradients of 30 copies"], seconds["forward of 30 copies"], strict=True)]
    seconds["30 backward passes, batched"] = backward
    report.ratio(
        "AtP with GradDrop / 30 backward passes, batched", Race(seconds, times.others), "AtP, GradDrop", "30 backward passes, batched", 1.2
    )


def _patch(lm: ji.LanguageModel, sites: Any, options: dict[str, Any]) -> Any:
    return ji.attribution_patch(lm, CLEAN, CORRUPT, METRIC, sites=sites, **options)


def integrated(ctx: Context) -> None:
    """Integrated gradients of the input: time, completeness from four baselines, and the steps that 5 % needs."""
    lm, tokens = ctx.lm, ctx.lm.to_tokens(CLEAN)

    def explain(**options: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ji.attribution.integrated_gradients(lm, tokens, METRIC, **options)

    linear = {"baseline": CORRUPT, "steps": 32, "spacing": "linear"}
    names = ("IG, 32 steps", "forward + backward")
    works = (lambda: explain(**linear).scores, _gradients(ctx, tokens, sites=["embed"]))
    times = race([Contender(name, timed(one)) for name, one in zip(names, works, strict=True)], ctx.few)
    report = ctx.report
    report.race("integrated gradients, 14 tokens", times)
    report.ratio("IG with 32 steps / one forward + backward", times, *names, 16)
    report.figure("IG, 32 steps from the corrupt prompt: completeness error", _error(explain(**linear)), unit="%", bar=1)
    for baseline in ("zero", "mean", 0):
        shown = baseline if isinstance(baseline, str) else f"token {baseline}"
        errors = {spacing: _error(explain(baseline=baseline, steps=32, spacing=spacing)) for spacing in ("linear", "log", "adaptive")}
        enough = explain(baseline=baseline, tolerance=0.05)
        steps = dict(enough.how)["steps"]
        detail = ", ".join(f"{name} {error:.3g} %" for name, error in errors.items())
        report.figure(
            f"IG from {shown}: points that 5 % needs, adaptive", int(steps), unit="", detail=f"{_error(enough):.2g} %; with 32: {detail}"
        )


def _error(found: Any) -> float:
    return 100 * float(np.max(found.relative_error))


SUITE = Suite(
    "Gradients and attribution: SmolLM2-135M-Instruct, float32",
    {
        "gradients": Measurement(gradients, "gradients at three sites of all layers, beside TransformerLens, and their memory"),
        "batches": Measurement(batches, "eight prompts in one call, and in eight"),
        "patching": Measurement(patching, "attribution patching of every node, with the query/key fix and with GradDrop"),
        "integrated": Measurement(integrated, "integrated gradients: time, completeness, and the points that it needs"),
    },
)
