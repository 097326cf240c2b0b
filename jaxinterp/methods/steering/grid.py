"""The grid of layers and strengths that a sweep of steering fills."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from jaxinterp.runs.measure import Measured


def filled(
    measured: Measured, cells: Sequence[tuple[int, float]], layers: Sequence[int], strengths: Sequence[float]
) -> Float[np.ndarray, "B L S"]:
    """A metric on the grid of layers and strengths; that of the plain run where no cell stands, as at strength 0.

    Args:
        measured: of the cells.
        cells: (layer, strength) of each.
        layers: labels of L.
        strengths: labels of S.
    """
    grid = np.broadcast_to(measured.base[:, None, None], (len(measured.base), len(layers), len(strengths))).copy()
    rows, columns = np.asarray([(layers.index(layer), strengths.index(strength)) for layer, strength in cells]).T
    grid[:, rows, columns] = measured.values.T
    return grid
