"""jaxinterp predict: the most likely next tokens after a text."""

from typing import Annotated

import typer

from jaxinterp.cli.common import Bos, Debug, Dtype, Json, Model, Text, about, bos_argument, emit, emit_json, load_model, read_text, working

NAME = "predict"
EXAMPLE = 'jaxinterp predict smollm2-135m-instruct "The capital of France is"'


def command(
    model: Model,
    text: Text,
    top: Annotated[int, typer.Option("--top", min=1, help="How many tokens.")] = 10,
    bos: Bos = "model",
    dtype: Dtype = "float32",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """The most likely next tokens after a text, with their probabilities."""
    import jaxinterp as ji
    from jaxinterp.views import table

    text = read_text(text)
    lm = load_model(model, dtype)
    tokens = lm.to_tokens(text, bos=bos_argument(bos))
    with working("running"):
        best = ji.run(lm, tokens).top(top)[0]
    if as_json:
        rows = [{"token": p.token, "id": p.id, "probability": p.probability, "logit": p.logit} for p in best]
        emit_json({"prompt": text, "tokens": lm.to_strings(tokens)[0], "predictions": rows, "about": about(lm, model, dtype, bos)})
        return
    columns = {
        "token": ("token", [p.token for p in best]),
        "probability": ("percent", [p.probability for p in best]),
        "logit": ("number", [p.logit for p in best]),
        "id": ("text", [p.id for p in best]),
    }
    emit(table(text if len(text) <= 72 else f"… {text[-70:]}", columns))
    if text.endswith(" "):
        typer.echo("The prompt ends with a space, which most tokenizers join to the next word: try it without.", err=True)
