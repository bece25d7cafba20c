"""What all commands have in common: help that fits the terminal, and errors that name options."""

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from importlib import import_module
from typing import Any

import click

from mixout_export.errors import ArgumentError

_WIDEST_COLUMN = 30
_GIVEN = "mixout_export_cli.given"
_ARGUMENT = re.compile(r"([a-z][a-z_-]*)(?=: )")

_HYPHEN, _SPACE = "\N{NON-BREAKING HYPHEN}", "\N{NO-BREAK SPACE}"
_INNER_HYPHEN = re.compile(r"(?<=\w)-(?=\w)")
_SHORT_DEFAULT = re.compile(r"(?<=\[default:) (?=\S+\])")


def _whole(text: str) -> str:
    """Return text in which wrapping does not split names and short defaults."""
    return _SHORT_DEFAULT.sub(_SPACE, _INNER_HYPHEN.sub(_HYPHEN, text))


class _Formatter(click.HelpFormatter):
    """Keeps names whole, and gives the text more room than the options in a narrow terminal."""

    def write_text(self, text: str) -> None:
        super().write_text(_whole(text))

    def write_dl(
        self,
        rows: Iterable[tuple[str, str]],
        col_max: int = _WIDEST_COLUMN,
        col_spacing: int = 2,
    ) -> None:
        whole = [(term, _whole(text)) for term, text in rows]
        super().write_dl(whole, min(col_max, self.width // 3), col_spacing)

    def getvalue(self) -> str:
        return super().getvalue().replace(_HYPHEN, "-").replace(_SPACE, " ")


class _Context(click.Context):
    formatter_class = _Formatter


class Command(click.Command):
    """A command whose errors name the option that the user gave: `--head-dropout: got 2.0, …`."""

    context_class = _Context

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments, and keep them for `given_arguments`."""
        ctx.meta[_GIVEN] = tuple(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command.

        Raises:
            MixoutError: The command failed.
        """
        try:
            return super().invoke(ctx)
        except ArgumentError as error:
            error.args = (self._with_option(str(error)),)
            raise

    def _with_option(self, message: str) -> str:
        """Return the message with the option in place of the library's argument."""
        found = _ARGUMENT.match(message)
        if found is None:
            return message
        option = "--" + found[1].replace("_", "-")
        known = {name for parameter in self.params for name in parameter.opts}
        return option + message[found.end() :] if option in known else message


def given_arguments() -> tuple[str, ...]:
    """Return the arguments of the command that is running, as they were typed."""
    given: tuple[str, ...] = click.get_current_context().meta[_GIVEN]
    return given


def command_line() -> str:
    """Return the command that is running, quoted for a shell."""
    return shlex.join([*click.get_current_context().command_path.split(), *given_arguments()])


class LazyCommands(MutableMapping[str, click.Command]):
    """Commands by name. Each is imported from the module of its name when it is first used."""

    def __init__(self, package: str, summaries: Mapping[str, str]) -> None:
        self._package = package
        self._loaded: dict[str, click.Command] = {}
        self.summaries = dict(summaries)

    def __getitem__(self, name: str) -> click.Command:
        if name not in self._loaded:
            if name not in self.summaries:
                raise KeyError(name)
            command = getattr(import_module(f"{self._package}.{name}"), name)
            command.short_help = self.summaries[name]
            self._loaded[name] = command
        return self._loaded[name]

    def __setitem__(self, name: str, command: click.Command) -> None:
        self._loaded[name] = command
        self.summaries[name] = command.get_short_help_str()

    def __delitem__(self, name: str) -> None:
        del self.summaries[name]
        self._loaded.pop(name, None)

    def __contains__(self, name: object) -> bool:
        return name in self.summaries

    def __iter__(self) -> Iterator[str]:
        return iter(self.summaries)

    def __len__(self) -> int:
        return len(self.summaries)


class Group(click.Group):
    """A group that lists its commands in the order of the workflow, without importing them."""

    context_class = _Context
    command_class = Command
    commands: LazyCommands

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands' names in the order in which they were added."""
        return list(self.commands)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Return a command, after silencing the libraries that it imports."""
        from mixout_export_cli.quiet import silence_libraries

        silence_libraries()
        return super().get_command(ctx, name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the names and summaries of the commands."""
        with formatter.section("Commands"):
            formatter.write_dl(list(self.commands.summaries.items()))
