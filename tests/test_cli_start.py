"""The program's start: what it imports, and Ctrl-C before anything has happened."""

import gc
import subprocess
import sys
from pathlib import Path

import click
import pytest
from cli_runs import environment

from mixout_export_cli.command import LazyCommands
from mixout_export_cli.imports import quick_imports
from mixout_export_cli.main import cli


def run(script: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *options, "-c", script], capture_output=True, text=True, env=environment()
    )


def test_help_imports_no_command() -> None:
    script = """
import sys
from mixout_export_cli.main import main
try:
    main(["--help"])
except SystemExit as ending:
    assert ending.code == 0
parts = ("mixout_export.", "mixout_export_cli.c")
print(sorted(name for name in sys.modules if name.startswith(parts)))
"""
    assert run(script).stdout.splitlines()[-1] == (
        "['mixout_export.errors', 'mixout_export.printable', 'mixout_export_cli.command']"
    )


@pytest.mark.parametrize("moment", ["click", "mixout_export_cli.program", "mixout_export.errors"])
def test_ctrl_c_while_the_program_is_still_being_imported(moment: str) -> None:
    """An importer that presses Ctrl-C at a given import stands for a user who does."""
    script = f"""
import sys
class Impatient:
    def find_spec(self, name, path=None, target=None):
        if name == {moment!r}:
            raise KeyboardInterrupt
sys.meta_path.insert(0, Impatient())
from mixout_export_cli.main import main
main(["collapse", "nowhere", "out"])
"""
    done = run(script)
    assert done.returncode == 130
    assert done.stdout == ""
    assert done.stderr.strip() == ("mixout-export: interrupted; existing files are unchanged")


def test_the_entry_point_imports_nothing_before_it_listens() -> None:
    script = """
import sys
before = set(sys.modules)
import mixout_export_cli.main
print(sorted(set(sys.modules) - before))
"""
    assert run(script).stdout.strip() == "['mixout_export_cli', 'mixout_export_cli.main']"


def test_every_summary_is_that_of_its_command() -> None:
    for name, command in cli.commands.items():
        assert command.name == name
        assert command.short_help == cli.commands.summaries[name]
        assert command.help


def test_every_module_of_commands_is_a_command() -> None:
    package = Path(sys.modules["mixout_export_cli.program"].__file__ or "").parent / "commands"
    modules = {path.stem for path in package.glob("*.py")} - {"__init__"}
    assert modules == set(cli.commands)


def test_commands_are_a_mapping_like_any() -> None:
    commands = LazyCommands("nowhere", {"a": "Do a."})
    assert list(commands) == ["a"]
    assert len(commands) == 1
    assert "b" not in commands
    assert commands.get("b") is None
    commands["b"] = click.Command("b", help="Do b.")
    assert list(commands) == ["a", "b"]
    assert commands.summaries["b"] == "Do b."
    del commands["a"]
    assert list(commands) == ["b"]


def test_no_other_name_is_made_up() -> None:
    import mixout_export_cli.main as module

    with pytest.raises(AttributeError, match="has no attribute 'nonesuch'"):
        _ = module.nonesuch


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_is_looked_for_again_after_the_imports(enabled: bool) -> None:
    before = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        with quick_imports():
            assert not gc.isenabled()
        assert gc.isenabled() == enabled
    finally:
        gc.unfreeze()
        (gc.enable if before else gc.disable)()
