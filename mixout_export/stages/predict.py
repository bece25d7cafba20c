"""`predict`: answer each row of a file, and score the answers if the file has labels."""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path

from mixout_export.artifacts.opening import open_artifact
from mixout_export.checkpoint.artifact import Artifact, LocalArtifact
from mixout_export.checkpoint.interface import ModelInterface
from mixout_export.data.bad_rows import BadRows
from mixout_export.data.columns import ColumnNames
from mixout_export.data.confusion import CONFUSED_SHOWN
from mixout_export.data.encoding import EncodingOptions
from mixout_export.data.evaluation import TableReading, reader_for, settle_reading
from mixout_export.data.examples import Examples
from mixout_export.data.image_folder import is_image_folder
from mixout_export.data.lengths import CutRows
from mixout_export.data.readers.question_answering import Questions
from mixout_export.data.separated import FieldFormat
from mixout_export.data.table import Table
from mixout_export.data.table_writer import table_writer
from mixout_export.data.tables import data_format, read_parts
from mixout_export.data.texts import TextEncoding
from mixout_export.errors import (
    ArgumentError,
    CheckpointError,
    DataError,
    OutputError,
    RowError,
)
from mixout_export.files.input_files import InputFiles
from mixout_export.files.output import check_file, replaced_file
from mixout_export.prediction.answers import BINS, Answers, Part, Setting, answers_of
from mixout_export.prediction.generation import NEW_TOKENS, Generator
from mixout_export.prediction.notable import NotableRows
from mixout_export.prediction.result import PredictionResult, SurenessRange
from mixout_export.prediction.running import run_part
from mixout_export.provenance.manifest import damage_explained
from mixout_export.report.page import check_report
from mixout_export.runners import CPU_PROVIDER
from mixout_export.runners.onnx_runner import check_provider
from mixout_export.served.address import is_address, parse_address
from mixout_export.tasks import Task, check_outputs, known_task

logger = logging.getLogger(__name__)

#: Rows that are read, sorted by length, and predicted together.
PART = 4096
#: Rows that are most wrong or least sure that are kept.
NOTABLE = 20


class PredictionObserver:
    """Is told how prediction goes on. Nothing happens by default."""

    def checking(self, *, rows: int) -> None:
        """Take the number of rows that were read and checked so far."""

    def started(self, *, rows: int) -> None:
        """Take the number of rows of the file, before the first is predicted."""

    def advanced(self, rows: float) -> None:
        """Take the number of rows that were predicted since the last call."""


@dataclass(frozen=True)
class PredictOptions:
    """Options of `predict`.

    Attributes:
        columns: Columns that the user named.
        batch_size: Examples that are run together.
        max_length: Longest sequence in tokens; None takes that of the training, or, if it is not
            recorded, the model's own limit, at most 512.
        max_new_tokens: Most tokens that a causal language model adds to a text.
        provider: onnxruntime's execution provider.
        reference: For a server: the folder of the model that it serves, whose tokenizer, task and
            labels are used.
        no_labels: Whether to leave the labels of the file unread.
        fields: How the fields of a csv or tsv file are separated and quoted.
        skip_bad_rows: Most rows that may be left out because they cannot be read.
    """

    columns: ColumnNames = field(default_factory=ColumnNames)
    batch_size: int = 32
    max_length: int | None = None
    max_new_tokens: int = NEW_TOKENS
    provider: str = CPU_PROVIDER
    reference: Path | None = None
    no_labels: bool = False
    fields: FieldFormat = field(default_factory=FieldFormat)
    skip_bad_rows: int = 0

    def check(self) -> None:
        """Raise `ArgumentError` if an option is outside its domain."""
        if self.no_labels and self.columns.label is not None:
            raise ArgumentError("no_labels: contradicts --label-column; leave one of them out")
        for name in ("batch_size", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ArgumentError(f"{name}: got {getattr(self, name)}, expected at least 1")
        BadRows(self.skip_bad_rows)
        check_provider(self.provider)

    def parts(self, path: Path, bad: BadRows) -> Iterator[Table]:
        """Read a file in parts, and collect the rows that cannot be read."""
        return read_parts(path, PART, fields=self.fields, bad=bad)


@dataclass(frozen=True)
class _Model:
    """A model that can answer.

    Attributes:
        artifact: What is run.
        described: The folder that knows tokenizer, task and labels. It differs for a server.
        interface: What the model takes.
        task: Its task.
        labels: Its label names.
    """

    artifact: Artifact
    described: LocalArtifact
    interface: ModelInterface
    task: Task
    labels: tuple[str, ...]


def _open(model: Path | str, options: PredictOptions) -> _Model:
    if not is_address(str(model)):
        if options.reference is not None:
            raise ArgumentError(
                f"reference: describes the model on a server, but {model} is a folder; leave it out"
            )
        described = _open_folder(Path(model), options.provider)
        return _described(described, described, described.described_by(None))
    if options.reference is None:
        raise ArgumentError(
            f"{model}: a server does not provide a tokenizer or labels; give the folder of the "
            "model that it serves with --reference"
        )
    address = parse_address(str(model))
    described = _open_folder(options.reference, options.provider)
    served = open_artifact(address, reference=described)
    interface = described.described_by(None)
    if not served.can_answer(interface, served.described_by(interface)):
        raise CheckpointError(
            f"{model}: takes {', '.join(served.inputs)} and gives {', '.join(served.outputs)}, "
            f"expected the inputs and outputs of {described.where}; give the folder that it serves"
        )
    return _described(served, described, served.described_by(interface))


def _open_folder(path: Path, provider: str) -> LocalArtifact:
    files = InputFiles(path)
    with damage_explained(files):
        opened = open_artifact(files, provider=provider)
        opened.check_single()
        opened.load()
    return opened


def _described(artifact: Artifact, folder: LocalArtifact, interface: ModelInterface) -> _Model:
    task = known_task(folder.task_name)
    if task is None or task.reader is None:
        what = "has no head" if task is None else f"is a model for {task.name}"
        raise CheckpointError(
            f"{folder.where}: {what}, expected a model that answers rows of text; finetune it "
            "for a task first"
        )
    check_outputs(task, folder.config)
    labels = artifact.labels or folder.labels or ()
    if task.has_labels and not labels:
        raise CheckpointError(
            f"{folder.where}: names no labels; put the config.json of its checkpoint beside it"
        )
    return _Model(artifact, folder, interface, task, labels)


@dataclass(frozen=True)
class _Data:
    """A file that has been read and checked once.

    Attributes:
        path: The file.
        options: How its format is read.
        columns: The names of all its columns.
        reading: How it is read.
        rows: Number of rows that can be read.
        skipped: Number of rows that are left out.
        labeled: Whether it has labels.
        has_unanswerable: Whether it has questions without an answer.
        cut: How many rows were cut; None for rows that are no sequences.
        left_out: Columns that cannot be read; "" is those without a name.
        only: The examples of the whole file, and its rows, if it is a single part, so that they are
            encoded once.
    """

    path: Path
    options: PredictOptions
    columns: tuple[str, ...]
    reading: TableReading
    rows: int
    skipped: int
    labeled: bool
    has_unanswerable: bool
    cut: CutRows | None
    left_out: frozenset[str]
    only: tuple[Examples, Table] | None

    def parts(self) -> Iterator[Part]:
        """Read the parts of the file."""
        bad = BadRows(self.skipped)
        whole = () if self.only is None else (self.only,)
        read = (bad.read_part(t, self.reading.read) for t in self.options.parts(self.path, bad))
        for examples, table in whole or filter(None, read):
            yield Part(table, self.reading.columns, examples)


def _read(
    path: Path, model: _Model, options: PredictOptions, observer: PredictionObserver
) -> _Data:
    """Find the columns, then read and check every row."""
    preprocessor = reader_for(model.task).encoding.require_preprocessor(model.described)
    skip = options.skip_bad_rows
    first = next(options.parts(path, BadRows(skip)))
    reading = settle_reading(
        first,
        model.task,
        preprocessor,
        model.interface,
        labels=model.labels,
        columns=options.columns,
        options=EncodingOptions(max_length=options.max_length),
    )
    if options.no_labels or not any(map(reading.has_labels, options.parts(path, BadRows(skip)))):
        reading = reading.without_labels()
    rows, unanswerable, labeled, only = 0, False, False, None
    cut: list[CutRows] = []
    bad, left_out = BadRows(skip), set[str]()
    for part in options.parts(path, bad):
        left_out.update(part.unreadable)
        found = bad.read_part(part, lambda one: _read_examples(reading, one))
        only = None if rows else found
        if found is None:
            continue
        examples, table = found
        rows += table.rows
        labeled = examples.labeled
        counted = reading.count_cut(examples, table)
        cut += [] if counted is None else [counted]
        if isinstance(examples, Questions) and examples.answers is not None:
            unanswerable |= not all(examples.answers)
        observer.checking(rows=rows)
    if not rows:
        raise bad.error()
    bad.finish()
    return _Data(
        path,
        options,
        tuple(first.columns),
        reading,
        rows,
        len(bad),
        labeled,
        unanswerable,
        reduce(CutRows.joined, cut) if cut else None,
        frozenset(left_out),
        only,
    )


def _read_examples(reading: TableReading, table: Table) -> Examples:
    """Read the examples of a table. If only labels are wrong, say how to leave them unread."""
    try:
        return reading.read(table)
    except RowError as error:
        if reading.columns.label is None:
            raise
        reading.without_labels().read(table)  # raises if a text is wrong, too
        said = f"{error}; or give --no-labels, which leaves the labels unread"
        raise RowError(said, error.problems) from error


def _kinds_of_out(file: Path) -> tuple[str, ...]:
    """Return the formats that OUT may have: that of the file, or for a folder of images several."""
    if file.is_dir() and is_image_folder(file):
        return (".csv", ".tsv", ".jsonl")
    return (data_format(file)[0],)


def _check_out(model: Path | str, file: Path, out: Path, *, overwrite: bool) -> tuple[str, bool]:
    """Return the format of OUT and whether it is compressed, if it can be written."""
    kinds = _kinds_of_out(file)
    suffixes = [suffix.lower() for suffix in out.suffixes]
    zipped = suffixes[-1:] == [".gz"]
    (kind,) = (suffixes[:-1] if zipped else suffixes)[-1:] or ("",)
    if kind not in kinds:
        has = f"has the format of {file.name}" if len(kinds) == 1 else "is a table"
        raise ArgumentError(
            f"{out}: OUT {has}, expected a name ending in {', '.join(kinds)} or {kinds[0]}.gz"
        )
    if out.exists() and out.resolve() == file.resolve():
        raise ArgumentError(f"{out}: OUT is the data file itself; choose another")
    if out.exists() and out.is_file() and not overwrite:
        raise OutputError(f"{out}: exists; give --overwrite to replace it, or choose another OUT")
    check_file(out, [Path(model), file])
    return kind, zipped


def _refuse_present(data: _Data, answers: Answers) -> None:
    for column in answers.columns:
        if column.name in data.columns:
            raise DataError(
                f"{data.path}: has a column {column.name!r} already, which predict adds; rename "
                "that column"
            )


def _warn_of_left_out(data: _Data, out: Path) -> None:
    """Warn of columns that OUT does not have."""
    names = [repr(name) if name else "those without a name" for name in sorted(data.left_out)]
    if names:
        logger.warning(
            "%s: lacks some columns of %s, because they have no name, the name of another column, "
            "or values that cannot be read: %s",
            out,
            data.path,
            ", ".join(names),
        )


def predict_file(
    model: Path | str,
    file: Path,
    out: Path,
    options: PredictOptions | None = None,
    *,
    overwrite: bool = False,
    report_to: Path | None = None,
    command: str | None = None,
    observer: PredictionObserver | None = None,
) -> PredictionResult:
    """Answer each row of a file, and write the rows with the answers.

    The file is read and checked before the first row is predicted, and then again in parts, so that
    memory does not depend on the number of rows.

    Args:
        model: A mixout checkpoint, a Hugging Face folder, an ONNX folder, a bundle or an `.onnx`
            file; or the address of a model on a server, `http://host:port/v2/models/NAME`.
        file: A csv, tsv, jsonl or parquet file, also as .gz, or a folder of images, with or without
            labels.
        out: The file to write, in the same format; for a folder csv, tsv or jsonl. It appears
            complete or not at all.
        options: How to read the file and run the model.
        overwrite: Whether OUT may be replaced.
        report_to: An `.html` file to show the result in.
        command: The command that the report shows, quoted for a shell.
        observer: Is told how it goes on.

    Raises:
        ArgumentError: An option is outside its domain, or does not fit the model or the file.
        CheckpointError: The model cannot be opened or run, or has no head.
        DataError: The file cannot be read, or does not fit the task.
        OutputError: OUT or the report cannot be written.
        ServerError: A server cannot be asked.
    """
    options, observer = options or PredictOptions(), observer or PredictionObserver()
    options.check()
    kind, zipped = _check_out(model, file, out, overwrite=overwrite)
    if report_to is not None:
        check_report(report_to)
    opened = _open(model, options)
    started = time.perf_counter()
    data = _read(file, opened, options, observer)
    answers = answers_of(_setting(opened, data, options))
    _refuse_present(data, answers)
    _warn_of_left_out(data, out)
    notable = NotableRows(NOTABLE)
    runner = opened.artifact.runner(opened.interface.inputs)
    observer.started(rows=data.rows)
    with (
        replaced_file(out) as partial,
        table_writer(
            partial,
            kind,
            zipped=zipped,
            source=file,
            columns=answers.columns,
            fields=options.fields,
            left_out=data.left_out,
        ) as writer,
    ):
        for part in data.parts():
            predictions = run_part(
                runner,
                opened.interface,
                part,
                answers,
                batch_size=options.batch_size,
                advanced=observer.advanced,
            )
            found = answers.answer(part, predictions)
            notable.add(part, found)
            writer.write(part.table, [answer.values for answer in found])
    seconds = time.perf_counter() - started
    result = _result(opened, data, answers, notable, out=out, seconds=seconds)
    if report_to is not None:
        from mixout_export.report.prediction import write_prediction_report

        result = replace(result, report=report_to)
        write_prediction_report(report_to, result, command=command)
    return result


def _setting(model: _Model, data: _Data, options: PredictOptions) -> Setting:
    encoding = data.reading.encoding
    tokenizer = encoding.tokenizer if isinstance(encoding, TextEncoding) else None
    generate = None
    if model.task.generates and isinstance(encoding, TextEncoding):
        generate = Generator(model.artifact, encoding, options.max_new_tokens, options.batch_size)
    return Setting(
        model.task,
        model.labels,
        tokenizer,
        labeled=data.labeled,
        has_unanswerable=data.has_unanswerable,
        generate=generate,
    )


def _result(
    model: _Model,
    data: _Data,
    answers: Answers,
    notable: NotableRows,
    *,
    out: Path,
    seconds: float,
) -> PredictionResult:
    confusion, bins, metrics = answers.confusion(), answers.bins(), answers.metrics()
    ranges = () if bins is None else zip(bins.rows.tolist(), bins.right.tolist(), strict=True)
    artifact = model.artifact
    return PredictionResult(
        model=artifact.where,
        kind=artifact.title,
        runs_in=artifact.runs_in,
        task=model.task.name,
        labels=model.labels,
        file=data.path,
        out=out,
        columns=tuple(column.name for column in answers.columns),
        rows=data.rows,
        skipped=data.skipped,
        max_length=data.reading.encoding.max_length,
        cut=data.cut,
        seconds=seconds,
        metrics=metrics,
        notes={
            metric.name: note
            for metric in model.task.reports
            if metrics and metric.name in metrics and (note := metric.explain(model.labels))
        },
        predicted=answers.said(),
        by_label=answers.by_label(),
        confusion=None if confusion is None else tuple(map(tuple, confusion.tolist())),
        confused=answers.confused(CONFUSED_SHOWN),
        sureness=tuple(
            SurenessRange(place / BINS, (place + 1) / BINS, rows, right)
            for place, (rows, right) in enumerate(ranges)
        ),
        wrong=notable.wrong.seen if metrics and model.task.rejects else None,
        most_wrong=notable.wrong.rows,
        least_sure=notable.unsure.rows,
    )
