"""GridResult: what a sweep measured, on the axes of its grid, with how it was made."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxinterp.errors import InputError


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["values", "effects", "per_example", "clean", "corrupt"],
    meta_fields=["axes", "mode", "how"],
)
@dataclasses.dataclass(frozen=True)
class GridResult:
    """A metric over a grid of cells; arrays have the axes of `axes`, in order.

    Attributes:
        values: the metric of each cell's run, mean over the prompts that have the cell.
        effects: "denoise": (values - corrupt) / (clean - corrupt), "noise": (values - clean) / (corrupt - clean), each a
            ratio of means: 1 is the other run's value, 0 no effect. Without another run: values - base.
        per_example: [B, ...] the metric of each prompt; NaN where a prompt does not have the cell's position.
        clean: [B], the metric of the clean run (without another run: the base run).
        corrupt: [B], that of the corrupt run, or None.
        axes: (name, labels) of each axis.
        mode: "denoise", "noise" or "sweep".
        how: how it was made: site, model, BOS, packed or whole runs.
    """

    values: Any
    effects: Any
    per_example: Any
    clean: Any
    corrupt: Any
    axes: tuple[tuple[str, tuple[Any, ...]], ...]
    mode: str
    how: tuple[tuple[str, str], ...] = ()

    def __repr__(self) -> str:
        shape = " x ".join(f"{len(labels)} {name}" for name, labels in self.axes)
        return f"GridResult({shape}, {self.mode}, {', '.join(f'{k}={v}' for k, v in self.how)})"

    def to_dataframe(self) -> Any:
        """A pandas DataFrame with a row for each cell: its coordinates, value and effect."""
        try:
            import pandas
        except ImportError:
            raise InputError("to_dataframe() needs pandas: pip install pandas.") from None
        names = [name for name, _ in self.axes]
        index = pandas.MultiIndex.from_product([labels for _, labels in self.axes], names=names)
        return pandas.DataFrame({"value": np.ravel(self.values), "effect": np.ravel(self.effects)}, index=index).reset_index()

    def view(self, title: str = "") -> Any:
        """The effects as a heat-map (the last two axes; a grid of one axis is a row), diverging around 0."""
        from jaxinterp.views import heatmap

        effects = np.asarray(self.effects, np.float64)
        axes: list[Any] = list(self.axes) if len(self.axes) > 1 else [("", ("",)), *self.axes]
        if len(axes) > 2:
            raise InputError(f"view() draws one or two axes; this grid has {len(axes)}: index `effects` first.")
        unit = "values - base" if self.mode == "sweep" else f"share of the clean-corrupt difference ({self.mode})"
        return heatmap(
            title or dict(self.how).get("site", ""), effects.reshape(len(axes[0][1]), -1), (axes[0][0], axes[1][0]), normalisation=unit
        )

    def save(self, path: str | Path) -> Path:
        """Writes the arrays as safetensors, and axes and provenance as JSON in its header."""
        from safetensors.numpy import save_file

        arrays = {
            name: np.ascontiguousarray(getattr(self, name))
            for name in ("values", "effects", "per_example", "clean", "corrupt")
            if getattr(self, name) is not None
        }
        about = {"axes": json.dumps([[name, [str(x) for x in labels]] for name, labels in self.axes]), "mode": self.mode, **dict(self.how)}
        save_file(arrays, str(path), metadata=about)
        return Path(path)
