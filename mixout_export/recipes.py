"""Starting values for finetuning: what `train --recipe` sets."""

from collections.abc import Mapping
from typing import Any

#: Recipe → its values of `train` options. Options that are given take precedence, and all others
#: have their usual defaults.
RECIPES: dict[str, dict[str, Any]] = {
    # up to about 2,000 rows: so few steps at a lower rate hardly move a model
    "small": {"lr": 1e-4, "epochs": 10.0},
    "standard": {"lr": 5e-5},
}


def with_recipe(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return options, with the values of their recipe for those that are not given.

    Args:
        given: The options that are given, by their names in Python. Without a known "recipe",
            nothing is added.
    """
    return {**RECIPES.get(given.get("recipe") or "", {}), **given}


def recipe_values(name: str, options: Mapping[str, Any]) -> str:
    """Return the values that a run has from its recipe, as in "lr 0.0003, epochs 10".

    Args:
        name: The recipe.
        options: All options of the run. Those with another value were given.
    """
    own = RECIPES.get(name, {})
    kept = {option: value for option, value in own.items() if options.get(option) == value}
    shown = (f"{option.replace('_', '-')} {_plain(value)}" for option, value in kept.items())
    return ", ".join(shown) or "no values, because all were given"


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
