"""jaxinterp trace: run a prompt and keep intermediate values in a file."""

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jaxinterp.cli.common import Bos, Debug, Dtype, Json, Model, Text, about, bos_argument, emit, emit_json, load_model, read_text, working
from jaxinterp.errors import InputError

if TYPE_CHECKING:
    import numpy as np

NAME = "trace"
EXAMPLE = 'jaxinterp trace smollm2-135m-instruct "The capital of France is" --site resid_post --out trace.safetensors'


def command(
    model: Model,
    text: Text,
    site: Annotated[
        list[str], typer.Option("--site", help="A site, such as resid_post; may be repeated. `all` is every site that is not opt-in.")
    ],
    out: Annotated[Path, typer.Option("--out", help="A .safetensors file; what its arrays mean is written beside it as .json.")],
    bos: Bos = "model",
    dtype: Dtype = "float32",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Run a prompt and write what its sites held: arrays as safetensors, their axes and tokens as JSON beside them."""
    import numpy as np

    import jaxinterp as ji
    from jaxinterp.views import table

    if out.suffix != ".safetensors":
        raise InputError(f"--out is a .safetensors file; got {str(out)!r}.")
    text = read_text(text)
    lm = load_model(model, dtype)
    tokens = lm.to_tokens(text, bos=bos_argument(bos))
    with working("running"):
        trace = ji.run(lm, tokens, sites="all" if site == ["all"] else site)
        arrays = {name: np.asarray(value) for name, value in trace.activations.items()}
    described = {
        "prompt": text,
        "tokens": lm.to_strings(tokens)[0],
        "ids": np.asarray(tokens.ids)[0].tolist(),
        "sites": {
            name: {
                "axes": list(dict(trace.axes)[name].upper()),
                "shape": list(array.shape),
                "dtype": str(array.dtype),
                "definition": ji.SITES[name].definition,
            }
            for name, array in arrays.items()
        },
        "about": about(lm, model, dtype, bos) | {"weights": lm.digest()},
    }
    beside = out.with_suffix(".json")
    _write(out, arrays, beside, described)
    if as_json:
        emit_json({"file": str(out), "description": str(beside)} | described)
        return
    columns = {
        "site": ("text", list(arrays)),
        "axes": ("text", [" ".join(entry["axes"]) for entry in described["sites"].values()]),
        "shape": ("text", [" × ".join(map(str, array.shape)) for array in arrays.values()]),
        "MiB": ("number", [array.nbytes / 2**20 for array in arrays.values()]),
    }
    emit(table(f"{out} and {beside}", columns))


def _write(out: Path, arrays: "dict[str, np.ndarray]", beside: Path, described: dict[str, Any]) -> None:
    """Both files, each put in place only when it is whole."""
    from safetensors.numpy import save_file

    part, part_json = (path.with_name(f".{path.name}.{os.getpid()}.part") for path in (out, beside))
    try:
        save_file(arrays, part)
        part_json.write_text(json.dumps(described, ensure_ascii=False, indent=1), encoding="utf-8")
        shutil.copymode(part_json, part)  # safetensors makes its file private
        part.replace(out)
        part_json.replace(beside)
    except OSError as error:
        raise InputError(f"Cannot write {out}: {error.strerror or error}.") from error
    finally:
        part.unlink(missing_ok=True)
        part_json.unlink(missing_ok=True)
