"""Measure whole commands against `cp` of the bytes that they write.

python -m benchmarks.files [--work DIR] [--repeats N] [--json FILE]

The benchmark prepares and collapses a checkpoint of BERT-large's shape (1.3 GB), or the one in
DIR/base. Each time covers a whole process and the `sync` after it, on the same disk. The commands
take turns, in a rotated order. Before each run, its earlier output is removed and synced; that is
not part of the time.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import arguments

_MAKE = """
import sys, torch, transformers
torch.manual_seed(0)
config = transformers.BertConfig(
    vocab_size=30522, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16,
    intermediate_size=4096,
)
transformers.BertModel(config).save_pretrained(sys.argv[1])
"""

#: `prepare`, forced to use `save_pretrained` instead of moving bytes.
_SAVE = """
import sys
import mixout_export.stages.prepare
mixout_export.stages.prepare.plan_saving = lambda *arguments: None
from mixout_export_cli.main import main
main(sys.argv[1:])
"""

_PROGRAM = str(Path(sys.executable).with_name("mixout-export"))

#: Measured arm → the arm it is compared with, and the largest ratio allowed; None for no limit.
_BOUNDS: dict[str, tuple[str, float | None]] = {
    "collapse": ("cp of collapse", 1.5),
    "prepare": ("cp of prepare", 2.5),
    "--help": ("import click", 2.5),
    "prepare, save_pretrained": ("prepare, bytes moved", None),
}


@dataclass(frozen=True)
class Cost:
    """The cost of one process.

    Attributes:
        seconds: Wall time of the process and of the `sync` after it, in seconds.
        peak: Largest resident set including mapped pages, in bytes.
    """

    seconds: float
    peak: int


def _cost(command: Sequence[str], written: Path | None) -> Cost:
    """Run a command that writes the folder `written`, or nothing, and return its cost."""
    if written is not None:
        shutil.rmtree(written, ignore_errors=True)
        os.sync()
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if written is not None:
        os.sync()
    seconds = time.perf_counter() - started
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return Cost(seconds, usage.ru_maxrss * 1024)


def _arms(work: Path) -> dict[str, Callable[[], Cost]]:
    base, source, target = work / "base", work / "prepared", work / "collapsed"
    prepared = [_PROGRAM, "prepare", str(base), "--task", "text-classification"]
    commands: dict[str, tuple[list[str], Path | None]] = {
        "cp of collapse": (["cp", "-r", str(target)], work / "1"),
        "collapse": ([_PROGRAM, "collapse", str(source)], work / "2"),
        "cp of prepare": (["cp", "-r", str(source)], work / "3"),
        "prepare": (prepared, work / "4"),
        "import click": ([sys.executable, "-c", "import click"], None),
        "--help": ([_PROGRAM, "--help"], None),
        "prepare, bytes moved": (prepared, work / "5"),
        "prepare, save_pretrained": ([sys.executable, "-c", _SAVE, *prepared[1:]], work / "6"),
    }
    return {
        name: partial(_cost, [*command, *([str(out)] if out else [])], out)
        for name, (command, out) in commands.items()
    }


def _make(work: Path) -> None:
    """Write the base, the prepared and the collapsed checkpoint, if they do not exist.

    The base is written in a new process, because a child process starts with the resident set of
    its parent.
    """
    if not (work / "base").exists():
        subprocess.run([sys.executable, "-c", _MAKE, work / "base"], check=True)
    for command, name in (("prepare", "prepared"), ("collapse", "collapsed")):
        if not (work / name).exists():
            source = [str(work / "base"), str(work / name), "--task", "text-classification"]
            if command == "collapse":
                source = [str(work / "prepared"), str(work / name)]
            subprocess.run(
                [_PROGRAM, command, *source, "--json"], check=True, stdout=subprocess.DEVNULL
            )
    os.sync()


def run(work: Path, repeats: int) -> dict[str, Any]:
    """Measure every arm.

    Args:
        work: A folder on the disk to measure, with 16 GB of free space.
        repeats: Number of rounds. Each round starts with another arm.

    Returns:
        The seconds and the peak of each arm, and the ratios of the rounds for each bound.
    """
    _make(work)
    for path in work.glob("*/*.safetensors"):  # fill the page cache for the first arm
        subprocess.run(["cat", path], check=True, stdout=subprocess.DEVNULL)
    arms = _arms(work)
    costs: dict[str, list[Cost]] = {name: [] for name in arms}
    order = list(arms)
    for number in range(repeats):
        first = 2 * number % len(order)  # an arm and its reference run in a row
        for name in [*order[first:], *order[:first]]:
            costs[name].append(arms[name]())
            taken = costs[name][-1].seconds
            print(f"{number + 1}/{repeats} {name}: {taken:.2f} s", file=sys.stderr)
    return {
        "repeats": repeats,
        "arms": {
            name: {"seconds": [c.seconds for c in taken], "peak": max(c.peak for c in taken)}
            for name, taken in costs.items()
        },
        "ratios": {
            name: {
                "of": other,
                "bound": bound,
                "pairs": [
                    ours.seconds / theirs.seconds
                    for ours, theirs in zip(costs[name], costs[other], strict=True)
                ],
            }
            for name, (other, bound) in _BOUNDS.items()
        },
    }


def table(result: dict[str, Any]) -> str:
    """Return the results as a Markdown table."""
    lines = [
        "| process | median | peak memory | compared with | ratio, median (min to max) | limit |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, ratio in result["ratios"].items():
        arm, pairs = result["arms"][name], ratio["pairs"]
        other = result["arms"][ratio["of"]]
        lines.append(
            f"| {name} | {statistics.median(arm['seconds']):.2f} s | {arm['peak'] / 1e6:.0f} MB "
            f"| {ratio['of']}, {statistics.median(other['seconds']):.2f} s "
            f"| {statistics.median(pairs):.2f} ({min(pairs):.2f} to {max(pairs):.2f}) "
            f"| {ratio['bound'] or ''} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--work", type=Path, help="folder on the disk to measure; default: temporary"
    )
    parser.add_argument("--repeats", type=arguments.rounds, default=7, help="default: 7")
    parser.add_argument("--json", type=Path, help="write all measurements to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        result = run(work, options.repeats)
    print(table(result))
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
