"""Say what a study would do, and about how long it would take."""

import math
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from mixout_export.errors import DataError, TrainingError
from mixout_export.files.layout import LAYOUT
from mixout_export.stages.prepare import prepare_checkpoint
from mixout_export.stages.study.engines.local import default_workers
from mixout_export.stages.study.folder import check_folder
from mixout_export.stages.study.run import check_outside, load_plan
from mixout_export.stages.study.settings import message_for_plan, prepare_options, train_options
from mixout_export.stages.study.stopwatch import Stopwatch
from mixout_export.stages.train import train_checkpoint
from mixout_export.study.estimate import Estimate, Trial, length_of
from mixout_export.study.records import CRASHED
from mixout_export.study.run_log import RunLog
from mixout_export.study.runs import Run, records_of

#: Training steps of a trial. The first one is slower than the others and is not counted.
_STEPS = 4


@dataclass(frozen=True)
class PlannedRun:
    """A run of a plan.

    Attributes:
        task: Name of the task.
        arm: Name of the arm.
        head: Seed of the head.
        data: Seed of the data order.
        masks: Seed of the masks.
        done: Whether it has been done.
        seconds: About how long it takes; None if it has been done.
    """

    task: str
    arm: str
    head: int
    data: int
    masks: int
    done: bool
    seconds: float | None


@dataclass(frozen=True)
class DryRun:
    """What a study would do.

    Attributes:
        runs: The runs in order. Arms with the same options share theirs.
        done: Number of those that have been done.
        workers: Number of runs at the same time.
        seconds: About how long the study takes if no budget ends it.
        exceeds_budget: Whether the plan's budget is probably used up before all runs are done.
    """

    runs: tuple[PlannedRun, ...]
    done: int
    workers: int
    seconds: float
    exceeds_budget: bool


def dry_run(
    file: Path,
    out: Path,
    *,
    workers: int | None = None,
    device: str | None = None,
    overwrite: bool = False,
) -> DryRun:
    """Return the runs of a plan, which are done, and how long the others would take.

    The estimate is made from the finished runs in `out`. For a task without one, the first few
    training steps and one evaluation of its first arm are done in a temporary folder.

    Args:
        file: The plan.
        out: The folder of the study, which need not exist. It is not changed.
        workers: Number of runs at the same time; None takes what the local engine would.
        device: Device of the runs; None takes a GPU if there is one.
        overwrite: Whether the study would remove the records in `out` and start anew.

    Raises:
        PlanError: Something in the plan is wrong.
        CheckpointError: The base cannot be found or read.
        DataError: The data or the records cannot be read.
        OutputError: `out` holds something else than a study.
    """
    plan, all_runs = load_plan(file)
    check_outside(out, plan)
    check_folder(out)
    workers = workers or default_workers(threads=plan.threads, device=device)
    runs: dict[str, Run] = {}
    for run in all_runs:
        runs.setdefault(run.key, run)
    records = RunLog(out / LAYOUT.runs).latest()
    done = {k for k, r in records.items() if r.status != CRASHED and not overwrite}
    known = records_of(all_runs, records)
    estimate, trials = Estimate(known), {}
    for run in runs.values():
        is_new = run.key not in done and not estimate.has_task(run.task)
        if is_new and run.task not in trials:
            try:
                trials[run.task] = _trial(run, threads=plan.threads, device=device)
            except DataError as error:
                raise DataError(message_for_plan(error)) from error
    estimate = Estimate(known, trials)
    left = [run for run in runs.values() if run.key not in done]
    spent = sum(records[key].training_seconds for key in runs.keys() & done)
    needed = spent + sum(estimate.seconds(run) or 0.0 for run in left)
    return DryRun(
        runs=tuple(
            PlannedRun(
                run.task, run.arm, run.seeds.head, run.seeds.data, run.seeds.masks,
                run.key in done, None if run.key in done else estimate.seconds(run),
            )
            for run in runs.values()
        ),
        done=len(runs) - len(left),
        workers=workers,
        seconds=estimate.left(left, workers=workers) or 0.0,
        exceeds_budget=bool(left) and plan.budget is not None and needed > plan.budget,
    )  # fmt: skip


class _FewSteps(Stopwatch):
    """Measures the first steps of a run, and asks it to stop."""

    def must_stop(self) -> bool:
        """Return whether enough steps are done."""
        return self.steps_done >= _STEPS


def _trial(run: Run, *, threads: int, device: str | None) -> Trial:
    """Do the first few steps of a run."""
    torch.set_num_threads(threads)
    watch = _FewSteps()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared"
        prepare_checkpoint(run.base, prepared, prepare_options(run))
        data, options = train_options(run, device=device)
        with suppress(TrainingError):  # stopped, or diverged
            train_checkpoint(
                prepared, Path(folder) / "trained", data, options,
                observer=watch, must_stop=watch.must_stop,
            )  # fmt: skip
        taken = time.monotonic() - started
    fixed = taken - watch.measured_seconds + watch.seconds_of("checkpoints")
    epochs = options.epochs if options.max_steps is None else 1.0
    evaluations = 1 + math.ceil(epochs)
    if options.eval_every is not None:
        evaluations = 1 + math.ceil(watch.steps / options.eval_every)
    loop = watch.steps * watch.seconds_of_step + evaluations * watch.seconds_of("evaluations")
    return Trial(fixed, loop, length_of(run))
