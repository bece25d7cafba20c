"""Compare `predict` with transformers' pipeline, and measure its memory.

python -m benchmarks.predict [--work DIR] [--data FILE] [--rows N] [--rounds N] [--json FILE]

Both answer the same texts with the same weights: `predict` the ONNX folder, the pipeline the plain
folder in PyTorch, with the same batch size and sorted texts. A time covers reading the
file, tokenizing, running, and writing a csv file, but not loading the model. The arms take turns,
and each round begins with the other one. CPU time is reported, too, because other work on the
machine disturbs wall time. That of `predict` includes loading the model.

`--memory N` instead predicts a file of N rows in a new process, with a tiny model, and prints the
peak resident memory.
"""

import argparse
import csv
import gzip
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import arguments
from benchmarks.measure import Ratio, machine, markdown_table

_PROGRAM = str(Path(sys.executable).with_name("mixout-export"))
_BATCH, _LONGEST = 32, 128


def _make(work: Path) -> None:
    """Prepare the demo's model, collapse it and export it, unless that was done before."""
    task = ["--task", "text-classification", "--labels", "negative,positive"]
    steps = (
        ("prepared", ["prepare", "demo-base", *task]),
        ("collapsed", ["collapse", str(work / "prepared")]),
        ("onnx", ["onnx", str(work / "collapsed"), "--no-verify"]),
    )
    for name, command in steps:
        out = work / name
        if not out.exists():
            whole = [_PROGRAM, command[0], *command[1:2], str(out), *command[2:], "--quiet"]
            subprocess.run(whole, check=True, stdout=subprocess.DEVNULL)


def _texts(data: Path | None, count: int) -> list[str]:
    """Return texts of a tsv file's column `sentence`, or of the demo; repeated if there are few."""
    from mixout_export.checkpoint.demo_base import demo_data
    from mixout_export.data.tables import read_table

    table = read_table(data or demo_data()[0])
    texts = table.columns["sentence" if "sentence" in table.columns else "text"]
    return [texts[row % len(texts)] for row in range(count)]


def _write(path: Path, texts: list[str]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["text"], *([text] for text in texts)])


def _ours(work: Path, file: Path) -> Callable[[], float]:
    from mixout_export.stages.predict import PredictOptions, predict_file

    options = PredictOptions(batch_size=_BATCH, max_length=_LONGEST)

    def arm() -> float:
        out = work / "ours.csv"
        return predict_file(work / "onnx", file, out, options, overwrite=True).seconds

    return arm


def _pipeline(work: Path, file: Path) -> Callable[[], float]:
    from transformers import pipeline

    classify = pipeline("text-classification", model=str(work / "collapsed"), device="cpu")

    def arm() -> float:
        started = time.perf_counter()
        with file.open(encoding="utf-8", newline="") as lines:
            texts = [row["text"] for row in csv.DictReader(lines)]
        order = sorted(range(len(texts)), key=lambda row: -len(texts[row]))
        options = {"batch_size": _BATCH, "truncation": True, "max_length": _LONGEST}
        answers: list[Any] = [None] * len(texts)
        found = classify([texts[row] for row in order], **options)
        for row, answer in zip(order, found, strict=True):
            answers[row] = answer
        with (work / "pipeline.csv").open("w", encoding="utf-8", newline="") as out:
            rows = ([t, a["label"], a["score"]] for t, a in zip(texts, answers, strict=True))
            csv.writer(out).writerows(rows)
        return time.perf_counter() - started

    return arm


def compare(work: Path, data: Path | None, *, rows: int, rounds: int) -> dict[str, Any]:
    """Measure both arms.

    Returns:
        The seconds of wall and CPU time of each round, and the ratios of `predict`'s speed to the
        pipeline's.
    """
    _make(work)
    file = work / "texts.csv"
    _write(file, _texts(data, rows))
    arms = {"predict": _ours(work, file), "pipeline": _pipeline(work, file)}
    wall: dict[str, list[float]] = {name: [] for name in arms}
    cpu: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(rounds):
        for name in list(arms)[:: 1 if number % 2 else -1]:
            used = time.process_time()
            wall[name].append(arms[name]())
            cpu[name].append(time.process_time() - used)
            print(
                f"{number + 1}/{rounds} {name}: {wall[name][-1]:.1f} s, CPU {cpu[name][-1]:.1f} s",
                file=sys.stderr,
                flush=True,
            )
    return {
        "rows": rows,
        "rounds": rounds,
        "machine": machine(),
        "wall": wall,
        "cpu": cpu,
        "same_labels": _same_labels(work),
    }


def _same_labels(work: Path) -> float:
    with (
        (work / "ours.csv").open(newline="") as ours,
        (work / "pipeline.csv").open(newline="") as theirs,
    ):
        pairs = zip(csv.DictReader(ours), csv.reader(theirs), strict=True)
        return statistics.mean(row["predicted"] == other[1] for row, other in pairs)


def table(result: dict[str, Any]) -> str:
    """Return the result as a Markdown table."""
    rows = []
    for name in ("wall", "cpu"):
        ours, theirs = result[name]["predict"], result[name]["pipeline"]
        speeds = [f"{result['rows'] / statistics.median(s):.0f}" for s in (ours, theirs)]
        rows.append([name, *speeds, str(Ratio.of(theirs, ours))])
    head = ["time", "predict, rows/s", "pipeline, rows/s", "predict / pipeline (quartiles)"]
    return markdown_table(head, rows)


def _measure_memory(work: Path, data: Path | None, rows: int) -> None:
    """Predict a file of some rows with a tiny model, and print the peak memory of the process."""
    from mixout_export.stages.predict import PredictOptions, predict_file

    texts = _texts(data, 1000)
    file = work / f"{rows}.csv.gz"
    with gzip.open(file, "wt", encoding="utf-8", newline="", compresslevel=1) as lines:
        writer = csv.writer(lines)
        writer.writerow(["text", "label"])
        writer.writerows((texts[row % len(texts)], row % 2) for row in range(rows))
    options = PredictOptions(batch_size=_BATCH, max_length=_LONGEST)
    result = predict_file(work / "tiny", file, work / f"{rows}-out.csv.gz", options, overwrite=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{rows:,} rows: {peak:.0f} MB at most, {result.rows_per_second:.0f} rows/s")


def _make_tiny(work: Path) -> None:
    """Write a BERT of one small layer with the demo's tokenizer, whose cost is small."""
    import transformers

    _make(work)
    if (work / "tiny").exists():
        return
    config = transformers.AutoConfig.from_pretrained(work / "collapsed")
    config.update(
        {
            "num_hidden_layers": 1,
            "hidden_size": 32,
            "num_attention_heads": 2,
            "intermediate_size": 32,
        }
    )
    transformers.BertForSequenceClassification(config).save_pretrained(work / "tiny")
    transformers.AutoTokenizer.from_pretrained(work / "collapsed").save_pretrained(work / "tiny")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="folder for models and files; default: temporary")
    parser.add_argument("--data", type=Path, help="a file with a column `sentence` or `text`")
    parser.add_argument("--rows", type=arguments.positive, default=10_000, help="default: 10000")
    parser.add_argument("--rounds", type=arguments.rounds, default=5, help="default: 5")
    parser.add_argument("--json", type=Path, help="write all measurements to this file")
    parser.add_argument("--memory", type=arguments.positive, metavar="ROWS", help="measure memory")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        if options.memory is not None:
            _make_tiny(work)
            _measure_memory(work, options.data, options.memory)
            return
        result = compare(work, options.data, rows=options.rows, rounds=options.rounds)
    print(table(result))
    print(f"same label: {result['same_labels']:.2%}")
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
