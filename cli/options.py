"""Options that several commands share."""

from collections.abc import Callable
from dataclasses import fields
from functools import partial, wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import click

from mixout_export_cli.output import Output

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

#: A path on this machine. The command itself checks whether it exists.
PATH = click.Path(path_type=Path)

#: Declares an option with a value. The help shows the default unless it is None.
option = partial(click.option, show_default=True)

#: Declares an option without a value.
flag = partial(click.option, is_flag=True)


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

    @flag("--json", "as_json", help="Print one JSON object to stdout, and nothing else.")
    @flag("--quiet", help="Print only the result.")
    @wraps(function)
    def wrapper(*args: Any, as_json: bool, quiet: bool, **kwargs: Any) -> R:
        return function(*args, output=Output(json=as_json, quiet=quiet), **kwargs)

    return wrapper


def _check_seed(_: click.Context, __: click.Parameter, value: int | None) -> int | None:
    if value is not None and not 0 <= value < 2**63:
        raise click.BadParameter(f"{value} is not in [0, 2**63).")
    return value


def seed_option(
    text: str, name: str = "--seed", *, default: int | None = 0
) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Add an option for a seed, with a help text that says what it seeds."""
    return option(name, type=int, default=default, callback=_check_seed, help=text)


def column_option(name: str, content: str) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Add an option for the name of a column with the given content."""
    text = f"Column with {content}.  [default: detected by name]"
    return option(name, metavar="NAME", help=text)


def take(kind: type[T], options: dict[str, Any]) -> T:
    """Remove the options that are fields of a dataclass, and build the dataclass from them."""
    names = [field.name for field in fields(kind) if field.name in options]  # type: ignore[arg-type]
    return kind(**{name: options.pop(name) for name in names})


def field_options(function: Callable[..., R]) -> Callable[..., R]:
    """Add the options that say how the fields of csv and tsv files are separated and quoted."""
    delimiter = option(
        "--delimiter",
        metavar="C",
        help="Character between the fields of csv and tsv files: comma, semicolon, tab, pipe, or "
        "the character itself.  [default: tab for tsv files, else comma]",
    )
    quoting = option(
        "--quoting",
        type=click.Choice(["csv", "none", "backslash"]),
        help="How the fields of csv and tsv files are quoted: as in csv, not at all, or with a "
        "backslash before inner quotes.  [default: csv for csv files, none for tsv files]",
    )
    return delimiter(quoting(function))


skip_option = option(
    "--skip-bad-rows",
    default=0,
    metavar="N",
    help="Leave out up to N rows that cannot be read or do not fit the task, and list them.",
)

length_option = option(
    "--max-length",
    type=int,
    metavar="TOKENS",
    help="Maximum length of a text in tokens. Longer texts are cut, and counted.  [default: that "
    "of the training; if it is not recorded, the model's limit, at most 512]",
)

overwrite_option = flag(
    "--overwrite",
    help="Replace OUT if it exists. The old OUT is kept until the new one is complete.",
)
