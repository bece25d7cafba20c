"""The entry point. It handles Ctrl-C before it imports anything."""

import sys


def main(arguments: "list[str] | None" = None) -> None:
    """Run the program and exit.

    Args:
        arguments: The arguments; None takes those of the command line.

    Raises:
        SystemExit: Always.
    """
    try:
        from mixout_export_cli.program import run

        run(arguments)
    except KeyboardInterrupt:
        from contextlib import suppress

        with suppress(OSError):  # stderr is closed
            sys.stderr.write("mixout-export: interrupted; existing files are unchanged\n")
        sys.exit(130)


def __getattr__(name: str) -> object:
    if name != "cli":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mixout_export_cli.program import cli

    return cli
