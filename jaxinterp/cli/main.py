"""jaxinterp on the command line: demo, predict, generate, trace, patch, ablate, attribute, steer, prune, info, models, verify, doctor."""

import os
import sys
from typing import Annotated

# XLA's loader logs to standard error from C++ before anyone could ask it not to.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import typer

from jaxinterp.cli import ablate, attribute, demo, doctor, generate, info, models, patch, predict, prune, steer, trace, verify
from jaxinterp.cli.common import INTERRUPTED, guarded

app = typer.Typer(
    name="jaxinterp",
    help="Look inside transformers: what a model predicts, and every intermediate value on the way.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

for module in (demo, predict, generate, trace, patch, ablate, attribute, steer, prune, info, models, verify, doctor):
    app.command(name=module.NAME, epilog=f"Example: {module.EXAMPLE}")(guarded(module.command))


def _version(wanted: bool) -> None:
    if wanted:
        import jaxinterp

        print(f"jaxinterp {jaxinterp.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Look inside transformers: what a model predicts, and every intermediate value on the way."""


def main() -> None:
    """The entry point; exit codes are 0, 1 (could not be done), 2 (wrong usage) and 130 (interrupted)."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
