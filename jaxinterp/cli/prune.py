"""jaxinterp prune: a smaller model without the heads and neurons that matter least, and what that costs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from jaxinterp.cli.common import Bos, Debug, Dtype, Json, Model, about, bos_argument, emit, emit_json, load_model
from jaxinterp.cli.grids import Html, picture_path, save_picture
from jaxinterp.errors import InputError

if TYPE_CHECKING:
    from jaxinterp.methods.weights.shrunk import Shrunk

NAME = "prune"
EXAMPLE = "jaxinterp prune smollm2-135m-instruct --heads 0.33 --neurons 0.25 --out smaller"


def command(
    model: Model,
    texts: Annotated[
        Path | None,
        typer.Option("--texts", help="A file of texts, one a line: every other one ranks, the others measure. Without it, own paragraphs."),
    ] = None,
    heads: Annotated[float, typer.Option("--heads", help="Share of the heads to remove, from 0 to below 1.")] = 0.33,
    neurons: Annotated[float, typer.Option("--neurons", help="Share of every layer's neurons to remove.")] = 0.25,
    unit: Annotated[
        Literal["auto", "head", "kv_head"],
        typer.Option("--unit", help="kv_head removes whole key/value heads, head as many query heads from each; auto decides."),
    ] = "auto",
    exact: Annotated[
        bool, typer.Option("--exact", help="Rank heads by a run without each of them, in place of one backward pass.")
    ] = False,
    controls: Annotated[int, typer.Option("--controls", min=0, help="Random choices to measure beside it.")] = 3,
    rounds: Annotated[int, typer.Option("--rounds", min=0, help="Times that speed is measured; 0 leaves it out.")] = 5,
    seed: Annotated[int, typer.Option("--seed", help="Of the random choices.")] = 0,
    out: Annotated[Path | None, typer.Option("--out", help="A new folder to save the pruned model in.")] = None,
    html: Html = None,
    bos: Bos = "model",
    dtype: Dtype = "float32",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Remove the heads and neurons that matter least for the loss on some texts, and measure what that costs on others."""
    import jaxinterp as ji
    from jaxinterp.methods.weights.shrink import shrink

    picture_path(html)
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--out: {out} holds something already; choose another folder or remove it first.")
    ranked_on, held_out = _texts(texts)
    lm = load_model(model, dtype)
    found = shrink(
        lm, ranked_on, held_out, heads=heads, neurons=neurons, unit=None if unit == "auto" else unit,
        method="exact" if exact else "first_order", controls=controls, rounds=rounds, seed=seed, bos=bos_argument(bos),
        new_tokens=min(32, lm.config.n_ctx // 2),
    )  # fmt: skip
    view = found.view(f"{model}, pruned")
    save_picture(view, html)
    saved = None if out is None else ji.save(found.lm, out)
    if as_json:
        emit_json(_json(found) | {"saved": None if saved is None else str(saved), "about": about(lm, model, dtype, bos)})
        return
    emit(view)
    print(f"{len(ranked_on)} texts ranked on, {len(held_out)} held out")
    if html is not None:
        print(f"picture: {html.resolve()}")
    if saved is not None:
        print(f"model: {saved}")


def _texts(path: Path | None) -> tuple[list[str], list[str]]:
    """Texts to rank on and texts to measure on, in turn.

    Raises:
        InputError: the file cannot be read, or has fewer than two texts.
    """
    if path is None:
        from jaxinterp.data.plain import PARAGRAPHS

        lines = list(PARAGRAPHS)
    else:
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--texts: {path} cannot be read: {error}.") from None
    if len(lines) < 2:
        raise InputError(f"--texts: {path} holds {len(lines)} texts; expected two or more, one a line.")
    return lines[::2], lines[1::2]


def _json(found: "Shrunk") -> dict[str, Any]:
    """A pruned model's report as JSON values."""
    import numpy as np

    columns = found.columns()
    models = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    removed = np.argwhere(found.record.removed_heads).tolist()
    return {
        "models": models,
        "removed_heads": [f"{layer}.{head}" for layer, head in removed],
        "removed_neurons": [np.flatnonzero(layer).tolist() if layer.ndim == 1 else [] for layer in found.record.removed_neurons],
        "how": dict(found.how),
    }
