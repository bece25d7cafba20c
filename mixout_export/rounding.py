"""Round numbers for people, in the same way on the terminal, on pages and in cards."""

import math


def difference(value: float | None) -> str:
    """Return a difference in two digits, as in "1.3e-06", "0.42", "0" and "∞". None is "–"."""
    if value is None:
        return "–"
    if math.isinf(value):
        return "∞"
    if 0.001 <= value < 1000:
        return f"{value:.2g}" if value < 100 else f"{value:.0f}"
    return f"{value:.1e}" if value else "0"


def share(value: float | None) -> str:
    """Return a share as a percentage, which is 100 % only if it is complete. None is "–"."""
    if value is None:
        return "–"
    percent = math.floor(round(value * 1e4, 6)) / 100
    return f"{percent:.0f} %" if value in (0.0, 1.0) else f"{percent:.2f} %"
