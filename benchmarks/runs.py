"""Runs and loading: `ji.run` with and without captured sites, `stop`, compiling, loading, importing; transformers beside.

All on SmolLM2-135M-Instruct in float32. Every piece of work is compared with the peer's result before it is timed.
"""

import functools
import importlib
import statistics
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import numpy as np

import jaxinterp as ji
from benchmarks.context import Context, Measurement, Suite
from benchmarks.harness import Contender, Race, Watch, agree, fresh, log, race, timed
from jaxinterp.model.tokens import Tokens
from jaxinterp.model.trace import Trace
from jaxinterp.runs.program import bucket

PROMPT = "When Mary and John went to the store, John gave a drink to"
ANOTHER = "The capital of France is Paris, and the capital of Italy is"
PAIRS = [
    ("Mary", "John", "Tom", "store", "drink"), ("Anna", "James", "Paul", "park", "ball"), ("Sarah", "Paul", "Mary", "school", "book"),
    ("David", "Lisa", "Anna", "office", "ring"), ("Emma", "Mark", "Sarah", "store", "book"), ("Tom", "Kate", "David", "park", "drink"),
    ("Lisa", "David", "Emma", "school", "ball"), ("John", "Sarah", "Mark", "office", "ring"),
]  # fmt: skip
TEXT = " ".join(
    f"Then, {a} and {b} went to the {place}. {giver} gave a {thing} to {taker}."
    for a, b, c, place, thing in PAIRS
    for giver, taker in ((b, a), (a, b), (c, a))
)

BARS = {14: {"every site": 1.2, "one site": 1.05, "transformers": 0.85}, 256: {"every site": 1.6, "one site": 1.05, "transformers": 1.05}}


def prompt_of(ctx: Context, size: int) -> Tokens:
    """A prompt of so many tokens."""
    tokens = ctx.lm.to_tokens(PROMPT if size == 14 else TEXT)
    assert tokens.ids.shape[1] >= size, f"the text has {tokens.ids.shape[1]} tokens"
    return Tokens.from_ids(tokens.ids[:, :size])


def running(ctx: Context, tokens: Tokens, sites: Any = (), stop: int | None = None) -> Callable[[], Any]:
    """`ji.run`, as work that returns its arrays."""

    def work() -> Any:
        trace = ji.run(ctx.lm, tokens, sites=sites, stop=stop)
        return trace.padded_logits, trace.padded

    return work


# ------------------------------------------------------------------------------------------------------ measurements


def run_and_capture(ctx: Context, size: int) -> None:
    """One prompt: run without sites, with one, with every site; transformers and TransformerLens on the same ids."""
    tokens = prompt_of(ctx, size)
    captures = {"run": (), "run, resid_post": "resid_post", "run, every site": "all"}
    ours = {name: running(ctx, tokens, sites) for name, sites in captures.items()}
    logits = {name: work()[0] for name, work in ours.items()}
    for name in logits:
        agree(name, logits[name], logits["run"])
    contenders = [Contender(name, timed(work)) for name, work in ours.items()]
    theirs = _peers(ctx, tokens, np.asarray(logits["run"]), np.asarray(ours["run, resid_post"]()[1]["resid_post"])) if ctx.peer else {}
    contenders += [Contender(name, once) for name, once in theirs.items()]
    times = race(contenders, ctx.rounds, ctx.pids)
    captured = sum(array.nbytes for array in ours["run, every site"]()[1].values())
    report, bars, what = ctx.report, BARS[size], f"{size} tokens"
    report.race(f"{what} (every site: {captured / 1e6:.0f} MB)", times)
    report.ratio(f"{what}: run, every site / none", times, "run, every site", "run", bars["every site"])
    report.ratio(f"{what}: run, resid_post / none", times, "run, resid_post", "run", bars["one site"])
    if theirs:
        report.ratio(f"{what}: run / transformers", times, "run", "transformers", bars["transformers"])
        report.ratio(f"{what}: run / TransformerLens", times, "run", "TransformerLens")
        report.ratio(f"{what}: run, every site / TransformerLens, its cache", times, "run, every site", "TransformerLens, its cache")
    operations = ji.plan(ctx.lm, tokens).operations
    report.figure(
        f"{what}: run", 1e3 * times.median("run"), unit="ms", race=times, detail=f"{operations / times.median('run') / 1e9:.0f} GFLOP/s"
    )


def _peers(ctx: Context, tokens: Tokens, logits: np.ndarray, resid_post: np.ndarray) -> dict[str, Callable[[], float]]:
    """The peers' work on the same ids, once it gives the same."""
    assert ctx.peer is not None
    given = {"folder": str(ctx.folder), "ids": np.asarray(tokens.ids).tolist()}
    names = {"transformers": "transformers_forward", "TransformerLens": "lens_forward", "TransformerLens, its cache": "lens_run_with_cache"}
    works = {name: ctx.peer.prepare(f"peer.{function}", **given) for name, function in names.items()}
    size = tokens.ids.shape[1]
    for name, work in works.items():
        arrays = work.arrays()
        apart = agree(f"{name}, logits", logits[:, :size], arrays["logits"])
        if name == "transformers":
            ctx.report.figure(f"{size} tokens: largest difference of a logit from transformers", apart, unit="", bar=1e-4)
        if "resid_post" in arrays:
            agree(f"{name}, resid_post", resid_post[:, :, :size], arrays["resid_post"])
    return {name: work.once for name, work in works.items()}


def stop(ctx: Context) -> None:
    """Runs that stop early; the residual stream that they end with is captured, else there would be nothing to compute."""
    tokens, depth = prompt_of(ctx, 14), ctx.lm.config.n_layers
    whole = ji.run(ctx.lm, tokens, sites="resid_post")["resid_post"]
    contenders = []
    for layers in (depth // 6, depth // 2, depth):
        work = running(ctx, tokens, {"resid_post": ji.at(layer=layers - 1)}, layers)
        agree(f"stop={layers}", work()[1]["resid_post"], whole[layers - 1])
        contenders.append(Contender(f"stop={layers}", timed(work)))
    times = race(contenders, ctx.rounds)
    ctx.report.race("stop, 14 tokens", times)
    for contender, bar in zip(contenders[:2], (0.25, 0.6), strict=True):  # 1/6 and 1/2 of the layers, and what every run costs
        ctx.report.ratio(f"{contender.name} / {contenders[2].name}", times, contender.name, contenders[2].name, bar)


def host(ctx: Context) -> None:
    """What `ji.run` costs outside its compiled program: its program is replaced by one that computes nothing."""
    module = importlib.import_module("jaxinterp.runs.run")
    static = ("config", "stop", "dtype", "capture_dtype", "precision")

    @functools.partial(jax.jit, static_argnames=static)
    def nothing(
        params: Any, tokens: Tokens, requests: Any, edits: Any, rules: Any, start: Any, inputs: Any,
        config: Any, stop: Any, dtype: Any, capture_dtype: Any, precision: Any,
    ) -> Trace:  # fmt: skip
        return Trace(tokens.ids, {}, tokens)

    tokens = prompt_of(ctx, 14)
    works = {
        "ids, no sites": lambda: ji.run(ctx.lm, tokens),
        "text, no sites": lambda: ji.run(ctx.lm, PROMPT),
        "ids, every site": lambda: ji.run(ctx.lm, tokens, sites="all"),
    }
    with mock.patch.object(module, "run_program", nothing):
        times = race([Contender(name, timed(work), 51) for name, work in works.items()], ctx.rounds)
    ctx.report.race("run without its compiled program, 14 tokens", times)
    ctx.report.figure("host's part of a run (text)", 1e3 * times.median("text, no sites"), unit="ms", race=times)


def first_run(ctx: Context) -> None:
    """The first run of a process, without any cache of compiled programs, and a second prompt of the same bucket."""
    first, second = (np.asarray(ctx.lm.to_tokens(text).ids).tolist() for text in (PROMPT, ANOTHER))
    assert bucket(len(first[0]), 10**6) == bucket(len(second[0]), 10**6) and len(first[0]) != len(second[0]), "prompts of one bucket"
    found = []

    def once() -> float:
        found.append(fresh(sys.executable, "ours_first_run", path=str(ctx.gguf), ids=first, others=second))
        return found[-1]["first"] - found[-1]["second"]

    name = "first run less a later one"
    times = race([Contender(name, once, 1)], ctx.few)
    ctx.report.race("compiling, 30 layers, fresh process", times)
    stages = {name: statistics.median(each["stages"].get(name, 0.0) for each in found) for name in found[0]["stages"]}
    detail = ", ".join(f"{name.replace('_', ' ')} {seconds:.2f} s" for name, seconds in stages.items())
    ctx.report.figure("first run of a 30-layer model: compiling", times.median(name), unit="s", bar=2.0, detail=detail, race=times)
    programs = ", ".join(found[0]["again"]) or f"first run: {len(found[0]['programs'])}"
    ctx.report.figure("programs compiled for a second prompt of the bucket", len(found[0]["again"]), unit="", bar=0, detail=programs)


def importing(ctx: Context) -> None:
    """`import jaxinterp` in a fresh process."""
    found: dict[str, Any] = {}

    def once(python: Any, task: str) -> float:
        found[task] = fresh(python, task)
        return float(found[task]["seconds"])

    contenders = [Contender("import jaxinterp", functools.partial(once, sys.executable, "ours_import"), 1)]
    if ctx.peer_python:
        contenders.append(
            Contender("import transformers' auto classes", functools.partial(once, ctx.peer_python, "transformers_import"), 1)
        )
    times = race(contenders, ctx.few)
    foreign = found["ours_import"]["foreign"]
    ctx.report.race("importing, fresh process", times)
    ctx.report.figure("import jaxinterp", times.median("import jaxinterp"), unit="s", bar=1.5, race=times)
    ctx.report.figure("torch, transformers imported by it", len(foreign), unit="", bar=0, detail=", ".join(foreign))


def loading(ctx: Context) -> None:
    """Loading in a fresh process, its files in the system's page cache; transformers beside."""
    found: dict[str, Any] = {}

    def once(name: str, python: Any, task: str, **arguments: Any) -> float:
        found[name] = fresh(python, task, **arguments)
        return float(found[name]["seconds"])

    gguf, folder, theirs = "ji.load, GGUF", "ji.load, HF folder", "transformers, HF folder"
    contenders = [
        Contender(gguf, functools.partial(once, gguf, sys.executable, "ours_load", path=str(ctx.gguf)), 1),
        Contender(folder, functools.partial(once, folder, sys.executable, "ours_load", path=str(ctx.folder)), 1),
    ]
    if ctx.peer_python:
        load = functools.partial(once, theirs, ctx.peer_python, "transformers_load", folder=str(ctx.folder))
        contenders.append(Contender(theirs, load, 1))
    times = race(contenders, ctx.few)
    report = ctx.report
    report.race("loading, fresh process", times)
    report.figure(gguf, times.median(gguf), unit="s", bar=4.5, race=times)
    report.figure(folder, times.median(folder), unit="s", bar=2.0, race=times)
    if ctx.peer_python:
        report.ratio("HF folder: ji.load / transformers", times, folder, theirs)
        report.note(
            "transformers on the HF folder: model {model:.2f} s, tokenizer {tokenizer:.2f} s, then reading it.".format(**found[theirs])
        )
        log("    transformers, GGUF, once: this takes a while")
        with Watch() as watch:
            slow = fresh(ctx.peer_python, "transformers_load", watch_memory=True, folder=str(ctx.gguf.parent), gguf=ctx.gguf.name)
        report.race("loading, fresh process, once", Race({"transformers, GGUF": [slow["seconds"]]}, [watch.others]))
        report.note("transformers on the GGUF file: model {model:.1f} s, tokenizer {tokenizer:.1f} s.".format(**slow))
        detail = f"{times.median(gguf):.1f} / {slow['seconds']:.1f} s"
        report.figure("GGUF: ji.load / transformers (once)", times.median(gguf) / slow["seconds"], detail=detail, race=times)
        _memory(ctx, "transformers, GGUF", slow)


def memory(ctx: Context) -> None:
    """The most anonymous memory that loading takes beyond the model itself."""
    for name, path in (("ji.load, GGUF", ctx.gguf), ("ji.load, HF folder", ctx.folder)):
        _memory(ctx, name, fresh(sys.executable, "ours_load", watch_memory=True, path=str(path)), bar=1.3)


def _memory(ctx: Context, name: str, found: dict[str, Any], bar: float | None = None) -> None:
    peak, weights, largest = (found[key] / 1e6 for key in ("anonymous", "weights", "largest"))
    detail = f"peak {peak:.0f} MB; model {weights:.0f}, its largest leaf {largest:.0f} MB"
    ctx.report.figure(f"{name}: anonymous memory beyond the model", (peak - weights) / largest, unit="leaves", bar=bar, detail=detail)


SUITE = Suite(
    "Runs and loading: SmolLM2-135M-Instruct, float32",
    {
        "run-14": Measurement(lambda ctx: run_and_capture(ctx, 14), "run at 14 tokens, with and without sites, beside the peers"),
        "run-256": Measurement(lambda ctx: run_and_capture(ctx, 256), "the same at 256 tokens"),
        "stop": Measurement(stop, "runs that stop after 5, 15 and 30 layers"),
        "host": Measurement(host, "what a run costs outside its compiled program"),
        "first-run": Measurement(first_run, "compiling, and that a second prompt compiles nothing", on_device=False),
        "import": Measurement(importing, "import jaxinterp", on_device=False),
        "load": Measurement(loading, "loading a GGUF file and an HF folder", on_device=False),
        "memory": Measurement(memory, "anonymous memory of loading", on_device=False),
    },
)
