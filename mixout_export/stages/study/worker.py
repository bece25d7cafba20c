"""One run of a study: prepare (or reuse), train, measure."""

import importlib.metadata
import math
import time
import traceback
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from filelock import FileLock

from mixout_export.checkpoint.folder import PlainCheckpoint, open_checkpoint, weight_key
from mixout_export.data.metrics import default_metric, is_lower_better
from mixout_export.errors import CheckpointError, MixoutError, TrainingError, TrainingStoppedError
from mixout_export.files.arithmetic import squares
from mixout_export.files.layout import LAYOUT
from mixout_export.files.output import partial_path
from mixout_export.stages.prepare import prepare_checkpoint
from mixout_export.stages.study.engine import Job
from mixout_export.stages.study.settings import prepare_options, train_options
from mixout_export.stages.train import TrainResult, train_checkpoint
from mixout_export.stages.train.record import RunRecord as TrainRecord
from mixout_export.study.records import DIVERGED, DONE, RunRecord
from mixout_export.training.records import MetricsLog, Observer

#: Packages whose versions can change a result.
_PACKAGES = ("mixout-export", "torch", "transformers", "accelerate", "tokenizers", "numpy")

_LONGEST_ERROR = 2000


class Stopwatch(Observer):
    """Measures how long a run's steps and evaluations take."""

    def __init__(self) -> None:
        self._seconds = {"steps": 0.0, "evaluations": 0.0, "checkpoints": 0.0}
        self._last = time.monotonic()
        self._first = self._latest = 0

    def started(self, *, steps: int, done: int, examples: int) -> None:
        """Start the watch."""
        self._first = self._latest = done
        self._last = time.monotonic()

    def stepped(self, *, step: int, examples: int, loss: float | None) -> None:
        """Count the time since the last event as that of a step."""
        self._latest = step
        self._add("steps")

    def evaluated(self, *, step: int, metrics: Mapping[str, float]) -> None:
        """Count the time since the last event as that of an evaluation."""
        self._add("evaluations")

    def saved(self, *, step: int, path: Path) -> None:
        """Count the time since the last event as that of saving a checkpoint."""
        self._add("checkpoints")

    def _add(self, kind: str) -> None:
        now = time.monotonic()
        self._seconds[kind] += now - self._last
        self._last = now

    def _of_all_steps(self, kind: str) -> float:
        """Return the seconds, with an estimate for the steps before the run was resumed."""
        done = self._latest - self._first
        return self._seconds[kind] * (self._latest / done if done else 1.0)

    @property
    def training_seconds(self) -> float:
        """Seconds of the training steps."""
        return self._of_all_steps("steps")

    @property
    def evaluation_seconds(self) -> float:
        """Seconds of the evaluations."""
        return self._of_all_steps("evaluations")


def execute(job: Job) -> RunRecord | None:
    """Do a run, or go on with an unfinished one, and return its record.

    The trained checkpoint stays in `job.folder`, and the prepared one in `job.prepared`, until the
    caller has saved the record.

    Returns:
        The record; None if the run was asked to stop. The next attempt goes on from its last
        checkpoint.
    """
    started = time.monotonic()
    watch = Stopwatch()
    try:
        torch.set_num_threads(job.threads)
        _prepare(job)
        data, options = train_options(job.run, device=job.device)
        try:
            result = train_checkpoint(
                job.prepared, job.folder, data, options,
                resume=True, observer=watch, must_stop=job.stop_file.exists,
            )  # fmt: skip
        except TrainingStoppedError:
            return None
        except TrainingError as error:
            record = replace(_described(job, partial_path(job.folder)), error=str(error))
        else:
            record = _done(job, result)
    except Exception as error:  # whatever happens to one run, the study goes on
        record = job.crashed(_in_words(error))
    return replace(
        record,
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


def _described(job: Job, folder: Path) -> RunRecord:
    """Return the record of a run that diverged, from what it left in a folder."""
    metric = default_metric(open_checkpoint(job.prepared).require_task(), job.run.metric)
    log = MetricsLog(folder / LAYOUT.metrics)
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
        curve=tuple(log.records()),
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
    fresh = set(folder.require_metadata().head.keys)
    total = 0.0
    for key, anchor in folder.anchors.items():
        name = weight_key(key)
        if name not in fresh:
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
        return str(error)
    return "".join(traceback.format_exception(error))[-_LONGEST_ERROR:]
