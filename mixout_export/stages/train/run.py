"""One training run, from a prepared to a trained checkpoint."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from accelerate.utils import broadcast_object_list, gather_object

from mixout_export.card.steps import model_title
from mixout_export.checkpoint.folder import open_checkpoint
from mixout_export.checkpoint.plain import PlainCheckpoint
from mixout_export.checkpoint.saving import write_mixout
from mixout_export.checkpoint.tokenizer_file import record_reading
from mixout_export.errors import OutputError
from mixout_export.files.layout import LAYOUT
from mixout_export.files.output import check_destination, output_folder, partial_path
from mixout_export.files.streams import data_digest
from mixout_export.provenance.links import DataFile
from mixout_export.provenance.manifest import write_manifest
from mixout_export.quiet import quiet_logs
from mixout_export.stages.train.data import DataOptions, TrainingData, load_training_data
from mixout_export.stages.train.describe import write_trained_card
from mixout_export.stages.train.finished import check_finished
from mixout_export.stages.train.model import Start, load_start
from mixout_export.stages.train.record import RunRecord, TrainResult, run_settings
from mixout_export.stages.train.settings import check_agreement, check_evaluation, check_options
from mixout_export.stages.train.shared_data import SharedData
from mixout_export.training.criterion import build_criterion
from mixout_export.training.curves import write_curves
from mixout_export.training.device import accelerated
from mixout_export.training.loop import Finetuning
from mixout_export.training.memory import keep_freed_memory
from mixout_export.training.options import TrainOptions
from mixout_export.training.records import MetricsLog, Observer
from mixout_export.training.snapshots import Snapshots


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
    shared: SharedData | None = None,
) -> TrainResult:
    """Finetune a mixout checkpoint.

    Work in progress is in `OUT.partial`, which stays if the run is interrupted. A resumed run ends
    with exactly the weights and metrics of a run that was never interrupted.

    Args:
        prepared: A mixout checkpoint.
        out: The folder to write. It appears when the run is complete.
        data: Where the data are.
        options: The run's options, by default `TrainOptions()`.
        overwrite: Whether a non-empty `out`, or an unfinished run, may be replaced.
        resume: Continue an unfinished run, or start a new one if there is none. If `out` is
            complete, do nothing, but compare it with what is asked for.
        observer: Is told how the run goes.
        must_stop: Called after each step; True saves a checkpoint and stops the run.
        shared: Encoded data of earlier runs in this process. The result is the same without.

    Raises:
        ArgumentError: Options are invalid or differ from those of the run to resume.
        CheckpointError: `prepared` cannot be loaded.
        DataError: The data cannot be read or do not fit.
        TrainingError: The loss became NaN. The last good checkpoint is kept.
        TrainingStoppedError: `must_stop` returned True. A checkpoint of the last step is kept.
        OutputError: `out` cannot be written.
    """
    started = time.monotonic()
    options = options if options is not None else TrainOptions()
    partial = partial_path(out)
    snapshots, log = Snapshots(partial, options.keep), MetricsLog(partial / LAYOUT.metrics)

    # Validate whatever can be checked without the model.
    for folder in ((partial,) if overwrite else (out, partial)) if resume else ():
        complete = RunRecord(folder).result(out)
        if complete is not None:
            check_finished(RunRecord(folder), out, prepared, data, options)
            if folder == out:
                return complete
    inputs = [prepared, *data.files()]
    check_destination(out, inputs, overwrite=overwrite)
    if not (resume or overwrite) and (snapshots.paths() or RunRecord(partial).result(out)):
        raise OutputError(
            f"{partial}: holds an unfinished run; give --resume to continue it, or --overwrite to "
            "start a new one"
        )
    source = open_checkpoint(prepared)

    with accelerated(options, out=out) as accelerator:
        is_main = accelerator.is_main_process
        work = (
            output_folder(out, inputs, overwrite=overwrite, resume=resume, keep_partial=True)
            if is_main
            else contextlib.nullcontext()
        )
        earlier = RunRecord(partial) if is_main and resume else None
        finished: list[TrainResult | None] = [earlier.result(out) if earlier else None]
        broadcast_object_list(finished)
        if finished[0] is not None:  # the run was killed after its end, before OUT appeared
            with work:
                if earlier is not None:
                    snapshots.clear()
                    _write_manifest(partial, source, earlier)
            return finished[0]
        reader, metric = check_options(source.require_task(), data, options)

        # Load the model.
        if accelerator.device.type == "cpu":
            keep_freed_memory()
        start = load_start(source, options)

        # Read and encode the data. Hash the files now, because they may change during training.
        encoded = load_training_data(source, reader, start.model, data, options, shared)
        check_evaluation(options, encoded)
        criterion = build_criterion(options, encoded.train, source.labels or ())
        files = _data_files(data, encoded)
        chance = {} if encoded.evaluation is None else encoded.evaluation.chance()
        settings = run_settings(source, options, encoded, processes=accelerator.num_processes)
        check_agreement(gather_object([settings]))

        with work:
            record = RunRecord(partial)
            if is_main:
                record.start(settings, data, files, chance)
            accelerator.wait_for_everyone()  # until an old run's files are removed
            if options.tracker is not None:
                accelerator.init_trackers(out.name)

            if is_main and observer is not None:
                for note in encoded.notes:
                    observer.noticed(note)

            # Train, from the newest checkpoint if there is one.
            finetuning = Finetuning(
                accelerator,
                start.model,
                encoded.train,
                encoded.evaluation,
                options,
                metric=metric,
                criterion=criterion,
                fresh=start.fresh,
                pretrained=start.pretrained,
                snapshots=snapshots,
                log=log,
                write_model=lambda path: _write_model(path, source, start, encoded),
                observer=observer or Observer(),
                must_stop=must_stop,
            )
            with quiet_logs():  # transformers warns about options that it changes itself
                stopped_early = finetuning.run()

            # Choose the step whose model is the result.
            progress = finetuning.progress
            chosen_step = progress.step
            if options.select != "last" and progress.best_step is not None:
                chosen_step = progress.best_step
            by_label = log.label_report(chosen_step)
            result = TrainResult(
                out=out,
                metric=metric,
                metrics=log.evaluation(chosen_step),
                metrics_before=log.evaluation(0),
                steps=progress.step,
                chosen_step=chosen_step,
                stopped_early=stopped_early,
                seconds=time.monotonic() - started,
                chance=chance,
                by_label=by_label.get("labels", []),
                confused=by_label.get("confused", []),
                notes=list(encoded.notes),
                titles=source.require_task().titles(source.labels or ()),
                max_length=encoded.max_length,
                cut=[asdict(each) for each in encoded.cut],
            )

            # Write the chosen model with everything that describes it.
            if is_main:
                has_best = chosen_step != progress.step and snapshots.best.exists()
                snapshots.promote(snapshots.best if has_best else snapshots.paths()[-1])
                metadata = open_checkpoint(partial).require_metadata()
                write_curves(
                    log.records(),
                    partial / LAYOUT.curves,
                    metric=metric,
                    chosen_step=chosen_step,
                    title=model_title(metadata),
                )
                write_trained_card(partial, prepared, metadata, options, data, encoded, result)
                record.complete(result)
                snapshots.clear()
            accelerator.wait_for_everyone()
            del finetuning  # DDP may not outlive the process group that `end_training` destroys
            accelerator.free_memory()
            accelerator.end_training()  # before the tracker's files move to OUT
            if is_main:
                _write_manifest(partial, source, record)
        return result


def _write_model(path: Path, source: PlainCheckpoint, start: Start, data: TrainingData) -> None:
    """Write the model as it is now, and record how its texts are read."""
    write_mixout(start.model, path, origin=source, metadata=start.metadata)
    if data.max_length is not None:
        record_reading(
            path,
            data.max_length,
            doc_stride=data.doc_stride,
            limits_others=source.require_task().limits_others,
        )


def _data_files(data: DataOptions, encoded: TrainingData) -> list[DataFile]:
    """Return the data files with their hashes."""
    rows = encoded.rows if len(data.train_files) == 1 else None
    found = [DataFile("train", file.name, data_digest(file), rows) for file in data.train_files]
    if data.eval_file is not None:
        found.append(DataFile("eval", data.eval_file.name, data_digest(data.eval_file)))
    if data.dataset is not None:
        found.append(DataFile("train", data.dataset, "", encoded.rows))
    return found


def _write_manifest(folder: Path, source: PlainCheckpoint, record: RunRecord) -> None:
    """Write the manifest, once everything else is in the folder."""
    options = {**record.content["settings"]["options"], **record.content.get("columns", {})}
    write_manifest(
        folder,
        step="train",
        source=source.files,
        input_sha256=source.weights_sha256(),
        weights=[path.name for path in open_checkpoint(folder).weight_paths],
        options={k: v for k, v in options.items() if k not in ("device", "processes")},
        data=[DataFile(**file) for file in record.content.get("data_files", ())],
    )
