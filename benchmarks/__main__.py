"""Run the benchmarks; `make bench` does.

python -m benchmarks [PART ...] [--device cuda] [--out build/benchmarks]

Each part leaves `PART.json` in OUT, and all tables so far are in OUT/tables.md.
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
from benchmarks.arms import Batch
from benchmarks.measure import machine

_BATCHES = ("8x32", "8x128", "32x32", "32x128", "64x256")
_PROBABILITIES = ("neuron 0.1", "neuron 0.3", "neuron 0.5", "neuron 0.7", "neuron 0.9")
_CONTROL = ("plain", "plain again", "product left out")
_ONE = (*_CONTROL, "neuron 0.7", "element 0.7")


@dataclass(frozen=True)
class Options:
    """What all parts share.

    Attributes:
        rounds: Rounds of a comparison that is to be relied on.
        device: Where steps run.
        base: A pretrained checkpoint of 22 M parameters.
        data: A folder with `train.tsv` and `dev.tsv`.
    """

    rounds: int
    device: str
    base: Path | None
    data: Path | None

    @property
    def precision(self) -> str:
        """The precision of steps: what people use on such a device."""
        return "fp32" if self.device == "cpu" else "bf16"

    def steps(self, arms: tuple[str, ...], shape: str, batch: str, rounds: int) -> dict[str, Any]:
        """Measure steps."""
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


def _memory(options: Options) -> list[dict[str, Any]]:
    where = {"device": options.device, "precision": options.precision}
    return [
        memory.measure_memory(memory.DEFAULT_ARMS, shape, batch, repeats=1, **where)
        for shape, batch in (("22M", Batch(32, 128)), ("BERT-base", Batch(8, 128)))
    ]


def _training(options: Options) -> list[dict[str, Any]]:
    if options.base is None or options.data is None:
        print("training: give --base and --data to compare with Trainer", file=sys.stderr)
        return []
    return [training.measure_training(options.base, options.data, rounds=3)]


def _files(options: Options) -> list[dict[str, Any]]:
    """Measure in a process of its own: a child's peak memory begins with its parent's."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "files.json"
        command = [sys.executable, "-m", "benchmarks.files", "--repeats", "5", "--json", str(path)]
        subprocess.run(command, check=True, stdout=sys.stderr)
        return [json.loads(path.read_text())]


#: Part → how it is measured, and how a result is shown.
PARTS: dict[str, tuple[Callable[[Options], list[dict[str, Any]]], Callable[[Any], str]]] = {
    "strategies": (_strategies, steps.table),
    "batches": (_by_batch, steps.table),
    "probabilities": (_by_probability, steps.table),
    "sizes": (_by_size, steps.table),
    "memory": (_memory, memory.table),
    "training": (_training, training.table),
    "files": (_files, files.table),
}
_ON_GPU = ("strategies", "probabilities", "sizes", "memory")


def _write_tables(out: Path) -> None:
    """Write the tables of every part that has been measured."""
    lines = []
    for name, (_, table) in PARTS.items():
        path = out / f"{name}.json"
        if not path.exists():
            continue
        measured = json.loads(path.read_text())
        host = ", ".join(f"{key} {value}" for key, value in measured["machine"].items())
        lines += [f"# {name}", f"`{measured['command']}`: {host}"]
        for result in measured["results"]:
            where = " ".join(str(result.get(key, "")) for key in ("shape", "batch", "precision"))
            lines += [f"## {where}".rstrip(), table(result)] if where.strip() else [table(result)]
    (out / "tables.md").write_text("\n\n".join(lines) + "\n")


def main() -> None:
    """Measure the parts that are asked for, all of them if none is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--device", type=arguments.device, default="cpu")
    parser.add_argument("--rounds", type=arguments.rounds, default=25)
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks"))
    parser.add_argument("--base", type=arguments.BASE, help="checkpoint for `training`")
    parser.add_argument("--data", type=arguments.DATA, help="data set for `training`")
    given = parser.parse_args()
    unknown = [part for part in given.parts if part not in PARTS]
    if unknown:
        parser.error(f"there is no part {unknown[0]!r}, expected {', '.join(PARTS)}")
    if "training" in given.parts and None in (given.base, given.data):
        parser.error(
            "training needs --base, a checkpoint, and --data, a data set, to compare with Trainer"
        )
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
