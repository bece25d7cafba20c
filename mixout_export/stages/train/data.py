"""Read the data of a training run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from mixout_export.checkpoint.interface import ModelInterface
from mixout_export.checkpoint.plain import PlainCheckpoint
from mixout_export.data.bad_rows import BadRows
from mixout_export.data.checks import data_notes, label_notes
from mixout_export.data.columns import ColumnNames
from mixout_export.data.encoding import EncodingOptions
from mixout_export.data.examples import Examples
from mixout_export.data.lengths import TRAINING_LENGTH, CutRows, cut_sentence
from mixout_export.data.reader import Reader
from mixout_export.data.separated import FieldFormat
from mixout_export.data.table import Table, join_tables
from mixout_export.data.tables import EVALUATION_SPLITS, TRAINING_SPLITS, read_table
from mixout_export.stages.train.shared_data import SharedData, data_key
from mixout_export.tasks import check_outputs
from mixout_export.training.options import TrainOptions


@dataclass(frozen=True)
class DataOptions:
    """Where the data are and which columns to read.

    Attributes:
        train_file: Training data: csv, tsv, jsonl or parquet, each also as .gz, a folder that
            `datasets.save_to_disk` wrote, or a folder of class folders with images. The rows of
            several files are joined.
        eval_file: Evaluation data in the same formats; optional.
        dataset: Name of a data set of the hub, instead of files.
        text_column: Column of the text; None finds it by its usual names.
        text_pair_column: Column of the second text; None finds it.
        label_column: Column of the label, or several separated by commas; None finds it.
        choices_column: Column of lists of choices, or several of single ones separated by commas;
            None finds it.
        image_column: Column of the image; None finds it by its usual names.
        delimiter: Character between the fields of csv and tsv files, or its name; None takes the
            usual one.
        quoting: How the fields of csv and tsv files are quoted; see `FieldFormat`.
        skip_bad_rows: Most rows that may be left out because they cannot be read, in all files.
    """

    train_file: Path | tuple[Path, ...] | None = None
    eval_file: Path | None = None
    dataset: str | None = None
    text_column: str | None = None
    text_pair_column: str | None = None
    label_column: str | None = None
    choices_column: str | None = None
    image_column: str | None = None
    delimiter: str | None = None
    quoting: str | None = None
    skip_bad_rows: int = 0

    def __post_init__(self) -> None:
        FieldFormat(self.delimiter, self.quoting)
        BadRows(self.skip_bad_rows)

    @property
    def columns(self) -> ColumnNames:
        """The columns that are named."""
        return ColumnNames.named(
            text=self.text_column,
            text_pair=self.text_pair_column,
            label=self.label_column,
            choices=self.choices_column,
            image=self.image_column,
        )

    @property
    def train_files(self) -> tuple[Path, ...]:
        """The files of the training data."""
        if self.train_file is None:
            return ()
        return self.train_file if isinstance(self.train_file, tuple) else (self.train_file,)

    def files(self) -> list[Path]:
        """Return the files to read."""
        return [*self.train_files, *([] if self.eval_file is None else [self.eval_file])]

    def read(self, files: Sequence[Path], splits: Sequence[str], bad: BadRows) -> Table:
        """Read files and join their rows."""
        fields = FieldFormat(self.delimiter, self.quoting)
        tables = [read_table(file, fields=fields, bad=bad, splits=splits) for file in files]
        return join_tables(tables)


def encoding_options(options: TrainOptions) -> EncodingOptions:
    """Return what the options of a run ask of its encoding."""
    return EncodingOptions(
        max_length=options.max_length,
        default_length=TRAINING_LENGTH,
        doc_stride=options.doc_stride,
        pack_sequences=options.pack_sequences,
        augment=options.augment,
        seed=options.seed,
    )


@dataclass(frozen=True)
class TrainingData:
    """Encoded examples and where they come from.

    Attributes:
        train: Training examples.
        evaluation: Evaluation examples; None without evaluation data.
        rows: Number of rows that are trained on. A long row may give several examples.
        skipped: Number of rows, also of the evaluation data, that were left out because they
            cannot be read.
        available: Number of rows of the training data.
        max_length: Maximum length in tokens; None for rows that are no sequences.
        doc_stride: Tokens that neighboring windows of a context share; None if neither the user nor
            an earlier training chose them.
        cut: How many rows of the training data, and of the evaluation data, were cut.
        name: Name of the data.
        identity: A SHA-256 of each table and the columns that are read, to recognize the data when
            a run is resumed.
        evaluated_on: Where the evaluation examples come from; "" without evaluation data.
        notes: What a user should know about the data.
    """

    train: Examples
    evaluation: Examples | None
    rows: int
    skipped: int
    available: int
    max_length: int | None
    doc_stride: int | None
    cut: tuple[CutRows, ...]
    name: str
    identity: dict[str, str | None]
    evaluated_on: str = ""
    notes: tuple[str, ...] = ()


def _tables(data: DataOptions, bad: BadRows) -> tuple[Table, Table | None, str]:
    if data.dataset is not None:
        from mixout_export.data.hub import read_hub_dataset

        train, evaluation = read_hub_dataset(data.dataset)
        return train, evaluation, data.dataset
    train = data.read(data.train_files, TRAINING_SPLITS, bad)
    evaluation = (
        None if data.eval_file is None else data.read([data.eval_file], EVALUATION_SPLITS, bad)
    )
    name = data.train_files[0].name  # without the folder, whose name may be private
    return train, evaluation, name.split(".")[0] or name


def load_training_data(
    folder: PlainCheckpoint,
    reader: Reader[Any],
    model: PreTrainedModel,
    data: DataOptions,
    options: TrainOptions,
    shared: SharedData | None = None,
) -> TrainingData:
    """Read, check and encode the data of a run. A model without a padding id gets one.

    With `shared`, files are not read again if an earlier run has read them in the same way.

    Raises:
        ArgumentError: `max_length` is above the model's limit or leaves no room for text, or there
            are fewer than `examples` rows.
        CheckpointError: The checkpoint has no tokenizer or other preprocessor, or its model cannot
            learn the task.
        DataError: The data cannot be read or do not fit.
    """
    preprocessor, interface = reader.encoding.settle_for_training(folder, model)
    reader.check(model)
    check_outputs(folder.require_task(), folder.config)

    def read() -> TrainingData:
        return _read(folder, reader, preprocessor, interface, data, options)

    if shared is None or data.dataset is not None:
        return read()
    try:
        key = data_key(folder, reader, preprocessor, interface, data, options)
    except OSError:
        return read()  # a file is missing, which is reported there
    return shared.get(key, read)


def _read(
    folder: PlainCheckpoint,
    reader: Reader[Any],
    preprocessor: Any,
    interface: ModelInterface,
    data: DataOptions,
    options: TrainOptions,
) -> TrainingData:
    bad = BadRows(data.skip_bad_rows)
    whole, evaluation, name = _tables(data, bad)
    train = whole
    if options.examples is not None:
        train = whole.sample(options.examples, seed=options.examples_seed)
    labels = tuple(folder.labels or ())
    columns = reader.find(train, data.columns, labels)
    asked = encoding_options(options)
    encoding = reader.encoding.create(preprocessor, interface, labels, asked, columns)
    examples, train = bad.read(train, lambda rows: reader.read(rows, columns, encoding))
    evaluated, found = None, None
    if evaluation is not None:
        found = reader.find(evaluation, columns, labels)
        read_with = found
        evaluated, evaluation = bad.read(
            evaluation, lambda rows: reader.read(rows, read_with, encoding)
        )
    bad.finish()
    parts = (("training", examples, train), ("evaluation", evaluated, evaluation))
    counted = (
        encoding.count_cut(made, rows=rows.rows, name=f"{kind} rows ({rows.short_name})")
        for kind, made, rows in parts
        if made is not None and rows is not None
    )
    cut = tuple(each for each in counted if each is not None)
    notes = (cut_sentence(*cut), *data_notes(reader, train, evaluation, columns, found))
    return TrainingData(
        examples,
        evaluated,
        train.rows,
        len(bad),
        whole.rows,
        encoding.max_length,
        encoding.doc_stride if "doc-stride" in reader.uses else None,
        cut,
        name,
        {
            "training_data_sha256": reader.digest(whole, columns),
            "evaluation_data_sha256": None
            if evaluation is None or found is None
            else reader.digest(evaluation, found),
            **columns.identity(),
        },
        "" if evaluation is None else evaluation.name,
        (*filter(None, notes), *label_notes(examples, evaluated, labels)),
    )
