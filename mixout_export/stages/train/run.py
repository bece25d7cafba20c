"""A run from a prepared to a trained checkpoint."""

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor
from transformers import PreTrainedModel

from mixout_export.card.steps import model_title
from mixout_export.checkpoint.artifact import (
    Artifact,
    open_artifact,
    require_metadata,
    require_task,
    weight_key,
)
from mixout_export.checkpoint.model import load_mixout, tensor_of, write_mixout
from mixout_export.data.metrics import default_metric
from mixout_export.errors import ArgumentError, CheckpointError, OutputError
from mixout_export.files.json_files import read_json, write_json
from mixout_export.files.layout import LAYOUT
from mixout_export.files.output import (
    OutputFolder,
    check_destination,
    output_folder,
    partial_path,
)
from mixout_export.files.streams import file_digest
from mixout_export.provenance.links import DataFile
from mixout_export.provenance.manifest import write_manifest
from mixout_export.stages.train.data import DataOptions, TrainingData, load_training_data
from mixout_export.stages.train.describe import RunDescription
from mixout_export.stages.train.settings import check_agreement, check_settings, run_settings
from mixout_export.surgery import mixout_layers
from mixout_export.surgery.key_names import disk_keys
from mixout_export.training.curves import write_curves
from mixout_export.training.device import make_accelerator, release_accelerator, start_tracker
from mixout_export.training.loop import Finetuning, Outcome
from mixout_export.training.memory import keep_freed_memory
from mixout_export.training.options import TrainOptions
from mixout_export.training.records import MetricsLog, NullObserver, Observer
from mixout_export.training.snapshots import Snapshots
from mixout_export.version import __version__

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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


def _parameter_anchors(
    folder: Artifact, model: PreTrainedModel, options: TrainOptions
) -> dict[str, Tensor]:
    """Return the pretrained values by parameter, where decay toward them needs them."""
    if options.decay_toward != "pretrained":
        return {}
    names = {name for name, _ in model.named_parameters()}
    by_key = {key: name for name, key in disk_keys(model).items()}
    stored = {weight_key(key): entry for key, entry in folder.anchors.items()}
    values = {by_key.get(key, key): entry for key, entry in stored.items()}
    foreign = sorted(set(values) - names)
    if foreign or not folder.pretrained_paths:
        what = repr(foreign[0]) if foreign else "those of the unmixed parameters"
        raise CheckpointError(
            f"{folder.path}: decay toward the pretrained weights needs the pretrained value of "
            f"every parameter, and {what} cannot be matched; use --decay-toward zero"
        )
    return {name: tensor_of(entry) for name, entry in values.items()}


def _ready_model(folder: Artifact, options: TrainOptions) -> PreTrainedModel:
    model = load_mixout(folder.path)
    model.float()  # type: ignore[no-untyped-call]
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
        # transformers renames it, and drops the older name in version 6.
        enable = getattr(model, "activation_checkpointing_enable", None)
        (enable or model.gradient_checkpointing_enable)()
    return model


def _refuse_unfinished(out: Path, *, resume: bool, overwrite: bool) -> None:
    partial = partial_path(out)
    if resume or overwrite:
        return
    if Snapshots(partial, 1).paths() or _result_in(partial / LAYOUT.training, out) is not None:
        raise OutputError(
            f"{partial}: holds an unfinished run; give --resume to go on with it, or --overwrite "
            "to start afresh"
        )


def _completed(out: Path) -> TrainResult | None:
    """Return the result of a run that is complete, None if there is none at `out`."""
    return _result_in(out / LAYOUT.training, out)


def _result_in(path: Path, out: Path) -> TrainResult | None:
    """Return the result that a run's record holds, None if it has no end yet."""
    result = read_json(path).get("result") if path.exists() else None
    return None if result is None else TrainResult(out=out, already_complete=True, **result)


def train_checkpoint(
    prepared: Path,
    out: Path,
    data: DataOptions,
    options: TrainOptions | None = None,
    *,
    overwrite: bool = False,
    resume: bool = False,
    observer: Observer | None = None,
    must_stop: Callable[[], bool] = lambda: False,
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
        must_stop: Asked after each step whether to save a checkpoint and stop.

    Returns:
        What came of it.

    Raises:
        ArgumentError: Settings are out of their domain or contradict those of the run to resume.
        CheckpointError: `prepared` cannot be loaded.
        DataError: The data cannot be read or do not fit.
        TrainingError: The loss became NaN; the last good checkpoint is kept.
        TrainingStoppedError: `must_stop` said so; a checkpoint of the last step is kept.
        OutputError: `out` cannot be written.
    """
    options = options if options is not None else TrainOptions()
    done = _completed(out) if resume and not overwrite else None
    if done is not None:
        return done
    sources = [prepared, *data.files()]
    check_destination(out, sources, overwrite=overwrite)
    _refuse_unfinished(out, resume=resume, overwrite=overwrite)
    started = time.monotonic()
    folder = open_artifact(prepared)
    try:
        accelerator = make_accelerator(options, project=out)
        if accelerator.device.type == "cpu":
            keep_freed_memory()
        model = _ready_model(folder, options)
        encoded = load_training_data(folder, model, data, options)
        tables = _tables(data, encoded)  # hashed now: a file may change while a model is trained
        metric = default_metric(require_task(folder), options.metric)
        _check_evaluation(options, encoded)
        pretrained = _parameter_anchors(folder, model, options)
        writing = (
            output_folder(out, sources, overwrite=overwrite, resume=resume, keep_partial=True)
            if accelerator.is_main_process
            else contextlib.nullcontext(OutputFolder(out, partial_path(out)))
        )
        with writing as target:
            start_tracker(accelerator, options, project=out)
            run = _Run(target.partial, folder, model, pretrained, data, encoded, metric, options)
            result = run.train(accelerator, observer or NullObserver(), must_stop, started=started)
            accelerator.end_training()  # before the tracker's files move to OUT
            if accelerator.is_main_process:
                _record(target, folder, data, tables, options)
        return result
    finally:
        release_accelerator()


def _tables(data: DataOptions, encoded: TrainingData) -> list[DataFile]:
    """Return the tables that are trained and evaluated on, as they are now."""
    files = [("train", data.train_file, encoded.rows), ("eval", data.eval_file, None)]
    tables = [
        DataFile(role, file.name, file_digest(file), rows) for role, file, rows in files if file
    ]
    if data.dataset is not None:
        tables.append(DataFile("train", data.dataset, "", encoded.rows))
    return tables


def _record(
    target: OutputFolder,
    folder: Artifact,
    data: DataOptions,
    tables: Sequence[DataFile],
    options: TrainOptions,
) -> None:
    """Write the manifest, once everything else is in the folder."""
    settings = {name: value for name, value in options.to_dict().items() if name != "device"}
    write_manifest(
        target.partial,
        step="train",
        source=folder.path,
        input_sha256=folder.weights_sha256(),
        weights=[path.name for path in open_artifact(target.partial).weight_paths],
        options=settings | {k: v for k, v in vars(data).items() if k.endswith("_column")},
        data=tables,
    )


@dataclass(frozen=True)
class _Run:
    """A run inside its folder, `OUT.partial`."""

    partial: Path
    folder: Artifact
    model: PreTrainedModel
    pretrained: dict[str, Tensor]
    sources: DataOptions
    data: TrainingData
    metric: str
    options: TrainOptions

    @property
    def record_path(self) -> Path:
        return self.partial / LAYOUT.training

    def train(
        self,
        accelerator: Accelerator,
        observer: Observer,
        must_stop: Callable[[], bool],
        *,
        started: float,
    ) -> TrainResult:
        """Train to the end and put the result into the run's folder."""
        out = self.partial.with_name(self.partial.name.removesuffix(LAYOUT.partial_suffix))
        settings = run_settings(
            self.folder, self.options, self.data, processes=accelerator.num_processes
        )
        snapshots = Snapshots(self.partial, self.options.keep)
        check_agreement(gather_object([settings]))
        finished: TrainResult | None = None
        if accelerator.is_main_process:
            finished = _result_in(self.record_path, out)
            if finished is not None:  # it was killed between its end and its appearance at OUT
                snapshots.clear()
            else:
                check_settings(self.record_path, settings)
                write_json(self.record_path, {"settings": settings, "tool_version": __version__})
        shared: list[TrainResult | None] = broadcast_object_list([finished])
        if shared[0] is not None:
            return shared[0]
        outcome = self._finetuning(accelerator, snapshots, observer, must_stop).run()
        result = TrainResult(
            out=out,
            metric=self.metric,
            metrics=outcome.metrics,
            metrics_before=outcome.metrics_before,
            steps=outcome.steps,
            chosen_step=outcome.chosen_step,
            stopped_early=outcome.stopped_early,
            seconds=time.monotonic() - started,
        )
        if accelerator.is_main_process:
            self._finish(snapshots, outcome, result, settings)
        accelerator.wait_for_everyone()
        return result

    def _finetuning(
        self,
        accelerator: Accelerator,
        snapshots: Snapshots,
        observer: Observer,
        must_stop: Callable[[], bool],
    ) -> Finetuning:
        return Finetuning(
            accelerator,
            self.model,
            self.data.train,
            self.data.evaluation,
            self.metric,
            self.options,
            fresh=frozenset(require_metadata(self.folder).head.keys),
            pretrained=self.pretrained,
            snapshots=snapshots,
            log=MetricsLog(self.partial / LAYOUT.metrics),
            write_model=self._write_model,
            observer=observer,
            must_stop=must_stop,
        )

    def _write_model(self, path: Path) -> None:
        write_mixout(self.model, path, origin=self.folder, p=self.options.p)

    def _finish(
        self,
        snapshots: Snapshots,
        outcome: Outcome,
        result: TrainResult,
        settings: dict[str, Any],
    ) -> None:
        """Put the chosen model, the picture and the card into the run's folder."""
        newest = snapshots.paths()[-1]
        is_newest = outcome.chosen_step == outcome.steps or not snapshots.best.exists()
        snapshots.promote(newest if is_newest else snapshots.best)
        records = MetricsLog(self.partial / LAYOUT.metrics).records()
        metadata = require_metadata(open_artifact(self.partial))
        write_curves(
            records,
            self.partial / LAYOUT.curves,
            metric=result.metric,
            chosen_step=outcome.chosen_step,
            title=model_title(metadata),
        )
        described = RunDescription(metadata, self.options, self.sources, self.data, outcome)
        described.write_card(self.folder.path, self.partial)
        shown = {k: v for k, v in vars(result).items() if k not in ("out", "already_complete")}
        record = {"settings": settings, "result": shown, "tool_version": __version__}
        write_json(self.record_path, record)
        snapshots.clear()


def _check_evaluation(options: TrainOptions, data: TrainingData) -> None:
    if data.evaluation is not None:
        return
    for name, wanted in (
        ("early-stopping", options.early_stopping),
        ("select", options.select == "best"),
        ("eval-every", options.eval_every is not None),
    ):
        if wanted:
            raise ArgumentError(f"{name}: needs evaluation data; give --eval-file")
