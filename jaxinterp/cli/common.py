"""What every command shares: its options, reading a prompt, loading a model, and how errors and results leave the program."""

import contextlib
import functools
import json
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from jaxinterp.errors import InputError, JaxinterpError

if TYPE_CHECKING:
    from rich.console import Console

    from jaxinterp.model.language_model import LanguageModel
    from jaxinterp.views.payload import View

DEFAULT_MODEL = "smollm2-135m-instruct"
FAILED, USAGE, INTERRUPTED = 1, 2, 130

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A name from `jaxinterp models`, a hub id, a folder, or a .gguf file.")]
Text = Annotated[str, typer.Argument(metavar="TEXT", help="The prompt; - reads it from standard input.")]
Bos = Annotated[
    str,
    typer.Option("--bos", help="The first token: `model` does as the model's own tokenizer, `none`, or a token such as '<|endoftext|>'."),
]
DtypeName = Literal["float32", "bfloat16", "float16", "float64"]
Dtype = Annotated[DtypeName, typer.Option("--dtype", help="The type of weights and computation.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a picture.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose errors end the program with one clear line and the right exit code.

    1: something could not be done. 130: interrupted. (2, wrong usage, is the parser's.) `--debug` shows the traceback.
    """

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
            sys.stdout.flush()
        except KeyboardInterrupt:
            _leave("interrupted", INTERRUPTED, kwargs)
        except BrokenPipeError:
            # The reader has gone (`jaxinterp models | head -1`): there is nobody to tell.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(FAILED) from None
        except JaxinterpError as error:
            _leave(str(error), FAILED, kwargs)
        except Exception as error:
            _leave(f"unexpected {type(error).__name__}: {error} (--debug shows where)", FAILED, kwargs)

    return run


def _leave(message: str, code: int, options: dict[str, Any]) -> NoReturn:
    if options.get("debug"):
        traceback.print_exc()
    else:
        print(f"jaxinterp: {message}", file=sys.stderr)
    raise SystemExit(code)


def read_text(text: str) -> str:
    """The prompt itself, or standard input for "-" without its last line end.

    Raises:
        InputError: there is nothing to read.
    """
    if text == "-":
        text = sys.stdin.read()
        text = text.removesuffix("\n").removesuffix("\r")
    if not text:
        raise InputError("The prompt is empty: give a text, or - to read standard input.")
    return text


def bos_argument(bos: str) -> str | bool:
    """The option --bos as `to_tokens` takes it."""
    return False if bos == "none" else bos


def use_compile_cache() -> None:
    """Keep compiled programs on disk between commands, unless the user has set a place for them."""
    import jax

    from jaxinterp.checkpoints.cache import cache_folder

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def load_model(name: str, dtype: str) -> "LanguageModel":
    """The model, with a note on standard error while it loads."""
    use_compile_cache()
    if dtype == "float64":
        import jax

        jax.config.update("jax_enable_x64", True)
    from jaxinterp.checkpoints.load import load

    with working(f"loading {name}"):
        return load(name, dtype=dtype)


@contextlib.contextmanager
def working(what: str) -> Iterator[None]:
    """A spinner on standard error while something takes time; nothing where standard error is not a terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(f"{what} ...", spinner="dots"):
        yield


def emit_json(data: Any) -> None:
    """Print one JSON value; numbers that are not finite become null."""
    print(json.dumps(_finite(data), ensure_ascii=False, indent=2, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def emit(view: "View") -> None:
    """Print a view."""
    from jaxinterp.views.terminal import show

    show(view)


def write(draw: "Callable[[Console], None]") -> None:
    """Let `draw` print on standard output."""
    from rich.console import Console

    from jaxinterp.views import terminal

    terminal.write(Console(), draw)


def about(lm: "LanguageModel", model: str, dtype: str, bos: str) -> dict[str, str]:
    """How a result was made, for its provenance."""
    import jax

    import jaxinterp as ji

    own = lm.tokenizer is not None and lm.tokenizer.adds_bos
    first = {"model": f"the model's own ({'yes' if own else 'none'})"}.get(bos, bos)
    device = jax.devices()[0].device_kind
    return {"model": model, "dtype": dtype, "BOS": first, "device": device, "jaxinterp": ji.__version__, "jax": jax.__version__}
