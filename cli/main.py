"""The program's first moment: nothing is imported before Ctrl-C is heard."""

import sys


def main(arguments: "list[str] | None" = None) -> None:
    """Run the program and exit.

    Args:
        arguments: What follows the program's name; None takes it from the command line.

    Raises:
        SystemExit: Always.
    """
    try:
        from mixout_export_cli.program import run

        run(arguments)
    except KeyboardInterrupt:
        from contextlib import suppress

        with suppress(OSError):  # nobody reads it
            sys.stderr.write("mixout-export: interrupted; what was there before is untouched\n")
        sys.exit(130)


def __getattr__(name: str) -> object:
    if name != "cli":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mixout_export_cli.program import cli

    return cli
