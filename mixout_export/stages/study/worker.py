"""One run of a study: prepare (or reuse), train, measure."""

import importlib.metadata
import logging
import math
import shutil
import time
import traceback
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from filelock import FileLock

from mixout_export.checkpoint.folder import open_checkpoint
from mixout_export.checkpoint.keys import is_statistic, weight_key
from mixout_export.checkpoint.plain import PlainCheckpoint
from mixout_export.data.metrics import default_metric, is_lower_better
from mixout_export.errors import (
    ArgumentError,
    CheckpointError,
    DataError,
    MixoutError,
    TrainingError,
    TrainingStoppedError,
)
from mixout_export.files.arithmetic import squares
from mixout_export.files.layout import LAYOUT
from mixout_export.files.output import partial_path
from mixout_export.stages.prepare import prepare_checkpoint
from mixout_export.stages.study.engine import Job
from mixout_export.stages.study.settings import (
    message_for_plan,
    prepare_options,
    train_options,
)
from mixout_export.stages.study.stopwatch import Stopwatch
from mixout_export.stages.train import SharedData, TrainResult, train_checkpoint
from mixout_export.stages.train.record import RunRecord as TrainRecord
from mixout_export.study.records import DIVERGED, DONE, RunRecord
from mixout_export.training.memory import release_freed_memory
from mixout_export.training.records import MetricsLog

#: Packages whose versions can change a result.
_PACKAGES = ("mixout-export", "torch", "transformers", "accelerate", "tokenizers", "numpy")

#: Errors of the plan or of the data, which are the same in every attempt.
_REFUSED = (ArgumentError, DataError)

_LONGEST_ERROR = 2000

#: Encoded data of the runs that this process has done.
_SHARED = SharedData()


class _Warnings(logging.Handler):
    """Keeps what the library warns of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a warning."""
        self.lines.append(record.getMessage())


def execute(job: Job) -> RunRecord | None:
    """Do a run, or go on with an unfinished one, and return its record.

    The trained checkpoint stays in `job.folder`, and the prepared one in `job.prepared`, until the
    caller has saved the record.

    Returns:
        The record; None if the run was asked to stop. The next attempt goes on from its last
        checkpoint.
    """
    started = time.monotonic()
    watch, warnings = Stopwatch(), _Warnings()
    logger = logging.getLogger("mixout_export")
    logger.addHandler(warnings)
    try:
        torch.set_num_threads(job.threads)
        _prepare(job)
        try:
            result = _train(job, watch)
        except TrainingStoppedError:
            return None
        except TrainingError as error:
            what = str(error).partition(";")[0]  # without advice and paths
            record = replace(_described(job, partial_path(job.folder)), error=what)
        else:
            record = _done(job, result)
    except Exception as error:  # whatever happens to one run, the study goes on
        words = _in_words(error).replace(str(job.work), LAYOUT.work)
        record = replace(job.crashed(words), refused=isinstance(error, _REFUSED))
    finally:
        logger.removeHandler(warnings)
        release_freed_memory()
    return replace(
        record,
        warnings=tuple(dict.fromkeys(warnings.lines)),
        seconds=time.monotonic() - started,
        training_seconds=watch.training_seconds or record.training_seconds,
        evaluation_seconds=watch.evaluation_seconds,
    )


def _prepare(job: Job) -> None:
    """Write the prepared checkpoint, unless another job has done it."""
    job.work.mkdir(parents=True, exist_ok=True)
    with FileLock(job.prepared.with_suffix(".lock")):
        if not job.prepared.exists():
            prepare_checkpoint(job.run.base, job.prepared, prepare_options(job.run))


def _train(job: Job, watch: Stopwatch) -> TrainResult:
    """Train, from the last checkpoint of an earlier attempt if there is one."""
    data, options = train_options(job.run, device=job.device)
    train = partial(
        train_checkpoint, job.prepared, job.folder, data, options,
        resume=True, observer=watch, must_stop=job.stop_file.exists, shared=_SHARED,
    )  # fmt: skip
    unfinished = partial_path(job.folder)
    try:
        return train()
    except ArgumentError:  # the earlier attempt was made on another device, say
        if not unfinished.exists():
            raise
        shutil.rmtree(unfinished)
        return train()


def _described(job: Job, folder: Path) -> RunRecord:
    """Return the record of a run that diverged, from what is in its folder."""
    metric = default_metric(open_checkpoint(job.prepared).require_task(), job.run.metric)
    log = MetricsLog(folder / LAYOUT.metrics)
    curve = tuple(log.records())
    training = TrainRecord(folder).content
    before = _finite(log.evaluation(0))
    # language models have no constant answer: their runs have to end better than they began
    chance = training.get("result", training).get("chance", {}).get(metric, before.get(metric))
    return replace(
        job.crashed(""),
        status=DIVERGED,
        error=None,
        metric=metric,
        lower_is_better=is_lower_better(metric),
        chance=0.0 if chance is None else chance,
        metrics_before=before,
        curve=curve,
        steps=curve[-1]["step"] if curve else 0,
        device=_device_name(job),
        versions=_versions(),
    )


def _done(job: Job, result: TrainResult) -> RunRecord:
    """Return the record of a run that ended."""
    folder = open_checkpoint(job.folder)
    metrics = _finite(result.metrics)
    return replace(
        _described(job, job.folder),
        status=DONE,
        score=metrics.get(result.metric),
        metrics=metrics,
        distance=_distance(folder),
        steps=result.steps,
        weights_sha256=folder.weights_sha256(),
        training_seconds=result.seconds,  # if the run was complete before this attempt
    )


def _distance(folder: PlainCheckpoint) -> float:
    """Return ‖w - u‖ over all parameters that came from the base."""
    fresh = folder.require_metadata().fresh_keys
    total = 0.0
    for key, anchor in folder.anchors.items():
        name = weight_key(key)
        if name not in fresh and not is_statistic(name):
            entry = folder.tensors.get(name)
            if entry is None:
                raise CheckpointError(f"{folder.path}: the tensor {name!r} is missing")
            total += squares(entry, anchor)[0]
    return math.sqrt(total)


def _finite(metrics: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def _device_name(job: Job) -> str:
    if job.device in (None, "cuda") and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    if job.device is not None and job.device.startswith("cuda"):
        return torch.cuda.get_device_name(job.device)
    return job.device or "cpu"


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in _PACKAGES}


def _in_words(error: Exception) -> str:
    """Return what went wrong; for an unexpected error, with the end of the traceback."""
    if isinstance(error, MixoutError):
        return message_for_plan(error)
    return "".join(traceback.format_exception(error))[-_LONGEST_ERROR:]
