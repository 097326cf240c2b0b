"""Shrunk: a pruned model with what was removed, what that costs on held-out texts, and how much smaller and faster it is."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxinterp.methods.results import frame, write
from jaxinterp.methods.weights.importance import Importance
from jaxinterp.methods.weights.pruned_layout import Pruning
from jaxinterp.methods.weights.speed import Speed
from jaxinterp.model.config import TransformerConfig
from jaxinterp.model.language_model import LanguageModel
from jaxinterp.runs.provenance import RECORD

NAMES = {"kv_heads": "key/value heads"}
UNIT = "loss: nats a token on held-out texts, mean over texts; random: choices of the same size"


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["lm", "record", "importance", "loss_before", "loss_after", "loss_random"],
    meta_fields=["bytes_before", "bytes_after", "speeds", "how"],
)
@dataclasses.dataclass(frozen=True)
class Shrunk:
    """What pruning made of a model.

    Attributes:
        lm: the pruned model.
        record: which old head and neuron stands where in it; `.ablation()` are the edits of the whole model that it equals.
        importance: the rankings that were used: "heads" and "neurons", those that there are.
        loss_before: [B], the loss of each held-out text in the whole model, in nats a token.
        loss_after: [B], in the pruned one.
        loss_random: [C B], in models from which as many random parts were removed.
        bytes_before: of the whole model's weights.
        bytes_after: of the pruned one's.
        speeds: of the whole model and the pruned one, or () where speed was not measured.
        how: how it was made.
    """

    lm: LanguageModel
    record: Pruning
    importance: Mapping[str, Importance]
    loss_before: Any
    loss_after: Any
    loss_random: Any
    bytes_before: int
    bytes_after: int
    speeds: tuple[Speed, ...] = ()
    how: tuple[tuple[str, str], ...] = ()

    def columns(self) -> dict[str, list[Any]]:
        """The whole model, the pruned one and each random choice: loss, sizes and speed by name, None where there is none."""
        random = [float(row.mean()) for row in np.asarray(self.loss_random)]
        loss = [float(np.mean(self.loss_before)), float(np.mean(self.loss_after)), *random]
        configs, more = [self.record.before, self.record.after], len(random)

        def each(pair: Any) -> list[Any]:
            return [*pair, *[pair[1]] * more]

        timed = [[getattr(speed, name) for speed in self.speeds] or [None, None] for name in ("forward", "decoding")]
        return {
            "model": ["whole", "pruned", *(f"random {number}" for number in range(more))],
            "loss": loss,
            "change": [value - loss[0] for value in loss],
            "heads": each([config.n_heads for config in configs]),
            "kv_heads": each([config.n_kv_heads for config in configs]),
            "neurons": each([config.axis_sizes["M"] for config in configs]),
            "parameters": each(self.record.parameters),
            "megabytes": each((self.bytes_before / 1e6, self.bytes_after / 1e6)),
            "forward_seconds": [*timed[0], *[None] * more],
            "tokens_per_second": [*timed[1], *[None] * more],
        }

    def to_dataframe(self) -> Any:
        """A pandas DataFrame of `columns`: a row for each model."""
        return frame(self.columns())

    def view(self, title: str = "Pruned model") -> Any:
        """A table of losses, sizes and speeds, and a heat-map of each ranking."""
        from jaxinterp.views import Section, report, table

        columns, kept = self.columns(), 2 + (len(self.loss_random) > 0)
        random = np.asarray(columns["loss"][2:])
        shown: dict[str, tuple[str, list[Any]]] = {"model": ("text", ["whole", "pruned", "random"][:kept])}
        losses = [*columns["loss"][:2], *([float(random.mean())] if len(random) else [])]
        shown["loss"] = ("number", losses)
        shown["change"] = ("signed", [value - losses[0] for value in losses])
        for name in ("heads", "kv_heads", "neurons", "parameters"):
            shown[NAMES.get(name, name)] = ("text", [f"{value:,}" for value in columns[name][:kept]])
        shown["MB"] = ("number", columns["megabytes"][:kept])
        views = [table("Loss and size", shown, normalisation=UNIT + (f", {random.min():.3f} to {random.max():.3f}" if len(random) else ""))]
        if self.speeds:
            whole, pruned = self.speeds
            fast = {"forward pass, ms": (1e3 * whole.forward, 1e3 * pruned.forward), "tokens a second": (whole.decoding, pruned.decoding)}
            ratios = [whole.forward / pruned.forward, pruned.decoding / whole.decoding]
            rows = {"": ("text", list(fast)), "whole": ("number", [pair[0] for pair in fast.values()])}
            rows |= {"pruned": ("number", [pair[1] for pair in fast.values()]), "times faster": ("number", ratios)}
            views.append(table("Speed", rows, normalisation="medians of turns in one run on this machine"))
        sections = [Section("What it costs and saves", "", tuple(views))]
        sections += [Section(f"Ranking of {name}", "", (ranked.view(),)) for name, ranked in self.importance.items()]
        return report(title, sections, provenance={name: value for name, value in self.how if name not in RECORD})

    def show(self) -> None:
        """Prints the report in the terminal."""
        self.view().show()

    def save(self, path: str | Path) -> Path:
        """Writes the report, as numbers (.safetensors) or as a picture (.html, .png, .json, .txt); for the model see `ji.save`."""
        if Path(path).suffix != ".safetensors":
            return self.view().save(path)
        arrays: dict[str, Any] = {name: getattr(self, name) for name in ("loss_before", "loss_after", "loss_random")}
        arrays |= {"heads": self.record.heads, "kv_heads": self.record.kv_heads}
        arrays |= {f"neurons.{layer}": places for layer, places in enumerate(self.record.neurons)}
        for name, ranked in self.importance.items():
            arrays |= {f"importance.{name}": ranked.values, f"effects.{name}": ranked.effects}
        configs = (("before", self.record.before), ("after", self.record.after))
        about = {name: _sizes(config) for name, config in configs} | {"bytes": [self.bytes_before, self.bytes_after]}
        about |= {"speeds": [dataclasses.asdict(speed) for speed in self.speeds]}
        return write(path, arrays, about, self.how)

    def __repr__(self) -> str:
        columns = self.columns()
        (whole, pruned), random = columns["loss"][:2], columns["loss"][2:]
        beside = f", random choices {np.mean(random):.3f}" if random else ""
        before, after = self.record.parameters
        fast = f", {self.speeds[1].decoding / self.speeds[0].decoding:.2f} times the tokens a second" if self.speeds else ""
        return f"Shrunk({before:,} -> {after:,} parameters; held-out loss {whole:.3f} -> {pruned:.3f}{beside}{fast})"


def _sizes(config: TransformerConfig) -> dict[str, int]:
    return {"n_heads": config.n_heads, "n_kv_heads": config.n_kv_heads, "neurons": config.axis_sizes["M"]}
