"""The data of a run: from files to encoded examples."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mixout_export.checkpoint.folder import Folder
from mixout_export.checkpoint.interface import describe_interface, settle_pad_token
from mixout_export.checkpoint.model import load_tokenizer
from mixout_export.errors import ArgumentError, CheckpointError
from mixout_export.tasks import Task
from mixout_export.training.batches import EncodedExamples, encode
from mixout_export.training.columns import Columns, find_columns
from mixout_export.training.labels import encode_labels, text_values
from mixout_export.training.tables import Table, read_table

_DEFAULT_MAX_LENGTH = 128
_TRAINABLE = ("text-classification", "regression")


@dataclass(frozen=True)
class DataOptions:
    """Where the data lie and which columns to read.

    Attributes:
        train_file: Training data: csv, tsv, jsonl or parquet, each also .gz.
        eval_file: Evaluation data, None for none.
        dataset: Name of a data set of the hub instead of files.
        text_column: Column of the text; None finds it by the usual names.
        text_pair_column: Column of the second text; None finds it.
        label_column: Column of the label; None finds it.
    """

    train_file: Path | None = None
    eval_file: Path | None = None
    dataset: str | None = None
    text_column: str | None = None
    text_pair_column: str | None = None
    label_column: str | None = None

    def files(self) -> list[Path]:
        """Return the files to read."""
        return [file for file in (self.train_file, self.eval_file) if file is not None]


@dataclass(frozen=True)
class TrainingData:
    """Encoded examples and where they come from.

    Attributes:
        train: Training examples.
        evaluation: Evaluation examples, None without.
        name: What to call the data.
        identity: What tells them from other data: a SHA-256 of each part, and the columns read.
    """

    train: EncodedExamples
    evaluation: EncodedExamples | None
    name: str
    identity: dict[str, str | None]


def _tables(data: DataOptions) -> tuple[Table, Table | None, str]:
    if (data.train_file is None) == (data.dataset is None):
        raise ArgumentError("data: give either --train-file or --dataset")
    if data.dataset is not None and data.eval_file is not None:
        raise ArgumentError(
            "data: --dataset comes with its own evaluation split; leave --eval-file out"
        )
    if data.dataset is not None:
        from mixout_export.training.hub import read_hub_dataset

        train, evaluation = read_hub_dataset(data.dataset)
        return train, evaluation, data.dataset
    files = data.files()
    tables = [read_table(file) for file in files]
    return tables[0], tables[1] if len(tables) > 1 else None, _data_name(files[0])


def _data_name(file: Path) -> str:
    """Return what to call the data: the file's name, or its folder's where that says nothing."""
    stem = file.name.split(".")[0]
    folder = file.resolve().parent.name
    return folder if stem.lower() in ("train", "training", "data") and folder else stem


def _digest(table: Table | None) -> str | None:
    """Return a SHA-256 of a table's names and values, None for no table."""
    if table is None:
        return None
    digest = hashlib.sha256()
    for name, values in table.columns.items():
        digest.update(repr((name, values)).encode())
    return digest.hexdigest()


def _identity(train: Table, evaluation: Table | None, columns: Columns) -> dict[str, str | None]:
    return {
        "training_data_sha256": _digest(train),
        "evaluation_data_sha256": _digest(evaluation),
        "text_column": columns.text,
        "text_pair_column": columns.text_pair,
        "label_column": columns.label,
    }


def _find(table: Table, data: DataOptions) -> Columns:
    return find_columns(
        table,
        text_column=data.text_column,
        text_pair_column=data.text_pair_column,
        label_column=data.label_column,
    )


def _find_again(table: Table, columns: Columns) -> Columns:
    """Find the training data's columns in the evaluation data, which must have the same."""
    return find_columns(
        table,
        text_column=columns.text,
        text_pair_column=columns.text_pair,
        label_column=columns.label,
    )


def _max_length(requested: int | None, limit: int | None, *, special: int) -> int:
    """Return the longest sequence in tokens, of which `special` are not the text's."""
    if requested is None:
        return min(_DEFAULT_MAX_LENGTH, limit or _DEFAULT_MAX_LENGTH)
    if limit is not None and requested > limit:
        raise ArgumentError(
            f"max-length: got {requested}, the model takes at most {limit} tokens; lower it"
        )
    if requested <= special:
        raise ArgumentError(
            f"max-length: got {requested}, which leaves no room for text beside the {special} "
            "special tokens; raise it"
        )
    return requested


def _encode_table(
    table: Table,
    columns: Columns,
    folder: Folder,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    *,
    inputs: Sequence[str],
    max_length: int,
) -> EncodedExamples:
    return encode(
        tokenizer,
        text_values(table, columns.text),
        None if columns.text_pair is None else text_values(table, columns.text_pair),
        encode_labels(table, columns.label, task, folder.labels),
        inputs=inputs,
        max_length=max_length,
    )


def load_training_data(
    folder: Folder, model: PreTrainedModel, data: DataOptions, *, max_length: int | None
) -> TrainingData:
    """Read, check and encode the data of a run.

    Args:
        folder: The prepared checkpoint.
        model: Its model, which gets a padding id here if it has none.
        data: Where the data lie.
        max_length: Longest sequence in tokens; None takes 128 or the model's limit.

    Raises:
        ArgumentError: The task cannot be trained here, or `max_length` is above the model's limit.
        CheckpointError: The checkpoint has no tokenizer.
        DataError: The data cannot be read or do not fit.
    """
    task = folder.task
    if task is None or task.name not in _TRAINABLE:
        name = None if task is None else task.name
        raise ArgumentError(
            f"{folder.path}: was prepared for {name}, train serves {' and '.join(_TRAINABLE)}; "
            "train it in a loop of your own with load_mixout and save_mixout"
        )
    train, evaluation, name = _tables(data)
    columns = _find(train, data)
    tokenizer = load_tokenizer(folder.path)
    if tokenizer is None:
        raise CheckpointError(
            f"{folder.path}: has no tokenizer files, expected them to read text; copy the base's"
        )
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token  # decoders come without one
    settle_pad_token(model, tokenizer)
    interface = describe_interface(model, task, tokenizer)
    encoder = partial(
        _encode_table,
        folder=folder,
        task=task,
        tokenizer=tokenizer,
        inputs=interface.inputs,
        max_length=_max_length(
            max_length,
            interface.sequence_limit,
            special=tokenizer.num_special_tokens_to_add(pair=columns.text_pair is not None),
        ),
    )
    return TrainingData(
        encoder(train, columns),
        None if evaluation is None else encoder(evaluation, _find_again(evaluation, columns)),
        name,
        _identity(train, evaluation, columns),
    )
