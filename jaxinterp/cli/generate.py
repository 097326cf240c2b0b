"""jaxinterp generate: what a model writes after a text, or answers in a chat."""

import sys
from typing import Annotated, Any

import typer

from jaxinterp.cli.common import Bos, Debug, Dtype, Json, Model, Text, about, bos_argument, emit_json, load_model, read_text, working
from jaxinterp.errors import InputError

NAME = "generate"
EXAMPLE = 'jaxinterp generate smollm2-135m-instruct "The capital of France is" --max-new-tokens 16'


def command(
    model: Model,
    text: Text,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", "-n", min=1, help="Tokens after which the text ends.")] = 64,
    chat: Annotated[bool, typer.Option("--chat", help="Take the text as a user's message and write the answer.")] = False,
    system: Annotated[str | None, typer.Option("--system", help="With --chat: the system message before it.")] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print the text as it comes.")] = False,
    temperature: Annotated[float, typer.Option("--temperature", help="0 takes the likeliest token, 1 samples the model.")] = 0.0,
    top_k: Annotated[int, typer.Option("--top-k", help="Sample of the k likeliest tokens only; 0 is no limit.")] = 0,
    top_p: Annotated[float, typer.Option("--top-p", help="Sample of the likeliest tokens that reach this probability.")] = 1.0,
    min_p: Annotated[
        float, typer.Option("--min-p", help="Sample of tokens of at least this part of the likeliest one's probability.")
    ] = 0.0,
    repetition_penalty: Annotated[float, typer.Option("--repetition-penalty", help="Above 1: less of what the text holds.")] = 1.0,
    seed: Annotated[int, typer.Option("--seed", help="Of the draws.")] = 0,
    stop: Annotated[list[str] | None, typer.Option("--stop", help="A string that ends the text; may be repeated.")] = None,
    bos: Bos = "model",
    dtype: Dtype = "float32",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Continue a text, or answer it as a chat message: greedily, or sampled with --temperature."""
    from jaxinterp.runs import generate as generation

    if as_json and stream:
        raise InputError("--json prints one value when the text is complete, and --stream prints it as it comes: give one of them.")
    if system is not None and not chat:
        raise InputError("--system is a message of a chat: give --chat too.")
    text = read_text(text)
    lm = load_model(model, dtype).by_layer()
    prompt: Any = lm.to_tokens(text, bos=bos_argument(bos))
    if chat:
        before = [] if system is None else [{"role": "system", "content": system}]
        prompt = lm.chat([*before, {"role": "user", "content": text}])
    settings: dict[str, Any] = {
        "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "repetition_penalty": repetition_penalty,
        "seed": seed, "stop": tuple(stop or ()),
    }  # fmt: skip
    if stream:
        for piece in generation.stream(lm, prompt, max_new_tokens, **settings):
            print(piece, end="", flush=True)
        print()
        return
    with working("writing"):
        found = generation.generate(lm, prompt, max_new_tokens, **settings)
    if not as_json:
        sys.stdout.write(f"{found.text[0]}\n")
        return
    tokens = [
        {"token": token, "id": int(index), "log_probability": float(value)}
        for token, index, value in zip(found.strings[0], found.ids[0], found.log_probabilities[0], strict=False)
    ]
    shown = {"prompt": text, "text": found.text[0], "ended": found.ended[0], "tokens": tokens, "settings": settings}
    emit_json(shown | {"about": about(lm, model, dtype, bos)})
