"""Compare precisions: file size, time on a CPU, decisions and the task's metric.

python -m benchmarks.precisions COLLAPSED --data dev.tsv --calibration train.tsv --json FILE
"""

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from benchmarks.measure import Ratio, by_turns, machine, markdown_table
from mixout_export.checkpoint.folder import open_checkpoint
from mixout_export.checkpoint.model_inputs import Batch
from mixout_export.checkpoint.plain import PlainCheckpoint
from mixout_export.data.columns import ColumnNames
from mixout_export.data.evaluation import EvaluationData
from mixout_export.export.precision import Conversion
from mixout_export.parity.compare import OutputComparison, OutputDifference, decision_of
from mixout_export.stages.onnx_export import ExportData, export_onnx
from mixout_export.stages.verify_data import read_data

#: Name → conversion, and whether it is calibrated (static quantization).
VARIANTS: dict[str, tuple[Conversion, bool]] = {
    "fp32": (Conversion("fp32"), False),
    "fp32 again (control)": (Conversion("fp32"), False),
    "fp32 --optimize": (Conversion("fp32", optimize=True), False),
    "fp16": (Conversion("fp16"), False),
    "fp16 --optimize": (Conversion("fp16", optimize=True), False),
    "int8": (Conversion("int8"), False),
    "int8 --optimize": (Conversion("int8", optimize=True), False),
    "int8 --reduce-range": (Conversion("int8", reduce_range=True), False),
    "int8 --calibration-data": (Conversion("int8"), True),
    "int8 --calibration-data --optimize": (Conversion("int8", optimize=True), True),
}

#: (batch, tokens) sizes at which latency is measured.
SHAPES = ((1, 16), (1, 128), (8, 32), (8, 128))


@dataclass(frozen=True)
class Quality:
    """How a graph's answers compare with PyTorch's on the data.

    Attributes:
        agreement: Share of decisions that equal PyTorch's, in [0, 1].
        mean_shift: Mean total variation distance of the probabilities.
        max_abs: Largest difference of a logit.
        widest_flip: Largest margin of PyTorch, in logits, among decisions that differ; 0 if none
            differs.
        metrics: The task's metrics.
    """

    agreement: float
    mean_shift: float
    max_abs: float
    widest_flip: float
    metrics: Mapping[str, float]


def _session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _run(session: onnxruntime.InferenceSession, inputs: Mapping[str, Any]) -> dict[str, Any]:
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


def _quality(
    source: PlainCheckpoint,
    data: EvaluationData,
    run: Callable[[Mapping[str, Any]], dict[str, Any]],
) -> Quality:
    """Run the data in PyTorch and with `run`, and compare."""
    reference = source.runner(source.interface.inputs)
    (name,) = source.interface.outputs
    comparison = OutputComparison(name, None, decision=decision_of(source.task_name, name))
    outputs = []
    for inputs in data.batches:
        outputs.append(run(inputs))
        comparison.add(Batch("data", inputs), reference.run(inputs)[name], outputs[-1][name])
    found: OutputDifference = comparison.result()
    return Quality(
        agreement=1.0 if found.agreement is None else found.agreement,
        mean_shift=found.mean_shift,
        max_abs=found.max_abs,
        widest_flip=max((flip.margin for flip in found.flip_examples), default=0.0),
        metrics=data.metrics(outputs) or {},
    )


def _latencies(
    graphs: Mapping[str, Path], names: tuple[str, ...], threads: int, rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Time all graphs in one process, taking turns.

    Returns:
        Shape → variant → seconds of each round.
    """
    sessions = {name: _session(path, threads) for name, path in graphs.items()}
    random = np.random.default_rng(0)
    measured = {}
    for batch, tokens in SHAPES:
        ids = random.integers(1000, 20000, (batch, tokens))
        made = dict.fromkeys(names, np.zeros_like(ids)) | {"attention_mask": np.ones_like(ids)}
        inputs = {name: (made | {"input_ids": ids})[name] for name in names}
        arms = {
            name: (lambda session=session: session.run(None, inputs))  # noqa: B023 - run at once
            for name, session in sessions.items()
        }
        turns = max(rounds, rounds * 128 // (batch * tokens))
        measured[f"{batch}x{tokens}"] = by_turns(arms, rounds=turns)
    return measured


def measure_precisions(
    path: Path, data: Path, calibration: Path, *, threads: int, rounds: int
) -> dict[str, Any]:
    """Export a checkpoint in every variant and compare the graphs."""
    source = open_checkpoint(path)
    read = read_data(
        data, source, source, source.interface, columns=ColumnNames(), max_examples=None
    )
    with tempfile.TemporaryDirectory() as folder:
        graphs, sizes, quality = {}, {}, {}
        for number, (name, (conversion, static)) in enumerate(VARIANTS.items()):
            print(name, file=sys.stderr)
            tables = ExportData(calibration=calibration if static else None)
            done = export_onnx(
                path, Path(folder) / str(number), conversion=conversion, data=tables, verify=False
            )
            graphs[name], sizes[name] = done.graph, done.bytes
            session = _session(done.graph, threads)
            quality[name] = asdict(_quality(source, read, lambda x, s=session: _run(s, x)))
        seconds = _latencies(graphs, source.interface.inputs, threads, rounds)
    reference = source.runner(source.interface.inputs)
    return {
        "rows": len(read.examples),
        "threads": threads,
        "bytes": sizes,
        "quality": quality,
        "pytorch": data_metrics(read, reference.run),
        "seconds": seconds,
    }


def data_metrics(
    data: EvaluationData, run: Callable[[Mapping[str, Any]], dict[str, Any]]
) -> dict[str, float]:
    """Return the task's metrics for the outputs of `run`."""
    return data.metrics(run(inputs) for inputs in data.batches) or {}


def table(result: Mapping[str, Any]) -> str:
    """Return the measurements as a Markdown table."""
    shapes = list(result["seconds"])
    metric = next(iter(result["pytorch"]))
    rows = []
    for name, size in result["bytes"].items():
        found = result["quality"][name]
        times = [
            str(Ratio.of(result["seconds"][shape][name], result["seconds"][shape]["fp32"]))
            for shape in shapes
        ]
        rows.append(
            [
                name,
                f"{size / 2**20:.1f} MB",
                f"{size / result['bytes']['fp32']:.3f}",
                f"{found['agreement']:.2%}",
                f"{found['mean_shift']:.4f}",
                f"{found['widest_flip']:.2f}",
                f"{found['metrics'][metric]:.4f}",
                *times,
            ]
        )
    head = ["", "size", "of fp32", "same label", "mean shift", "widest flip", metric, *shapes]
    return markdown_table(head, rows)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, metavar="COLLAPSED")
    parser.add_argument("--data", type=Path, required=True, help="table with labels")
    parser.add_argument("--calibration", type=Path, required=True, help="table of other texts")
    parser.add_argument("--threads", type=int, default=1, help="onnxruntime threads; default: 1")
    parser.add_argument(
        "--rounds", type=int, default=25, help="rounds at the largest size; default: 25"
    )
    parser.add_argument("--json", type=Path, help="write all measurements to this file")
    given = parser.parse_args()
    result = {
        "command": shlex.join(["python", "-m", "benchmarks.precisions", *sys.argv[1:]]),
        "machine": machine() | {"onnxruntime": onnxruntime.__version__},
        **measure_precisions(
            given.source, given.data, given.calibration, threads=given.threads, rounds=given.rounds
        ),
    }
    if given.json is not None:
        given.json.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["machine"]), file=sys.stderr)
    print(table(result))


if __name__ == "__main__":
    main()
