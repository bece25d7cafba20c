"""Run the benchmarks. `make bench` calls this.

python -m benchmarks [PART ...] [--device cuda] [--out build/benchmarks]

Each part writes its measurements to `OUT/PART.json`. `OUT/tables.md` shows all parts measured so
far.
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import arguments, files, memory, steps, training
from benchmarks.measure import machine
from benchmarks.shapes import Batch

_BATCHES = ("8x32", "8x128", "32x32", "32x128", "64x256")
_PROBABILITIES = ("neuron 0.1", "neuron 0.3", "neuron 0.5", "neuron 0.7", "neuron 0.9")
_CONTROL = ("plain", "plain again", "product left out")
_ONE = (*_CONTROL, "neuron 0.7", "element 0.7")


@dataclass(frozen=True)
class Options:
    """Options that all parts use.

    Attributes:
        rounds: Number of rounds of the main comparisons. Others use a part of it.
        device: Device on which training steps run.
        base: A pretrained checkpoint with 22 M parameters.
        data: A folder with `train.tsv` and `dev.tsv`.
    """

    rounds: int
    device: str
    base: Path | None
    data: Path | None

    @property
    def precision(self) -> str:
        """The precision of training steps: fp32 on a CPU, bf16 on a GPU."""
        return "fp32" if self.device == "cpu" else "bf16"

    def steps(self, arms: tuple[str, ...], shape: str, batch: str, rounds: int) -> dict[str, Any]:
        """Measure training steps."""
        return steps.measure_steps(
            arms, shape, Batch.parse(batch), rounds=rounds, device=self.device,
            precision=self.precision,
        )  # fmt: skip


def _strategies(options: Options) -> list[dict[str, Any]]:
    shape = "22M" if options.device == "cpu" else "BERT-large"
    return [
        options.steps(steps.DEFAULT_ARMS, shape, "32x128", options.rounds),
        options.steps(_ONE, shape, "8x32", 2 * options.rounds),
    ]


def _by_batch(options: Options) -> list[dict[str, Any]]:
    fewer = max(3, options.rounds // 4)
    return [options.steps(_ONE, "22M", batch, fewer) for batch in _BATCHES]


def _by_probability(options: Options) -> list[dict[str, Any]]:
    arms = (*_CONTROL, *_PROBABILITIES)
    return [options.steps(arms, "22M", "32x128", max(3, options.rounds // 3))]


def _by_size(options: Options) -> list[dict[str, Any]]:
    arms = (*_CONTROL, "neuron 0.7")
    fewer = max(3, options.rounds // 4)
    return [options.steps(arms, shape, "4x128", fewer) for shape in ("22M", "BERT-base")] + [
        options.steps(("plain", "plain again", "neuron 0.7"), "BERT-large", "4x128", fewer)
    ]


def _images(options: Options) -> list[dict[str, Any]]:
    arms = ("plain", "plain again", "filter 0.8", "neuron 0.8", "element 0.8")
    return [options.steps(arms, "ResNet-18", "16x224", options.rounds)]


def _memory(options: Options) -> list[dict[str, Any]]:
    where = {"device": options.device, "precision": options.precision}
    return [
        memory.measure_memory(memory.DEFAULT_ARMS, shape, batch, repeats=1, **where)
        for shape, batch in (("22M", Batch(32, 128)), ("BERT-base", Batch(8, 128)))
    ]


def _training(options: Options) -> list[dict[str, Any]]:
    if options.base is None or options.data is None:
        print("training: skipped; it needs --base and --data", file=sys.stderr)
        return []
    return [training.measure_training(options.base, options.data, rounds=3)]


def _files(options: Options) -> list[dict[str, Any]]:
    """Measure in a new process, because a child process starts with its parent's peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "files.json"
        command = [sys.executable, "-m", "benchmarks.files", "--repeats", "5", "--json", str(path)]
        subprocess.run(command, check=True, stdout=sys.stderr)
        return [json.loads(path.read_text())]


#: Part → function that measures it, and function that shows a result as Markdown.
PARTS: dict[str, tuple[Callable[[Options], list[dict[str, Any]]], Callable[[Any], str]]] = {
    "strategies": (_strategies, steps.table),
    "batches": (_by_batch, steps.table),
    "probabilities": (_by_probability, steps.table),
    "sizes": (_by_size, steps.table),
    "images": (_images, steps.table),
    "memory": (_memory, memory.table),
    "training": (_training, training.table),
    "files": (_files, files.table),
}
_ON_GPU = ("strategies", "probabilities", "sizes", "images", "memory")


def _write_tables(out: Path) -> None:
    """Write the tables of all parts that have been measured."""
    lines = []
    for name, (_, table) in PARTS.items():
        path = out / f"{name}.json"
        if not path.exists():
            continue
        measured = json.loads(path.read_text())
        host = ", ".join(f"{key} {value}" for key, value in measured["machine"].items())
        lines += [f"# {name}", f"`{measured['command']}`: {host}"]
        for result in measured["results"]:
            setting = " ".join(str(result.get(key, "")) for key in ("shape", "batch", "precision"))
            heading = [f"## {setting}".rstrip()] if setting.strip() else []
            lines += [*heading, table(result)]
    (out / "tables.md").write_text("\n\n".join(lines) + "\n")


def main() -> None:
    """Measure the parts named on the command line, or all parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"default: {', '.join(PARTS)}")
    parser.add_argument("--device", type=arguments.device, default="cpu", help="default: cpu")
    parser.add_argument("--rounds", type=arguments.rounds, default=25, help="default: 25")
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks"), help="results folder")
    parser.add_argument("--base", type=arguments.BASE, help="checkpoint; only for `training`")
    parser.add_argument("--data", type=arguments.DATA, help="data folder; only for `training`")
    given = parser.parse_args()
    unknown = [part for part in given.parts if part not in PARTS]
    if unknown:
        parser.error(f"unknown part {unknown[0]!r}, expected one of {', '.join(PARTS)}")
    if "training" in given.parts and None in (given.base, given.data):
        parser.error("training needs a checkpoint (--base) and a data folder (--data)")
    parts = given.parts or (list(PARTS) if given.device == "cpu" else list(_ON_GPU))
    options = Options(given.rounds, given.device, given.base, given.data)
    given.out.mkdir(parents=True, exist_ok=True)
    print(json.dumps(machine(given.device)), file=sys.stderr)
    for part in parts:
        results = PARTS[part][0](options)
        if not results:
            continue
        measured = {
            "command": shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
            "machine": machine(given.device),
            "results": results,
        }
        (given.out / f"{part}.json").write_text(json.dumps(measured, indent=1) + "\n")
        _write_tables(given.out)
    print((given.out / "tables.md").read_text())


if __name__ == "__main__":
    main()
