"""Format numbers and texts for the page."""

import math

from mixout_export.study.sentences import number

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def power_of_ten(exponent: int) -> str:
    """Return a power of ten, as in "10⁻⁵"."""
    return "10" + str(exponent).translate(_SUPERSCRIPT)


def decimal(value: float, *, signed: bool = False) -> str:
    """Return a metric, as in "0.8103", or with a sign its change, as in "+0.0012" and "0"."""
    return (f"{value:+.4f}" if value else "0") if signed else f"{value:.4f}"


def count(value: int) -> str:
    """Return a number with thin spaces between its thousands."""
    return f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def short_count(value: int) -> str:
    """Return a number in at most four characters: "998", "12k", "3.4M"."""
    size = float(value)
    for unit in ("", "k", "M", "G"):
        if size < 999.5 or unit == "G":
            return f"{size:.1f}{unit}" if unit and size < 9.95 else f"{size:.0f}{unit}"
        size /= 1000
    raise AssertionError


def shape(sizes: tuple[int, ...] | None) -> str:
    """Return a shape, as in "2 × 16". None is "–"."""
    return " × ".join(map(str, sizes)) if sizes else "–"


def file_size(size: int) -> str:
    """Return a number of bytes, as in "90.9 MB"."""
    value = float(size)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


def sentence(text: str) -> str:
    """Return a clause as a sentence, with a capital letter and a full stop."""
    first = text.split(" ", 1)[0]
    start = text[:1].upper() if first.isalpha() else text[:1]  # not in paths and names
    return start + text[1:] + ("" if text.endswith((".", "?", "!", "…")) else ".")


def score(value: float | None) -> str:
    """Return a score as the sentences of a study write it. None and NaN are "–"."""
    return "–" if value is None or not math.isfinite(value) else number(value + 0.0)  # not -0


def duration(seconds: float) -> str:
    """Return a time in a unit that is easy to read, as in "42 s", "3.5 min" and "2.1 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def percent(value: float) -> str:
    """Return a share in whole percent, as in "21 %"."""
    return f"{value:.0%}".replace("%", " %")


def p_value(value: float | None) -> str:
    """Return a p-value, as in "0.031" and "< 0.001". None is "–"."""
    if value is None:
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
