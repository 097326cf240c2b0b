"""jaxinterp steer: what a model writes plainly and pushed along a direction, side by side."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from jaxinterp.cli.common import Bos, Debug, Dtype, Json, Model, Text, about, bos_argument, emit, emit_json, load_model, read_text, working
from jaxinterp.cli.grids import Html, picture_path, save_picture
from jaxinterp.errors import InputError

if TYPE_CHECKING:
    from jaxinterp.methods.steering.side_by_side import SideBySide
    from jaxinterp.methods.steering.vector import SteeringVector
    from jaxinterp.model.language_model import LanguageModel

NAME = "steer"
EXAMPLE = 'jaxinterp steer smollm2-135m-instruct "When I think about my life, I feel" --layer 12 --strength 2'

Method = Literal["mean_difference", "principal", "logistic", "discriminant"]


def command(
    model: Model,
    text: Text,
    positive: Annotated[
        Path | None, typer.Option("--positive", help="A file of texts to steer towards, one a line. Without files: good against bad.")
    ] = None,
    negative: Annotated[Path | None, typer.Option("--negative", help="A file of texts to steer away from, one a line.")] = None,
    vector: Annotated[
        Path | None, typer.Option("--vector", help="A saved direction instead of texts: .safetensors, or .gguf of llama.cpp or repeng.")
    ] = None,
    layer: Annotated[int | None, typer.Option("--layer", help="Where it acts; two fifths of the way up by default.")] = None,
    strength: Annotated[float, typer.Option("--strength", help="How far: times the direction, backwards below 0.")] = 1.5,
    relative: Annotated[bool, typer.Option("--relative", help="Take --strength as a share of the activation's own norm.")] = False,
    when: Annotated[
        Literal["all", "new", "prompt"], typer.Option("--when", help="Steer all tokens, new ones only, or the prompt only.")
    ] = "all",
    method: Annotated[Method, typer.Option("--method", help="How the direction is made from the texts.")] = "mean_difference",
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", "-n", min=1, help="Tokens after which each text ends.")] = 30,
    save: Annotated[Path | None, typer.Option("--save", help="Write the direction: .safetensors, or .gguf for llama.cpp.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Let a vector through that was made from other weights.")] = False,
    html: Html = None,
    bos: Bos = "model",
    dtype: Dtype = "float32",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Steering: add a direction to the residual stream while the model writes, and see what changes.

    The direction points from the texts of one file to those of another, or from bad to good where no files are given.
    """
    from jaxinterp.methods.steering.sentiment import middle_layer
    from jaxinterp.methods.steering.side_by_side import side_by_side

    picture_path(html)
    sides = _sides(positive, negative, vector)
    if save is not None and save.suffix not in (".safetensors", ".gguf"):
        raise InputError(f"--save ends in .safetensors or .gguf; got {str(save)!r}.")
    text = read_text(text)
    lm = load_model(model, dtype)
    at = layer if layer is not None else middle_layer(lm)
    with working("steering"):
        direction = _direction(lm, sides, vector, method, bos_argument(bos), force)
        found = side_by_side(
            lm, direction, text, strength, layer=at, relative=relative, when=when, max_new_tokens=max_new_tokens, force=force,
            bos=bos_argument(bos),
        )  # fmt: skip
    saved = None if save is None else _save(direction, save)
    view = found.view(f"Steered at layer {at}, strength {strength:+g}{' of the norm' if relative else ''}")
    save_picture(view, html)
    if as_json:
        written = None if saved is None else str(saved.resolve())
        emit_json(_json(found, direction, at) | {"saved": written, "about": about(lm, model, dtype, bos)})
        return
    emit(view)
    print(f"\nlayer {at}, strength {strength:+g}{' of the norm' if relative else ''}: {direction}")
    if found.warning:
        print(found.warning)
    if html is not None:
        print(f"picture: {html.resolve()}")
    if saved is not None:
        print(f"direction: {saved.resolve()}")


def _sides(positive: Path | None, negative: Path | None, vector: Path | None) -> tuple[list[str], list[str]] | None:
    """The texts of both files, if there are any.

    Raises:
        InputError: one file without the other, or beside --vector, or a text that is in both.
    """
    if vector is not None and (positive or negative):
        raise InputError("--vector is a direction that is made already: give it, or --positive and --negative.")
    if positive is None and negative is None:
        return None
    if positive is None or negative is None:
        raise InputError("--positive and --negative go together: a direction points from the texts of one file to those of the other.")
    sides = _lines(positive), _lines(negative)
    for number, line in sides[1].items():
        if line in sides[0].values():
            raise InputError(f"{negative}, line {number}: {line!r:.80} is in {positive} too, so it is on no side.")
    return list(sides[0].values()), list(sides[1].values())


def _lines(path: Path) -> dict[int, str]:
    """The texts of a file by line number, blank lines left out.

    Raises:
        InputError: it cannot be read, is not UTF-8 at a line, or holds no text.
    """
    try:
        raw = path.read_bytes().splitlines()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}; expected a file of texts, one a line.") from None
    found = {}
    for number, line in enumerate(raw, 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError as error:
            raise InputError(f"{path}, line {number}: not UTF-8 ({error.reason}); expected a text.") from None
        if text:
            found[number] = text
    if not found:
        raise InputError(f"{path} holds no text; expected one a line.")
    return found


def _direction(
    lm: "LanguageModel", sides: tuple[list[str], list[str]] | None, path: Path | None, method: Method, bos: str | bool, force: bool
) -> "SteeringVector":
    """The saved direction, or that of the files, or of the built-in sentences."""
    if path is not None:
        from jaxinterp.methods.steering.files import load

        return load(path, lm, force=force)
    from jaxinterp.data.sentiment import PAIRS
    from jaxinterp.methods.steering import classifiers, components, difference

    make = {
        "mean_difference": difference.mean_difference, "principal": components.principal, "logistic": classifiers.logistic,
        "discriminant": classifiers.discriminant,
    }[method]  # fmt: skip
    positive, negative = sides or ([pair[side] for pair in PAIRS] for side in (0, 1))
    return make(lm, positive, negative, bos=bos)


def _save(direction: "SteeringVector", path: Path) -> Path:
    try:
        return direction.save(path)
    except OSError as error:
        raise InputError(f"Cannot write {path}: {error.strerror or error}. Give another place with --save.") from error


def _json(found: "SideBySide", direction: "SteeringVector", layer: int) -> dict[str, Any]:
    """Texts and numbers as JSON values."""
    place = direction.layers.index(layer)
    accuracy, size = (float(each[place]) for each in (direction.accuracy, direction.sizes))
    own = {"method": dict(direction.how).get("method", ""), "site": direction.site, "size": size, "accuracy": accuracy}
    told = {"kl": float(found.kl[0, 0]), "norm_ratio": float(found.norm_ratio[0, 0]), "warning": found.warning}
    how = {name: value for name, value in found.how if name in ("operation", "relative", "when")}
    return {
        "prompt": found.prompts[0], "plain": found.plain[0], "steered": found.steered[0], "layer": layer, "strength": found.strengths[0],
        **told, **how, "vector": own,
    }  # fmt: skip
