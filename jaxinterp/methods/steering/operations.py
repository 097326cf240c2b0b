"""The ways of steering that grids and texts are made of: as an edit, and as what becomes of a value."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from jaxinterp.errors import InputError
from jaxinterp.methods.steering.vector import SteeringVector
from jaxinterp.model.edits import Edit

Operation = Literal["add", "replace", "project_out"]
OPERATIONS = ("add", "replace", "project_out")

STRENGTHS = (-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0)
"""Of a grid, where none are given."""

BLOWN = 2.0
"""Times the usual norm from which a steered value is warned of."""


def check_operation(operation: str, relative: bool) -> None:
    """Refuse an operation that there is not, and relative strengths where a strength is no step.

    Raises:
        InputError: saying which there are.
    """
    if operation not in OPERATIONS:
        raise InputError(f"operation is {operation!r}; expected {', '.join(OPERATIONS[:-1])} or {OPERATIONS[-1]}.")
    if relative and operation != "add":
        raise InputError(f"relative=True is for operation='add'; {operation!r} has no step in units of a norm.")


def edit_of(vector: SteeringVector, layer: Any, strength: Any, operation: str, relative: bool = False, **selection: Any) -> Edit:
    """The edit of an operation; "replace" takes the strength as a coordinate, and "project_out" does without."""
    if operation == "add":
        return vector.add(strength, relative=relative, layer=layer, **selection)
    if operation == "replace":
        return vector.replace(strength, layer=layer, **selection)
    return vector.project_out(layer=layer, **selection)


def steered_values(
    value: Float[np.ndarray, "L B ..."], direction: Float[np.ndarray, "L ..."], strength: float, operation: str, relative: bool
) -> Float[np.ndarray, "L B ..."]:
    """What an operation makes of a site's values, as `model.directions` has it; heads without a direction keep theirs."""
    direction = np.broadcast_to(direction[:, None], value.shape)
    size = np.linalg.norm(direction, axis=-1, keepdims=True)
    unit = direction / np.where(size == 0, 1, size)
    if operation == "add":
        return value + strength * (np.linalg.norm(value, axis=-1, keepdims=True) * unit if relative else direction)
    along = (value * unit).sum(axis=-1, keepdims=True)
    return value + ((strength if operation == "replace" else 0) - along) * unit


def levels_of(strengths: Sequence[float], operation: str, relative: bool) -> tuple[float, ...]:
    """The strengths of a grid, checked.

    Raises:
        InputError: none that acts, one that comes twice or is not finite, or any for "project_out", which has none.
    """
    check_operation(operation, relative)
    if operation == "project_out":
        if tuple(strengths) != STRENGTHS:
            raise InputError("operation='project_out' has no strengths: leave them out.")
        return (1.0,)
    levels = tuple(float(strength) for strength in strengths)
    if not levels or (operation == "add" and not any(levels)) or not np.isfinite(levels).all() or len(set(levels)) < len(levels):
        raise InputError(f"strengths is {list(strengths)}; expected different finite numbers, one or more of them not 0.")
    return levels
