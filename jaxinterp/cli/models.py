"""jaxinterp models: what can be loaded by name, what is here already, and the families that any checkpoint may be of."""

from typing import Any

from jaxinterp.cli.common import Debug, Json, emit, emit_json

NAME = "models"
EXAMPLE = "jaxinterp models"


def command(as_json: Json = False, debug: Debug = False) -> None:
    """Models that load by name, whether they are on this machine, and the families that can be loaded."""
    from jaxinterp.checkpoints import registry
    from jaxinterp.views import Section, report, table

    models = [_described(entry, registry.local(name)) for name, entry in registry.entries().items()]
    known = families()
    if as_json:
        emit_json({"models": models, "families": known})
        return
    columns = {
        "name": ("text", [model["name"] for model in models]),
        "parameters": ("text", [f"{model['parameters'] / 1e6:,.0f} M" for model in models]),
        "licence": ("text", [model["licence"] for model in models]),
        "here": ("text", [_state(model) for model in models]),
    }
    kinds = {
        "family": ("text", [family["model_type"] for family in known]),
        "Hugging Face classes": ("text", [", ".join(family["architectures"]) for family in known]),
        "GGUF": ("text", [family["gguf"] or "–" for family in known]),
    }
    also = "Also: a hub id such as EleutherAI/pythia-70m, a folder in Hugging Face layout or our own, or a .gguf file."
    terms = "".join(f"\n{model['name']} has terms to accept first: {model['terms']}" for model in models if model["opt_in"])
    emit(report("models", [Section("Models by name", also + terms, (table("", columns),)), Section("Families", "", (table("", kinds),))]))


def families() -> list[dict[str, Any]]:
    """Every family that can be loaded: the model_type of config.json, its classes, the name of its architecture in GGUF files."""
    from jaxinterp.checkpoints.families import FAMILIES

    return [
        {"model_type": name, "architectures": list(family.architectures), "gguf": family.gguf.architecture if family.gguf else None}
        for name, family in FAMILIES.items()
    ]


def _described(entry: Any, local: Any) -> dict[str, Any]:
    return {
        "name": entry.name,
        "description": entry.description,
        "parameters": entry.parameters,
        "licence": entry.licence,
        "terms": entry.terms,
        "opt_in": entry.opt_in,
        "local": None if local is None else str(local),
    }


def _state(model: dict[str, Any]) -> str:
    if model["local"]:
        return "yes"
    return "no; has terms" if model["opt_in"] else "no; fetched on first use"
