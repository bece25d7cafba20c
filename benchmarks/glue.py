"""Finetune a checkpoint on a GLUE task with several strategies and seeds, and compare the metric.

    python benchmarks/glue.py BASE DATA_FOLDER WORK_FOLDER --metric matthews --lr 5e-5

Each run calls `mixout-export prepare` and `train`. For one seed, all strategies start from the same
head.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

#: Strategy → options of `prepare` and of `train`.
STRATEGIES = {
    "plain": (["--p", "0"], []),
    "dropout 0.1": (["--p", "0", "--dropout", "0.1"], []),
    "mixout 0.7": (["--p", "0.7"], []),
    "mixout 0.7 + wdecay(pre)": (["--p", "0.7"], ["--decay-toward", "pretrained"]),
}


def run(*words: str) -> None:
    """Run one command of the command line."""
    subprocess.run([sys.executable, "-m", "mixout_export_cli", *words, "--quiet"], check=True)


def finetune(
    options: argparse.Namespace, strategy: str, seed: int, flags: tuple[list[str], list[str]]
) -> float:
    """Return the metric of one run. Run it first if it has not been completed."""
    name = strategy.replace(" ", "-")
    prepared, trained = options.work / f"{name}-{seed}-prepared", options.work / f"{name}-{seed}"
    prepare_flags, train_flags = flags
    if not trained.exists():
        head = ["--task", "text-classification", "--seed", str(seed), "--overwrite"]
        run("prepare", str(options.base), str(prepared), *head, *prepare_flags)
    files = ["--train-file", str(options.data / "train.tsv")]
    files += ["--eval-file", str(options.data / "dev.tsv")]
    training = ["--lr", str(options.lr), "--epochs", str(options.epochs), "--seed", str(seed)]
    training += ["--metric", options.metric, "--select", "last", "--resume"]
    run("train", str(prepared), str(trained), *files, *training, *train_flags)
    result = json.loads((trained / "training.json").read_text())["result"]
    return float(result["metrics"][options.metric])


def main() -> None:
    """Run all strategies with all seeds and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--metric", default="matthews")
    parser.add_argument("--lr", type=float, default=5e-5)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--strategies", nargs="*", default=list(STRATEGIES))
    options = parser.parse_args()
    values: dict[str, list[float]] = {name: [] for name in options.strategies}
    for seed in range(options.seeds):
        for name in options.strategies:
            values[name].append(finetune(options, name, seed, STRATEGIES[name]))
            print(name, seed, values[name][-1], file=sys.stderr, flush=True)
    print(f"| strategy | mean {options.metric} | per seed |\n| --- | --- | --- |")
    for name, found in values.items():
        shown = ", ".join(f"{value:.3f}" for value in found)
        print(f"| {name} | {statistics.mean(found):.3f} | {shown} |")


if __name__ == "__main__":
    main()
