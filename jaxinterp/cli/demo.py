"""jaxinterp demo: a small experiment on a real language model, told from its prediction down to the heads that make it.

The task is indirect object identification (Wang et al. 2022, arXiv:2211.00593): after "When Mary and John went to the
store, John gave a drink to" the model should say Mary, the name that was not repeated. What the report shows is read
off one run of two prompts, and off two grids of patched runs; the last section is about another prompt:

    predictions   the softmax of the logits at the last position
    layer by layer   the residual stream after each layer, read by the model's own final norm and unembedding
                  (`ji.logit_lens`, nostalgebraist 2020)
    components    with the final norm's denominator held, logits are linear in the residual stream, so what each head,
                  each MLP and the embedding wrote adds up to the logit difference (`ji.direct_logit_attribution`,
                  Elhage et al. 2021); what else there is, biases and rounding, is shown as the rest
    attention     where the heads with the largest parts look from the last position
    patching      the corrupt prompt run again for each layer and position, and for each head, with that one activation
                  of the clean run: what carries the difference (activation patching, Meng et al. 2022)
    steering      a text continued as it is, and with the direction from bad to good sentences added to the residual
                  stream (activation addition, Turner et al. 2023, arXiv:2308.10248; see `jaxinterp steer`)
"""

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jaxinterp.cli.common import DEFAULT_MODEL, Debug, Dtype, Json, about, emit, emit_json, load_model, working
from jaxinterp.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from jaxinterp.model.language_model import LanguageModel
    from jaxinterp.model.trace import Prediction
    from jaxinterp.runs.results import GridResult
    from jaxinterp.views import View

NAME = "demo"
EXAMPLE = "jaxinterp demo --out demo.html"

CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPT = "When Mary and John went to the store, Mary gave a drink to"
RIGHT, WRONG = " Mary", " John"
SHOWN_HEADS = 6
FEELING, NEW_TOKENS = "When I think about my life, I feel", 20
PUSHED_LAYER, PUSH, SENTENCES = 12, 2.0, 16


def command(
    out: Annotated[Path, typer.Option("--out", help="The report's file: .html, .png, .json or .txt.")] = Path("demo.html"),
    dtype: Dtype = "float32",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Watch SmolLM2 (135M) work out who receives the drink, and which of its heads do it."""
    if out.suffix not in (".html", ".png", ".json", ".txt"):
        raise InputError(f"--out ends in .html, .png, .json or .txt; got {str(out)!r}.")
    begin = time.perf_counter()
    lm = load_model(DEFAULT_MODEL, dtype)
    loaded = time.perf_counter()
    with working("running"):
        found = experiment(lm)
    ran = time.perf_counter()
    view = picture(found, about(lm, DEFAULT_MODEL, dtype, "model"))
    try:
        view.save(out)
    except OSError as error:
        raise InputError(f"Cannot write {out}: {error.strerror or error}. Give another place with --out.") from error
    seconds = {"load": loaded - begin, "run": ran - loaded}
    if as_json:
        emit_json(found.as_dict() | {"report": str(out.resolve()), "seconds": seconds})
        return
    emit(view)
    print(f"\nloaded in {seconds['load']:.1f} s, compiled and ran in {seconds['run']:.1f} s\nreport: {out.resolve()}")


@dataclasses.dataclass(frozen=True)
class Findings:
    """What the experiment measured; the prompts' axis B is (clean, corrupt).

    Attributes:
        tokens: the clean prompt's token strings.
        predictions: the likeliest next tokens of each prompt.
        difference: [B] logit(right) - logit(wrong).
        lens: [L B] the same, read off the residual stream after each layer.
        heads: [B L H] each head's part of the difference.
        mlps: [B L] each MLP's part.
        embedding: [B] the embedding's part.
        patterns: [L H K] attention of the clean prompt's last position.
        stream: effects of patching `resid_pre`, layers by positions.
        patched_heads: effects of patching `z`, layers by heads.
        texts: how another text goes on as it is, and steered from bad towards good.
    """

    tokens: list[str]
    predictions: "list[list[Prediction]]"
    difference: "np.ndarray"
    lens: "np.ndarray"
    heads: "np.ndarray"
    mlps: "np.ndarray"
    embedding: "np.ndarray"
    patterns: "np.ndarray"
    stream: "GridResult"
    patched_heads: "GridResult"
    texts: tuple[str, ...]

    def parts(self) -> "dict[str, np.ndarray]":
        """[B] sums of the parts; the rest is what no component accounts for: biases, and rounding."""
        sums = {"embedding": self.embedding, "heads": self.heads.sum(axis=(1, 2)), "MLPs": self.mlps.sum(axis=1)}
        return sums | {"rest": self.difference - sum(sums.values())}

    def strongest(self, count: int) -> list[tuple[int, int]]:
        """The heads (layer, head) with the largest parts in the clean prompt, of either sign."""
        order = abs(self.heads[0]).ravel().argsort()[::-1][:count]
        return [divmod(int(flat), self.heads.shape[2]) for flat in order]

    def parting_layer(self) -> int:
        """The first layer after which the prompts' read-offs are at least half as far apart as at the end."""
        gap = self.lens[:, 0] - self.lens[:, 1]
        return int((gap >= gap[-1] / 2).argmax())

    def as_dict(self) -> dict[str, Any]:
        """The findings as JSON values."""
        names = ("clean", "corrupt")
        return {
            "prompts": {"clean": CLEAN, "corrupt": CORRUPT},
            "predictions": {name: [dataclasses.asdict(p) for p in row] for name, row in zip(names, self.predictions, strict=True)},
            "logit_difference": dict(zip(names, self.difference.tolist(), strict=True)),
            "by_layer": {name: self.lens[:, i].tolist() for i, name in enumerate(names)},
            "parts": {part: dict(zip(names, values.tolist(), strict=True)) for part, values in self.parts().items()},
            "heads": {f"{layer}.{head}": float(self.heads[0, layer, head]) for layer, head in self.strongest(20)},
            "patching": {"resid_pre": self.stream.effects.tolist(), "z": self.patched_heads.effects.tolist()},
            "steering": {"prompt": FEELING, "plain": self.texts[0], "steered": self.texts[1], "layer": PUSHED_LAYER, "strength": PUSH},
        }


def experiment(lm: "LanguageModel") -> Findings:
    """Run both prompts once and read everything off that run; patch one with the other, cell by cell; then steer another text."""
    import numpy as np

    import jaxinterp as ji
    from jaxinterp.data.sentiment import sentiment
    from jaxinterp.methods.steering.difference import mean_difference

    trace = ji.run(lm, [CLEAN, CORRUPT], sites=["embed", "z", "mlp_out", "resid_post", "pattern"])
    metric = ji.metrics.logit_difference(RIGHT, WRONG)
    lens = ji.logit_lens(lm, trace, position=-1, tokens=[RIGHT, WRONG])
    parts = ji.direct_logit_attribution(lm, trace, metric, by="head")
    good, bad = (side[:SENTENCES] for side in (sentiment(lm).positive, sentiment(lm).negative))
    vector = mean_difference(lm, good, bad, layers=PUSHED_LAYER, folds=0)
    return Findings(
        tokens=lm.to_strings(trace.tokens)[0],
        predictions=trace.top(5),
        difference=np.asarray(metric(trace)),
        lens=(lens.logits[..., 0] - lens.logits[..., 1]).T,
        heads=parts.per_example,
        mlps=parts.others["mlp"],
        embedding=parts.others["embed"],
        patterns=np.asarray(trace.at("pattern", query=-1)[:, 0]),
        stream=ji.patch(lm, CLEAN, CORRUPT, metric),
        patched_heads=ji.patch(lm, CLEAN, CORRUPT, metric, "z", over=("layer", "head")),
        texts=ji.generate(lm, [FEELING] * 2, NEW_TOKENS, edits=vector.add(PUSH, layer=PUSHED_LAYER, batch=1)).text,
    )


def picture(found: Findings, provenance: dict[str, str]) -> "View":
    """The findings as a report."""
    from jaxinterp.views import Section, report

    total, parting = _signed(found.difference[0]), found.parting_layer()
    gap = abs(found.lens[:, 0] - found.lens[:, 1])
    sections = [
        Section(
            "Who gets the drink?",
            f"clean:  {CLEAN} ...\ncorrupt:  {CORRUPT} ...\nWhere John gives, Mary receives. One name is changed, and the answer changes.",
            _predictions(found),
        ),
        Section(
            "The answer appears late",
            "The residual stream after each layer, read at the last position as if the model ended there. "
            f"Through layer {parting - 1} the prompts read within {gap[:parting].max():.1f} of each other; "
            f"after layer {parting} they are {gap[parting]:.1f} apart.",
            (_by_layer(found),),
        ),
        Section(
            "What writes it",
            "With the final norm's denominator held, the logit difference is a sum of what the embedding, every head and every MLP wrote. "
            f"These are the parts of both prompts, and of each head in the clean prompt's {total}.",
            (_parts(found), _heads(found)),
        ),
        Section(
            "Where the heads look",
            f"Attention from the last position of the clean prompt, for the heads with the largest parts of its {total}. A positive part "
            "speaks for ␣Mary: a head that looks at ␣John and has a positive part writes against the name that it sees.",
            (_patterns(found),),
        ),
        Section(
            "What carries the difference",
            f"The corrupt prompt, run {found.stream.effects.size} times with the clean residual stream at one layer and position, and "
            f"{found.patched_heads.effects.size} times with one clean head: 1 is the clean answer, 0 the corrupt one. The repeated name "
            "carries it up to the layers where heads move it to the last position.",
            (found.stream.view("Residual stream"), found.patched_heads.view("Heads, all positions")),
        ),
        Section(
            "Pushing it",
            f"{FEELING} ...\nThe mean activation of {SENTENCES} good sentences minus that of {SENTENCES} bad ones, about concerts and "
            f"soups, is a direction. Added {PUSH:g} times after layer {PUSHED_LAYER}, at every token, it changes how this text goes on.",
            (_steered(found),),
        ),
    ]
    return report("Who gets the drink? Inside a language model", sections, provenance=provenance)


UNIT = "logit(␣Mary) − logit(␣John)"


def _signed(value: float) -> str:
    from jaxinterp.views.numbers import number

    return number(float(value), "signed")


def _predictions(found: Findings) -> "tuple[View, ...]":
    from jaxinterp.views import table

    return tuple(
        table(
            f"{name}:  {UNIT} = {_signed(difference)}",
            {"next token": ("token", [p.token for p in best]), "probability": ("percent", [p.probability for p in best])},
        )
        for name, best, difference in zip(("clean", "corrupt"), found.predictions, found.difference, strict=True)
    )


def _by_layer(found: Findings) -> "View":
    from jaxinterp.views import line

    series = {"clean": found.lens[:, 0], "corrupt": found.lens[:, 1]}
    return line("Logit lens", series, normalisation=f"{UNIT}, read after each layer")


def _parts(found: Findings) -> "View":
    from jaxinterp.views import table

    parts = found.parts() | {"all": found.difference}
    columns = {
        "clean": [p[0] for p in parts.values()],
        "corrupt": [p[1] for p in parts.values()],
        "apart": [p[0] - p[1] for p in parts.values()],
    }
    return table(
        "The sum", {"part": ("text", list(parts))} | {name: ("signed", values) for name, values in columns.items()}, normalisation=UNIT
    )


def _heads(found: Findings) -> "View":
    from jaxinterp.views import heatmap

    return heatmap("Direct logit attribution of heads", found.heads[0], ("layer", "head"), normalisation=f"part of {UNIT}, clean prompt")


def _steered(found: Findings) -> "View":
    from jaxinterp.views import table

    goes_on = [f"... {text.strip()}" for text in found.texts]
    return table("The same text, twice", {"": ("text", ["as it is", "steered"]), "goes on": ("text", goes_on)})


def _patterns(found: Findings) -> "View":
    from jaxinterp.views import attention

    strongest = found.strongest(SHOWN_HEADS)
    layers, heads = zip(*strongest, strict=True)
    return attention(
        "The heads with the largest parts",
        found.patterns[layers, heads],
        found.tokens,
        heads=[f"{layer}.{head}" for layer, head in strongest],
        notes=[_signed(found.heads[0, layer, head]) for layer, head in strongest],
    )
