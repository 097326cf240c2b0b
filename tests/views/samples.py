"""One view of each kind, with tokens that nobody should trust."""

import numpy as np

from jaxinterp.views import Section, View, attention, heatmap, highlight, line, report, scatter, table

HOSTILE = (" Mary", "</script><script>alert(1)</script>", "<!--", "\n", "[red]", "<0xE2>", "\u202e", "$x$", "&amp;", "")


def softmax_patterns(layers: int, heads: int, tokens: int, seed: int = 0) -> np.ndarray:
    """Causal attention patterns [layer, head, query, key]; some heads look back, some at themselves."""
    rng = np.random.default_rng(seed)
    distance = np.arange(tokens)[None, :] - np.arange(tokens)[:, None]
    scores = rng.normal(size=(layers, heads, tokens, tokens)) + 0.15 * rng.normal(size=(layers, heads, 1, 1)) * distance
    weights = np.where(distance <= 0, np.exp(scores - scores.max(-1, keepdims=True)), 0.0)
    return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)


def every_kind() -> dict[str, View]:
    rng = np.random.default_rng(0)
    n = len(HOSTILE)
    values = rng.normal(size=(4, n)).astype(np.float32)
    values[0, 0] = np.nan
    views = {
        "table": table(
            "next", {"token": ("token", HOSTILE), "probability": ("percent", np.linspace(1, 0, n)), "logit": ("signed", np.arange(n) - 4)}
        ),
        "line": line("lens", {"clean": rng.normal(size=6), "corrupt": rng.normal(size=6)}, normalisation="logit difference"),
        "heatmap": heatmap("grid", values, ("layer", "position"), tokens=HOSTILE, normalisation="effect"),
        "texts": heatmap("words", values, ("layer", "position"), tokens=HOSTILE, scale="sequential", texts=[HOSTILE] * 4),
        "attention": attention("rows", rng.dirichlet(np.ones(n), size=2), HOSTILE, heads=["23.3", "29.1"], notes=["+2.86", "+1.73"]),
        "highlight": highlight("tokens", np.where(np.arange(n) == 4, np.nan, np.linspace(-2, 3, n)), HOSTILE, normalisation="score"),
        "highlight unsigned": highlight("tokens", np.linspace(0, 3, n), HOSTILE, signed=False),
        "scatter": scatter(
            "cells",
            np.where(np.arange(n) == 1, np.nan, np.arange(n) - 4.0),
            np.arange(n) - 3,
            names=("estimate", "exact"),
            labels=HOSTILE,
            line=(1.1, -0.2),
        ),
        "all heads": attention("all", softmax_patterns(2, 3, n), HOSTILE),
    }
    sections = [Section("<h1> & co", "a text", (views["table"], views["table"])), Section("rest", "", tuple(views.values())[1:])]
    return views | {"report": report("a </title> report", sections, provenance={"model": "<b>tiny</b>"})}
