"""Parameters that repeat what others of the same test check, for `make test-repeats`."""

from collections.abc import Iterable
from typing import Any

import pytest


def mostly_repeats(values: Iterable[Any], *distinct: Any) -> list[Any]:
    """Return parameters, of which all but the distinct ones are marked as repeats.

    Args:
        values: The parameters.
        distinct: Those that `make test` runs too.
    """
    return [
        value if value in distinct else pytest.param(*_several(value), marks=pytest.mark.repeats)
        for value in values
    ]


def _several(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)
