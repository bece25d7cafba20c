"""Measure one epoch of `mixout-export train` against plain finetuning with the Trainer.

python -m benchmarks.training BASE DATA_FOLDER [--rounds 3]

DATA_FOLDER holds `train.tsv` and `dev.tsv` of a GLUE task. Each time covers a whole process, and
the two programs take turns.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import arguments
from benchmarks.measure import Ratio, by_turns, machine, markdown_table

TOOL, TRAINER = "mixout-export train", "Trainer"


def _run(*words: object) -> None:
    subprocess.run([sys.executable, *map(str, words)], check=True, stdout=subprocess.DEVNULL)


def _train(prepared: Path, data: Path, out: Path) -> None:
    files = ["--train-file", data / "train.tsv", "--eval-file", data / "dev.tsv"]
    _run("-m", "mixout_export_cli", "train", prepared, out, *files, "--epochs", 1, "--overwrite",
         "--device", "cpu")  # fmt: skip


def _trainer(base: Path, data: Path, out: Path) -> None:
    for path in (out, out.with_name(out.name + "-cache")):
        shutil.rmtree(path, ignore_errors=True)
    _run(Path(__file__).with_name("trainer_run.py"), base, data, out)


def measure_training(base: Path, data: Path, *, rounds: int) -> dict[str, Any]:
    """Time whole processes that take turns.

    Args:
        base: A pretrained checkpoint without a head.
        data: A folder with `train.tsv` and `dev.tsv`.
        rounds: Number of runs of each.
    """
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        _run("-m", "mixout_export_cli", "prepare", base, work / "prepared",
             "--task", "text-classification")  # fmt: skip
        arms = {
            TRAINER: partial(_trainer, base, data, work / "trainer"),
            TOOL: partial(_train, work / "prepared", data, work / "trained"),
        }
        seconds = by_turns(
            arms, rounds=rounds, warmup=0, report=lambda line: print(line, file=sys.stderr)
        )
    return {"machine": machine(), "data": data.name, "seconds": seconds}


def table(result: dict[str, Any]) -> str:
    """Return the measurements as Markdown."""
    seconds = result["seconds"]
    rows = []
    for arm, times in seconds.items():
        shown = ", ".join(f"{value:.0f}" for value in times)
        rows.append((arm, shown, Ratio.of(times, seconds[TRAINER])))
    return markdown_table(("run", "seconds", "against Trainer"), rows)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", type=arguments.BASE)
    parser.add_argument("data", type=arguments.DATA)
    parser.add_argument("--rounds", type=arguments.rounds, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result = measure_training(options.base, options.data, rounds=options.rounds)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
