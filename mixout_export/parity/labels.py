"""Describe how the labels of two models differ."""

from collections.abc import Sequence

from mixout_export.printable import one_line

#: Largest number of labels that a sentence lists. Beyond that, it names the first that differs.
_FEW_LABELS = 10


def different_labels(found: Sequence[str], expected: Sequence[str]) -> str:
    """Return how two models' labels differ, as the end of a sentence."""
    if max(len(found), len(expected)) <= _FEW_LABELS:
        got, right = (one_line(", ".join(labels)) for labels in (found, expected))
        return f"got {got}, expected {right}"
    if len(found) != len(expected):
        return f"got {len(found)} labels, expected {len(expected)}"
    number = next(n for n, pair in enumerate(zip(found, expected, strict=True)) if len({*pair}) > 1)
    return f"label {number} is {one_line(found[number])}, expected {one_line(expected[number])}"
