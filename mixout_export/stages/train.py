"""`train`: a prepared checkpoint becomes a trained one."""

import contextlib
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mixout_export.checkpoint.folder import (
    Folder,
    open_folder,
    read_json,
    require_manifest,
    weight_key,
    write_json,
)
from mixout_export.checkpoint.interface import describe_interface, settle_pad_token
from mixout_export.checkpoint.layout import LAYOUT
from mixout_export.checkpoint.manifest import Manifest
from mixout_export.checkpoint.model import load_mixout, load_tokenizer, tensor_of, write_mixout
from mixout_export.checkpoint.output import OutputFolder, output_folder
from mixout_export.errors import ArgumentError, CheckpointError, OutputError
from mixout_export.surgery import mixout_layers
from mixout_export.tasks import Task
from mixout_export.training.batches import EncodedExamples, encode
from mixout_export.training.card import CardFacts, write_card
from mixout_export.training.columns import find_columns
from mixout_export.training.curves import write_curves
from mixout_export.training.device import make_accelerator, release_accelerator
from mixout_export.training.labels import encode_labels, text_values
from mixout_export.training.loop import Finetuning, Outcome
from mixout_export.training.metrics import default_metric
from mixout_export.training.options import TrainOptions
from mixout_export.training.records import MetricsLog, Observer, Silent
from mixout_export.training.snapshots import Snapshots
from mixout_export.training.tables import Table, read_table
from mixout_export.version import __version__

_DEFAULT_MAX_LENGTH = 128
_TRAINABLE = ("text-classification", "regression")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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


@dataclass(frozen=True)
class TrainResult:
    """What `train` did.

    Attributes:
        out: The trained mixout checkpoint.
        metric: Name of the metric that ranked checkpoints.
        metrics: The result's evaluation, empty without evaluation data.
        metrics_before: The untrained model's.
        steps: Updates done.
        chosen_step: Update whose model is the result.
        stopped_early: Whether early stopping ended the run.
        seconds: Wall-clock seconds of this process's part of the run.
        already_complete: Whether `out` was complete before, so that nothing was done.
    """

    out: Path
    metric: str
    metrics: dict[str, float]
    metrics_before: dict[str, float]
    steps: int
    chosen_step: int
    stopped_early: bool
    seconds: float
    already_complete: bool = False


@dataclass(frozen=True)
class _Data:
    train: EncodedExamples
    evaluation: EncodedExamples | None
    name: str
    sha256: dict[str, str]


def _tables(data: DataOptions) -> tuple[Table, Table | None, str, dict[str, str]]:
    if (data.train_file is None) == (data.dataset is None):
        raise ArgumentError("data: give either --train-file or --dataset")
    if data.dataset is not None:
        from mixout_export.training.hub import read_hub_dataset

        train, evaluation = read_hub_dataset(data.dataset)
        return train, evaluation, data.dataset, {}
    files = [f for f in (data.train_file, data.eval_file) if f is not None]
    tables = [read_table(file) for file in files]
    digests = {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
    evaluation = tables[1] if len(tables) > 1 else None
    return tables[0], evaluation, files[0].name.split(".")[0], digests


def _max_length(requested: int | None, limit: int | None) -> int:
    if requested is None:
        return min(_DEFAULT_MAX_LENGTH, limit or _DEFAULT_MAX_LENGTH)
    if limit is not None and requested > limit:
        raise ArgumentError(
            f"max-length: got {requested}, the model takes at most {limit} tokens; lower it"
        )
    return requested


def _encode_table(
    table: Table,
    data: DataOptions,
    folder: Folder,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    *,
    inputs: Sequence[str],
    max_length: int,
) -> EncodedExamples:
    columns = find_columns(
        table,
        text_column=data.text_column,
        text_pair_column=data.text_pair_column,
        label_column=data.label_column,
    )
    return encode(
        tokenizer,
        text_values(table, columns.text),
        None if columns.text_pair is None else text_values(table, columns.text_pair),
        encode_labels(table, columns.label, task, folder.labels),
        inputs=inputs,
        max_length=max_length,
    )


def _load_data(
    folder: Folder, model: PreTrainedModel, data: DataOptions, options: TrainOptions
) -> _Data:
    task = folder.task
    if task is None or task.name not in _TRAINABLE:
        name = None if task is None else task.name
        raise ArgumentError(
            f"{folder.path}: was prepared for {name}, train serves {' and '.join(_TRAINABLE)}; "
            "train it in a loop of your own with load_mixout and save_mixout"
        )
    train, evaluation, name, digests = _tables(data)
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
        data=data,
        folder=folder,
        task=task,
        tokenizer=tokenizer,
        inputs=interface.inputs,
        max_length=_max_length(options.max_length, interface.sequence_limit),
    )
    return _Data(encoder(train), None if evaluation is None else encoder(evaluation), name, digests)


def _settings(folder: Folder, options: TrainOptions, data: _Data) -> dict[str, Any]:
    """Return what a resumed run must have in common with the one it goes on from."""
    return {
        "options": options.to_dict(),
        "prepared_sha256": folder.weights_sha256(),
        "data_sha256": data.sha256,
        "data": data.name,
    }


def _check_settings(path: Path, settings: dict[str, Any]) -> None:
    """Refuse to resume a run under other settings, which would be neither run."""
    if not path.exists():
        return
    earlier = read_json(path)["settings"]
    for group in ("options", "data_sha256"):
        for key in sorted({*earlier[group], *settings[group]}):
            was, now = earlier[group].get(key), settings[group].get(key)
            if was != now:
                raise ArgumentError(
                    f"{path.parent}: was started with {key.replace('_', '-')} {was}, got {now}; "
                    "resume with the same, or give --overwrite to start afresh"
                )
    if earlier["prepared_sha256"] != settings["prepared_sha256"]:
        raise ArgumentError(
            f"{path.parent}: was started from other weights; give --overwrite to start afresh"
        )


def _parameter_anchors(folder: Folder, model: PreTrainedModel) -> dict[str, Tensor]:
    names = {name for name, _ in model.named_parameters()}
    values = {weight_key(key): entry for key, entry in folder.anchors.items()}
    foreign = sorted(set(values) - names)
    if foreign or not folder.pretrained_paths:
        what = repr(foreign[0]) if foreign else "those of the unmixed parameters"
        raise CheckpointError(
            f"{folder.path}: decay toward the pretrained weights needs the pretrained value of "
            f"every parameter, and {what} cannot be matched; use --decay-toward zero"
        )
    return {name: tensor_of(entry) for name, entry in values.items()}


def _ready_model(folder: Folder, options: TrainOptions) -> PreTrainedModel:
    model = load_mixout(folder.path).float()
    for layer in mixout_layers(model).values():
        if options.p is not None:
            layer.p = options.p
        if options.anchor_dtype is not None:
            dtype = _DTYPES[options.anchor_dtype]
            layer.pretrained_weight = layer.pretrained_weight.to(dtype)
    if options.gradient_checkpointing:
        if not model.supports_gradient_checkpointing:
            raise ArgumentError(
                f"gradient-checkpointing: {type(model).__name__} does not support it; leave it out"
            )
        model.gradient_checkpointing_enable()
    return model


def _refuse_unfinished(out: Path, *, resume: bool, overwrite: bool) -> None:
    partial = out.with_name(out.name + LAYOUT.partial_suffix)
    if Snapshots(partial, 1).paths() and not (resume or overwrite):
        raise OutputError(
            f"{partial}: holds an unfinished run; give --resume to go on with it, or --overwrite "
            "to start afresh"
        )


def _completed(out: Path) -> TrainResult | None:
    """Return the result of a run that is complete, None if there is none at `out`."""
    path = out / LAYOUT.training
    if not path.exists():
        return None
    record = read_json(path)
    return TrainResult(out=out, already_complete=True, **record["result"])


def train_checkpoint(
    prepared: Path,
    out: Path,
    data: DataOptions,
    options: TrainOptions | None = None,
    *,
    overwrite: bool = False,
    resume: bool = False,
    observer: Observer | None = None,
) -> TrainResult:
    """Finetune a mixout checkpoint.

    Work in progress lies in `OUT.partial`, which stays when the run is interrupted. A resumed run
    ends with exactly the weights and metrics of one that never stopped.

    Args:
        prepared: A mixout checkpoint.
        out: The folder to write, which appears when the run is complete.
        data: Where the data lie.
        options: Settings; the defaults of `TrainOptions` if None.
        overwrite: Whether a non-empty `out`, or an unfinished run, may be replaced.
        resume: Go on with an unfinished run; afresh if there is none; nothing if it is complete.
        observer: Who watches.

    Returns:
        What came of it.

    Raises:
        ArgumentError: Settings are out of their domain or contradict those of the run to resume.
        CheckpointError: `prepared` cannot be loaded.
        DataError: The data cannot be read or do not fit.
        TrainingError: The loss became NaN; the last good checkpoint is kept.
        OutputError: `out` cannot be written.
    """
    options = options if options is not None else TrainOptions()
    if resume and not overwrite:
        done = _completed(out)
        if done is not None:
            return done
    _refuse_unfinished(out, resume=resume, overwrite=overwrite)
    started = time.monotonic()
    folder = open_folder(prepared)
    accelerator = make_accelerator(options, project=out)
    main = accelerator.is_main_process
    try:
        model = _ready_model(folder, options)
        encoded = _load_data(folder, model, data, options)
        metric = default_metric(folder.task, options.metric)  # type: ignore[arg-type]
        _check_evaluation(options, encoded)
        writing = output_folder(
            out, [prepared], overwrite=overwrite, resume=resume, keep_partial=True
        )
        shared = OutputFolder(out, out.with_name(out.name + LAYOUT.partial_suffix))
        with writing if main else contextlib.nullcontext(shared) as target:
            settings = _settings(folder, options, encoded)
            record_path = target.partial / LAYOUT.training
            if main:
                _check_settings(record_path, settings)
                write_json(record_path, {"settings": settings, "tool_version": __version__})
            accelerator.wait_for_everyone()
            snapshots = Snapshots(target.partial, options.keep)
            log = MetricsLog(target.partial / LAYOUT.metrics)
            finetuning = Finetuning(
                accelerator,
                model,
                encoded.train,
                encoded.evaluation,
                folder.task,  # type: ignore[arg-type]
                metric,
                options,
                fresh=frozenset(require_manifest(folder).head.keys),
                pretrained=_parameter_anchors(folder, model)
                if options.decay_toward == "pretrained"
                else {},
                snapshots=snapshots,
                log=log,
                write_model=lambda path: _write_model(model, path, folder, options),
                observer=observer if observer is not None else Silent(),
            )
            outcome = finetuning.run()
            result = TrainResult(
                out=out,
                metric=metric,
                metrics=outcome.metrics,
                metrics_before=outcome.metrics_before,
                steps=outcome.steps,
                chosen_step=outcome.chosen_step,
                stopped_early=outcome.stopped_early,
                seconds=time.monotonic() - started,
            )
            if main:
                _finish(target.partial, snapshots, outcome, result, settings, encoded, options)
            accelerator.wait_for_everyone()
        accelerator.end_training()
        return result
    finally:
        release_accelerator()


def _check_evaluation(options: TrainOptions, data: _Data) -> None:
    if data.evaluation is not None:
        return
    for name, wanted in (
        ("early-stopping", options.early_stopping),
        ("select", options.select == "best"),
        ("eval-every", options.eval_every is not None),
    ):
        if wanted:
            raise ArgumentError(f"{name}: needs evaluation data; give --eval-file")


def _write_model(
    model: PreTrainedModel, path: Path, folder: Folder, options: TrainOptions
) -> Manifest:
    return write_mixout(model, path, origin=folder, p=options.p)


def _finish(
    partial: Path,
    snapshots: Snapshots,
    outcome: Outcome,
    result: TrainResult,
    settings: dict[str, Any],
    data: _Data,
    options: TrainOptions,
) -> None:
    """Put the chosen model, the picture and the card into the run's folder."""
    newest = snapshots.paths()[-1]
    best_is_newest = outcome.chosen_step == outcome.steps or not snapshots.best.exists()
    snapshots.promote(newest if best_is_newest else snapshots.best)
    records = MetricsLog(partial / LAYOUT.metrics).records()
    write_curves(
        records, partial / LAYOUT.curves, metric=result.metric, chosen_step=outcome.chosen_step
    )
    write_card(
        CardFacts(
            name=result.out.name,
            manifest=require_manifest(open_folder(partial)),
            options=options,
            dataset=data.name,
            metrics=outcome.metrics,
            metrics_before=outcome.metrics_before,
            train_examples=len(data.train),
            steps=outcome.steps,
            chosen_step=outcome.chosen_step,
            curves=LAYOUT.curves,
        ),
        partial / LAYOUT.card,
    )
    shown = {k: v for k, v in vars(result).items() if k not in ("out", "already_complete")}
    write_json(
        partial / LAYOUT.training,
        {"settings": settings, "result": shown, "tool_version": __version__},
    )
    snapshots.clear()
