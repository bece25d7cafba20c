"""Options that several commands share."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import click

from mixout_export_cli.output import Output

P = ParamSpec("P")
R = TypeVar("R")

#: A path on this machine. The command itself checks whether it exists.
PATH = click.Path(path_type=Path)

_SEEDS = 2**63


class RenamedOption(click.Option):
    """An option that also accepts its former name, which `--help` does not show.

    Args:
        old_name: The former name, with its hyphens.
    """

    def __init__(self, *args: Any, old_name: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._old_name = old_name

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        """Add both names to the parser."""
        names = self.opts
        self.opts = [*names, self._old_name]
        super().add_to_parser(parser, ctx)
        self.opts = names


def output_options(function: Callable[..., R]) -> Callable[..., R]:
    """Add `--json` and `--quiet`, and pass an `Output` as the argument `output`."""

    @click.option(
        "--json", "as_json", is_flag=True, help="Print one JSON object to stdout, and nothing else."
    )
    @click.option("--quiet", is_flag=True, help="Print only the result.")
    @wraps(function)
    def wrapper(*args: Any, as_json: bool, quiet: bool, **kwargs: Any) -> R:
        return function(*args, output=Output(json=as_json, quiet=quiet), **kwargs)

    return wrapper


def _check_seed(_: click.Context, __: click.Parameter, value: int) -> int:
    if not 0 <= value < _SEEDS:
        raise click.BadParameter(f"{value} is not in [0, 2**63).")
    return value


def seed_option(text: str) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Add `--seed` with a help text that says what it seeds."""
    return click.option(
        "--seed", type=int, default=0, show_default=True, callback=_check_seed, help=text
    )


overwrite_option = click.option(
    "--overwrite",
    is_flag=True,
    help="Replace OUT if it exists. The old OUT is kept until the new one is complete.",
)
