"""How a number looks in every picture: three digits that matter, a sign where the sign is the point."""

import math
from collections.abc import Sequence


def number(value: float, style: str = "number") -> str:
    """A number as text; `style` is "number", "signed" or "percent" (of a fraction from 0 to 1).

    Example:
        >>> number(6.1196, "signed"), number(0.7731, "percent"), number(0.000123)
        ('+6.12', '77.3 %', '0.00012')
    """
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if style == "percent":
        return "0 %" if value == 0 else f"{100 * value:.1f} %" if value >= 0.0005 else "<0.1 %"
    if value == 0:
        return "0"
    size = abs(value)
    digits = f"{size:.0f}" if size >= 1000 else f"{size:.1f}" if size >= 100 else f"{size:.2f}" if size >= 0.005 else f"{size:.2g}"
    sign = "−" if value < 0 else "+" if style == "signed" else ""
    return sign + digits


def column(values: Sequence[float], kind: str) -> list[str]:
    """The numbers of one column of a table, with the same decimals; kinds as in `number`."""
    if kind == "percent":
        return [number(value, kind) for value in values]
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    if 0 < largest < 0.001 or largest >= 1e6:
        return [number(value, kind) for value in values]
    return [cell_number(value, largest, kind == "signed") for value in values]


def cell_number(value: float, largest: float, signed: bool) -> str:
    """A number inside a grid: as many decimals in every cell as the largest of them needs, so that columns line up."""
    if not math.isfinite(value):
        return number(value)
    decimals = 0 if largest >= 1000 else 1 if largest >= 100 else 2 if largest >= 0.1 or largest == 0 else 4
    text = f"{abs(value):.{decimals}f}"
    if float(text) == 0:
        return text
    return ("−" if value < 0 else "+" if signed else "") + text
