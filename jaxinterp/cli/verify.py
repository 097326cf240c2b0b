"""jaxinterp verify: whether a checkpoint computes what it should: identities, and every site against transformers."""

from typing import Annotated

import typer

from jaxinterp.cli.common import FAILED, Debug, Dtype, Json, Model, emit, emit_json, use_compile_cache, working

NAME = "verify"
EXAMPLE = "jaxinterp verify smollm2-135m-instruct"


def command(
    model: Model,
    reference: Annotated[str | None, typer.Option("--reference", help="Another source that should be the same model.")] = None,
    torch: Annotated[bool | None, typer.Option("--torch/--no-torch", help="Compare with transformers; by default where it is.")] = None,
    dtype: Dtype = "float32",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Identities that every model satisfies and, where torch is installed, each site against transformers. 1 if anything is wrong."""
    import jaxinterp as ji

    use_compile_cache()
    if dtype == "float64":
        import jax

        jax.config.update("jax_enable_x64", True)
    with working(f"verifying {model}"):
        verdict = ji.verify(model, reference=reference, dtype=dtype, torch=torch)
    if as_json:
        emit_json(verdict.to_dict())
    else:
        emit(verdict.view())
    if not verdict.ok:
        raise SystemExit(FAILED)
