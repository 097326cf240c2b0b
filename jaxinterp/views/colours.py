"""The colours of every picture, defined once: scales for cells, hues for series, in light and dark.

Both scales keep their meaning for readers who cannot tell red from green: diverging goes from orange (negative) over
the paper's own colour to blue (positive), sequential from the paper to deep blue. The interpolation is linear in sRGB
between stops that were chosen to look even.
"""

from typing import Literal

import numpy as np

Theme = Literal["light", "dark"]

PAPER = {"light": "#ffffff", "dark": "#17191e"}
INK = {"light": "#1d2026", "dark": "#e7e9ee"}
FAINT = {"light": "#6b7280", "dark": "#9aa1ad"}

SCALES: dict[str, dict[str, tuple[str, ...]]] = {
    "diverging": {
        "light": ("#8f3a05", "#d9701c", "#f6b98a", "#f7f7f5", "#9cc3ea", "#3679c4", "#113f82"),
        "dark": ("#ffb884", "#e07b2e", "#8a4a1d", "#22252c", "#22507f", "#3f8fe0", "#a6d2ff"),
    },
    "sequential": {
        "light": ("#f5f7fa", "#c8dcf2", "#7fb2e5", "#3679c4", "#0f3a78"),
        "dark": ("#20242c", "#1d4573", "#2f76bf", "#69b0f5", "#d3e9ff"),
    },
}
SERIES = {
    "light": ("#1f6fc0", "#d2650f", "#2b8a5f", "#8a4fbf", "#a88400", "#c0386b"),
    "dark": ("#5fa8f5", "#f2914a", "#4fc08d", "#bb8cf0", "#d9b93b", "#ef7fa6"),
}


def rgb(colour: str) -> tuple[int, int, int]:
    """Red, green and blue from 0 to 255 of a colour written #rrggbb."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def colour_at(fraction: float, scale: str, theme: Theme = "light") -> tuple[int, int, int]:
    """The colour at a fraction from 0 (low) to 1 (high) of a scale."""
    stops = np.array([rgb(stop) for stop in SCALES[scale][theme]], float)
    place = float(np.clip(fraction, 0.0, 1.0)) * (len(stops) - 1)
    below = min(int(place), len(stops) - 2)
    red, green, blue = stops[below] + (place - below) * (stops[below + 1] - stops[below])
    return round(red), round(green), round(blue)


def readable_on(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    """Black or white, whichever has more contrast on a colour (relative luminance of WCAG 2)."""
    linear = [(c / 255 / 12.92) if c / 255 <= 0.03928 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (16, 18, 22) if luminance > 0.18 else (255, 255, 255)
