"""`mixout-export predict`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mixout_export_cli.command import Command, command_line
from mixout_export_cli.imports import quick_imports
from mixout_export_cli.options import (
    PATH,
    column_option,
    field_options,
    flag,
    length_option,
    option,
    output_options,
    overwrite_option,
    skip_option,
)
from mixout_export_cli.output import Output, count_of, label_table, labeled, number, table
from mixout_export_cli.serving import PathOrAddress
from mixout_export_cli.stopping import stopped_by_sigterm

if TYPE_CHECKING:
    from mixout_export.prediction.notable import NotableRow
    from mixout_export.prediction.result import PredictionResult

#: Rows, labels and pairs of labels that are shown. `--report` and `--json` have more.
_SHOWN, _SHOWN_LABELS, _SHOWN_PAIRS = 5, 20, 3
#: Characters of a text that are shown.
_CHARACTERS = 100


def _of_labels(result: "PredictionResult") -> list[str]:
    """Return the figures of each label, or how often each was predicted."""
    if result.by_label:
        shown = label_table([asdict(one) for one in result.by_label[:_SHOWN_LABELS]])
    elif result.predicted:
        counts = list(result.predicted.items())[:_SHOWN_LABELS]
        shown = table(["label", "predicted"], [[label, f"{count:,}"] for label, count in counts])
    else:
        return []
    more = len(result.by_label or result.predicted) - _SHOWN_LABELS
    rest = [f"and {more} more, which --report and --json show"] if more > 0 else []
    return ["", shown, *rest]


def _of_confusion(result: "PredictionResult") -> list[str]:
    lines = [
        f"{one.expected} predicted as {one.predicted}: {count_of(one.count, 'row')}"
        for one in result.confused[:_SHOWN_PAIRS]
    ]
    return ["", "most confused:", *(f"  {line}" for line in lines)] if lines else []


def _of_rows(title: str, rows: "tuple[NotableRow, ...]") -> list[str]:
    lines = []
    for it in rows[:_SHOWN]:
        sure = "" if it.probability is None else f" ({it.probability:.3f})"
        right = "" if it.expected is None else f", expected {_cut(it.expected)}"
        lines.append(f"  {it.where}: {_cut(it.predicted)}{sure}{right}")
        lines += [f"    {_cut(source.text)}" for source in it.texts]
    return ["", title, *lines] if lines else []


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _CHARACTERS else text[: _CHARACTERS - 1] + "…"


def _describe(result: "PredictionResult") -> str:
    from mixout_export.data.lengths import cut_sentence

    skipped = f", {result.skipped:,} skipped," if result.skipped else ""
    lines = [
        labeled("model", f"{result.model} ({result.kind}, {result.task}, {result.runs_in})"),
        labeled(
            "rows",
            f"{result.rows:,} of {result.file}{skipped} in {result.seconds:.1f} s, "
            f"{result.rows_per_second:.1f} rows/s",
        ),
        labeled("predictions", f"{result.out}, with the columns {', '.join(result.columns)}"),
    ]
    if result.report is not None:
        lines.append(labeled("report", result.report))
    cut = cut_sentence(result.cut)
    if cut is not None:
        lines.append(labeled("note", cut))
    if result.metrics is not None:
        rows = [[name, number(value)] for name, value in result.metrics.items()]
        lines += ["", table(["metric", "value"], rows), *result.notes.values()]
    lines += [*_of_labels(result), *_of_confusion(result)]
    if result.wrong is not None:
        lines += _of_rows(
            f"most wrong of {count_of(result.wrong, 'wrong row')}:", result.most_wrong
        )
    elif result.metrics is not None:
        lines += _of_rows("rows with the largest error:", result.most_wrong)
    else:
        lines += _of_rows("least sure:", result.least_sure)
    return "\n".join(lines)


@click.command(cls=Command)
@click.argument("model", type=PathOrAddress())
@click.argument("file", type=PATH)
@click.argument("out", type=PATH)
@column_option("--text-column", "the text")
@column_option("--text-pair-column", "the second text")
@column_option("--label-column", "the labels, which are optional")
@column_option("--choices-column", "the choices")
@column_option("--image-column", "the path of the image")
@field_options
@skip_option
@flag("--no-labels", help="Ignore the labels of FILE, for example if MODEL does not know them.")
@option("--batch-size", type=int, default=32, help="Number of rows in a batch.")
@length_option
@option(
    "--max-new-tokens",
    type=int,
    default=20,
    help="For a causal language model: maximum number of tokens to generate.",
)
@option(
    "--report",
    "report_to",
    type=PATH,
    metavar="FILE.html",
    help="Also write an HTML file, for viewing offline, with metrics, confused labels, and the "
    "rows that are most wrong or least sure.  [optional]",
)
@option(
    "--reference",
    type=PATH,
    metavar="FOLDER",
    help="Folder of the model that the server serves. It provides the tokenizer, the task and the "
    "labels.  [required for a server]",
)
@option(
    "--provider",
    default="CPUExecutionProvider",
    metavar="NAME",
    help="Execution provider of onnxruntime, for example CUDAExecutionProvider.",
)
@overwrite_option
@output_options
def predict(
    model: Path | str,
    file: Path,
    out: Path,
    *,
    overwrite: bool,
    report_to: Path | None,
    output: Output,
    **options: Any,
) -> None:
    """Predict each row of FILE with MODEL, and write the rows with the predictions to OUT.

    MODEL can be a Mixout checkpoint, a Hugging Face folder, an ONNX folder or file, a bundle, or a
    model on a server: http://HOST:PORT/v2/models/NAME.

    FILE and OUT are csv, tsv, jsonl or parquet, optionally with .gz. FILE can also be a folder of
    images, and OUT is then csv, tsv or jsonl. If FILE has labels, the command also shows metrics,
    confused labels, and the rows that are most wrong.
    """
    with quick_imports():
        from mixout_export.data.columns import ColumnNames
        from mixout_export.data.separated import FieldFormat
        from mixout_export.stages.predict import PredictOptions, predict_file
        from mixout_export_cli.predicting import PredictionDisplay

    names = ("text", "text_pair", "label", "choices", "image")
    columns = ColumnNames.named(**{name: options.pop(f"{name}_column") for name in names})
    options["fields"] = FieldFormat(options.pop("delimiter"), options.pop("quoting"))
    with stopped_by_sigterm(), PredictionDisplay(output) as display:
        result = predict_file(
            model,
            file,
            out,
            PredictOptions(columns, **options),
            overwrite=overwrite,
            report_to=report_to,
            command=command_line(),
            observer=display,
        )
    output.result(result, _describe(result))
