"""jaxinterp attribute: which tokens of a prompt a prediction rests on."""

import inspect
import sys
import warnings
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jaxinterp.cli.common import Bos, Debug, Dtype, Json, Model, Text, about, bos_argument, emit, emit_json, load_model, read_text
from jaxinterp.cli.grids import Html, picture_path, save_picture
from jaxinterp.errors import InputError

if TYPE_CHECKING:
    from jaxinterp.methods.attribution.result import InputAttribution
    from jaxinterp.model.language_model import LanguageModel

NAME = "attribute"
EXAMPLE = 'jaxinterp attribute smollm2-135m-instruct "The capital of France is" --target " Paris" --other " Rome" --method ig'


def command(
    model: Model,
    text: Text,
    target: Annotated[str, typer.Option("--target", help="What the model should go on with, with its space: a token, or a whole text.")],
    other: Annotated[str | None, typer.Option("--other", help="The token it is held against; without it, the log-probability.")] = None,
    method: Annotated[
        str, typer.Option("--method", help="ig, shapley, occlusion, lrp, saliency, gradient_x_input ...: a function of ji.attribution.")
    ] = "ig",
    baseline: Annotated[
        str | None, typer.Option("--baseline", help="What tokens are held against: zero, mean, pad, or a prompt of as many tokens.")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Points of the path; without it, as many as the error needs.")] = None,
    samples: Annotated[int | None, typer.Option("--samples", min=1, help="Orders or noisy copies, of methods that draw them.")] = None,
    html: Html = None,
    bos: Bos = "model",
    dtype: Dtype = "float32",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Input attribution: what each token of a prompt contributes to a prediction, with the error of the estimate."""
    import jaxinterp as ji
    from jaxinterp.methods.attribution.attribute import METHODS, attribute, method_named

    picture_path(html)
    text = read_text(text)
    options = {"baseline": baseline, "steps": steps, "samples": samples}
    given = {name: value for name, value in options.items() if value is not None}
    takes = inspect.signature(METHODS[method_named(method)]).parameters
    unknown = [name for name in given if name not in takes]
    if unknown:
        raise InputError(f"--{unknown[0]} is not an option of {method_named(method)}.")
    lm = load_model(model, dtype)
    if other is None and not _one_token(lm, target):
        text, metric = text + target, ji.metrics.continuation_log_probability(target)
    else:
        metric = ji.metrics.log_probability(target) if other is None else ji.metrics.logit_difference(target, other)
    with warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always")
        found = attribute(lm, text, metric, method, bos=bos_argument(bos), **given)
    for note in noted:
        print(f"jaxinterp: {note.message}", file=sys.stderr)
    against = target if other is None else f"{target} against {other}"
    view = found.view(title=f"{found.method.replace('_', ' ')}:{against}")
    save_picture(view, html)
    if as_json:
        emit_json(_json(found, text, target, other) | {"about": about(lm, model, dtype, bos)})
        return
    emit(view)
    if html is not None:
        print(f"picture: {html.resolve()}")


def _one_token(lm: "LanguageModel", text: str) -> bool:
    try:
        lm.to_id(text)
    except InputError:
        return False
    return True


def _json(found: "InputAttribution", text: str, target: str, other: str | None) -> dict[str, Any]:
    """An attribution of one prompt as JSON values."""
    numbers = {
        name: None if value is None else float(value[0])
        for name, value in (
            ("metric", found.values), ("baseline", found.baseline), ("total", found.total), ("error", found.error),
            ("relative_error", found.relative_error),
        )
    }  # fmt: skip
    return {
        "prompt": text, "target": target, "other": other, "method": found.method, "unit": found.unit, "signed": found.signed,
        "tokens": list(found.strings[0]), "scores": found.of(0).tolist(), **numbers, "how": dict(found.how),
    }  # fmt: skip
