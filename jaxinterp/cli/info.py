"""jaxinterp info: what a model is made of: its architecture, its parameters, its sites and what they weigh."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jaxinterp.cli.common import Debug, Dtype, Json, Model, emit_json, load_model, write

if TYPE_CHECKING:
    from rich.console import Console
    from rich.tree import Tree

    from jaxinterp.model.config import TransformerConfig
    from jaxinterp.model.language_model import LanguageModel

NAME = "info"
EXAMPLE = "jaxinterp info smollm2-135m-instruct --tokens 64"


def command(
    model: Model,
    tokens: Annotated[
        int | None, typer.Option("--tokens", min=1, help="The length of the prompt whose sites are weighed; 64 if not given.")
    ] = None,
    dtype: Dtype = "float32",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """The architecture as a tree, its parameters, and every site with its shape and bytes for a prompt."""
    from jaxinterp.model.tokens import Tokens, check_ids

    lm = load_model(model, dtype)
    tokens = tokens or min(64, lm.config.n_ctx)
    prompt = Tokens.from_ids([[0] * tokens])
    check_ids(prompt, lm.config.d_vocab, lm.config.n_ctx)
    described = describe(lm, tokens)
    if as_json:
        emit_json({"model": model} | described)
        return
    write(lambda console: _draw(console, model, lm, described))


def describe(lm: "LanguageModel", tokens: int) -> dict[str, Any]:
    """Config, parameters, sites and the plan of capturing them all, as JSON values."""
    import dataclasses

    import numpy as np

    import jaxinterp as ji

    config = lm.config
    plan = ji.plan(lm, np.zeros((1, tokens), np.int32), sites=tuple(_present(config)))
    sites = [
        {
            "site": name,
            "axes": list(site.axes),
            "shape": list(site.shape(config, 1, tokens)),
            "bytes": plan.captured[name],
            "opt_in": site.opt_in,
            "definition": site.definition,
        }
        for name, site in _present(config).items()
    ]
    parameters = [{"name": name, "shape": list(leaf.shape), "dtype": str(leaf.dtype)} for name, leaf in _leaves(lm.params)]
    return {
        "config": dataclasses.asdict(config),
        "n_parameters": lm.n_params,
        "bytes": plan.weights,
        "parameters": parameters,
        "prompt_tokens": tokens,
        "sites": sites,
        "absent": {name: site.absent(config) for name, site in ji.SITES.items() if site.absent(config)},
        "run": {"logits": plan.logits, "temporaries": plan.temporaries, "operations": plan.operations, "free_memory": plan.available},
    }


def _present(config: "TransformerConfig") -> dict[str, Any]:
    import jaxinterp as ji

    return {name: site for name, site in ji.SITES.items() if not site.absent(config)}


def _leaves(params: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Parameters with dotted names, such as blocks.0.attn.W_Q."""
    items = params.items() if isinstance(params, Mapping) else enumerate(params)
    for name, value in items:
        path = f"{prefix}{name}"
        if isinstance(value, Mapping | tuple | list):
            yield from _leaves(value, f"{path}.")
        else:
            yield path, value


def _draw(console: "Console", model: str, lm: "LanguageModel", described: dict[str, Any]) -> None:
    from rich.text import Text

    from jaxinterp.runs.plan import nbytes
    from jaxinterp.views import table
    from jaxinterp.views.terminal import render

    count = f"{described['n_parameters']:,} parameters, {nbytes(described['bytes'])}, context {lm.config.n_ctx:,} tokens"
    console.print(_tree(Text.assemble((model, "bold"), f"  {count}"), lm))
    sites = described["sites"]
    columns = {
        "site": ("text", [entry["site"] for entry in sites]),
        "axes and sizes": ("text", [_sizes(entry) for entry in sites]),
        "bytes": ("text", [nbytes(entry["bytes"]) for entry in sites]),
        "definition": ("text", [entry["definition"] + ("; opt-in" if entry["opt_in"] else "") for entry in sites]),
    }
    total = nbytes(sum(entry["bytes"] for entry in sites if not entry["opt_in"]))
    title = f"Sites, for one prompt of {described['prompt_tokens']} tokens; sites='all' keeps {total}"
    console.print()
    console.print(render(table(title, columns), console))
    for name, reason in described["absent"].items():
        console.print(Text(f"no {name}: {reason}", style="dim"))


def _sizes(entry: dict[str, Any]) -> str:
    return " ".join(letter if letter == "1" else f"{letter}{size}" for letter, size in zip(entry["axes"], entry["shape"], strict=True))


ORDER = ("embed", "blocks", "ln_final", "unembed", "ln1", "attn", "ln1_post", "ln2", "mlp", "ln2_post")  # of the forward pass


def _in_order(group: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return sorted(group.items(), key=lambda item: ORDER.index(item[0]) if item[0] in ORDER else len(ORDER))


def _tree(title: Any, lm: "LanguageModel") -> "Tree":
    """Groups of parameters with their shapes; a block's are shown once, without the layer axis."""
    from rich.tree import Tree

    tree = Tree(title, guide_style="dim")
    notes = _notes(lm.config)
    for name, group in _in_order(lm.params):
        if name != "blocks":
            _branch(tree, name, group, notes, 0)
            continue
        for stack in group:
            layers = next(leaf for _, leaf in _leaves(stack)).shape[0]
            block = tree.add(_line(f"blocks × {layers}", notes["blocks"]))
            for part, inner in _in_order(stack):
                _branch(block, part, inner, notes, 1)
    if lm.config.unembed == "tied":
        tree.add(_line("unembed", notes["unembed"]))
    return tree


def _branch(tree: "Tree", name: str, group: Any, notes: Mapping[str, str], skip: int) -> None:
    if isinstance(group, Mapping):
        inner = tree.add(_line(name, notes.get(name, "")))
        for key, value in group.items():
            _branch(inner, key, value, notes, skip)
    else:
        tree.add(_line(name, " ".join(map(str, group.shape[skip:]))))


def _line(name: str, note: str) -> Any:
    from rich.text import Text

    return Text.assemble((name, "bold"), (f"  {note}" if note else "", "dim"))


def _notes(config: "TransformerConfig") -> dict[str, str]:
    """What the config says about each group, in a few words."""
    norm = {"layer": "LayerNorm", "rms": "RMSNorm", "none": ""}[config.norm] + (", gain 1 + w" if config.norm_gain == "1+w" else "")
    parallel = {
        "no": "attention, then MLP",
        "one_norm": "attention and MLP side by side, one norm",
        "two_norms": "attention and MLP side by side",
    }
    note = {
        "blocks": f"{parallel[config.parallel] if config.has_mlp else 'attention only'}; norms: {config.norm_position}",
        "attn": "; ".join(_attention_notes(config)),
        "mlp": f"{config.d_mlp} neurons, {config.activation}{', gated' if config.gated else ''}",
        "embed": f"{config.d_vocab:,} tokens, width {config.d_model}",
        "unembed": "tied to embed.W_E" if config.unembed == "tied" else "",
    }
    return note | dict.fromkeys(("ln1", "ln2", "ln1_post", "ln2_post", "ln_final", "ln", "q_norm", "k_norm"), norm)


def _attention_notes(config: "TransformerConfig") -> Iterator[str]:
    grouped = config.n_kv_heads != config.n_heads
    yield f"{config.n_heads} heads of {config.d_head}" + (f", {config.n_kv_heads} for keys and values" if grouped else "")
    yield "causal" if config.causal else "bidirectional"
    bases = [f"base {rotary.base:,.0f}" + (f" ({rotary.scaling.kind} scaling)" if rotary.scaling else "") for rotary in config.rotary]
    yield f"{config.positions} positions" + (f", {', '.join(bases)}" if bases else "")
    windows = sorted({window for window in config.layer_windows if window})
    if windows:
        yield f"window {', '.join(map(str, windows))} on {sum(map(bool, config.layer_windows))} layers"
