"""Run a study: every arm on every task with every seed."""

import logging
import shlex
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from mixout_export.checkpoint.base import locate_base
from mixout_export.checkpoint.folder import checkpoint_in
from mixout_export.errors import CheckpointError, OutputError, TrainingStoppedError
from mixout_export.files.input_files import InputFiles
from mixout_export.files.json_files import json_text
from mixout_export.files.layout import LAYOUT, is_preprocessor_file
from mixout_export.files.streams import data_digest
from mixout_export.files.tensors import digest_files
from mixout_export.files.weight_files import find_pickles
from mixout_export.stages.study.engine import Engine, Job, Outcome
from mixout_export.stages.study.folder import StudyFolder, study_folder
from mixout_export.stages.study.observer import StudyObserver
from mixout_export.stages.study.settings import SCHEMA, check_settings
from mixout_export.study.analysis import summarize
from mixout_export.study.estimate import Estimate
from mixout_export.study.plan import Plan, read_plan
from mixout_export.study.records import CRASHED, DONE, Seeds
from mixout_export.study.runs import Run, data_files, expand, records_of, settings_of_runs
from mixout_export.study.summary import StudySummary

logger = logging.getLogger(__name__)

#: Attempts at a run that crashes, in one start of the study.
ATTEMPTS = 3

#: Seconds between two summaries of a running study.
_SUMMARY_INTERVAL = 300.0

#: Seconds between two looks at whether to stop.
_PATIENCE = 0.2


@dataclass(frozen=True)
class Crash:
    """A run that did not end.

    Attributes:
        task: Name of the task.
        arm: Name of the arm.
        seeds: The seeds.
        error: What went wrong.
        refused: Whether its options or data were refused, so that no other seed was tried.
    """

    task: str
    arm: str
    seeds: Seeds
    error: str
    refused: bool


@dataclass(frozen=True)
class StudyResult:
    """What a study did.

    Attributes:
        out: Its folder.
        report: The page that shows what came out.
        runs: Number of runs of the plan.
        done: Number of those that have ended or diverged.
        new: Number of those that ended in this call.
        crashed: The runs that did not end, each with what went wrong.
        other: Number of recorded runs that the plan no longer has.
        stopped_by_budget: Whether runs are left because the budget is used up.
        commands: The two commands that repeat the first run of the recommended arm in the folder of
            the plan; none if the plan has several tasks.
        summary: What the records show.
    """

    out: Path
    report: Path
    runs: int
    done: int
    new: int
    crashed: tuple[Crash, ...]
    other: int
    stopped_by_budget: bool
    commands: tuple[str, ...]
    summary: StudySummary


def load_plan(file: Path) -> tuple[Plan, list[Run]]:
    """Read a plan and return it with its runs, in the order in which they are to be done.

    Raises:
        PlanError: Something in the plan is wrong.
        CheckpointError: The base cannot be found or read.
    """
    plan = read_plan(file, SCHEMA)
    settings = settings_of_runs(plan)
    check_settings(plan, settings)
    digests = {path: data_digest(path) for path in data_files(settings.values())}
    return plan, expand(plan, base_sha256=_base_digest(plan), digests=digests)


def _base_digest(plan: Plan) -> str:
    """Return the SHA-256 of what a run reads of the base: weights, configuration, tokenizer."""
    revision = plan.settings["prepare"].get("revision")
    path, _ = locate_base(plan.base, revision=revision)
    weights = checkpoint_in(InputFiles(path)).weight_paths or find_pickles(path).files
    if not weights:
        raise CheckpointError(f"{path}: holds no {LAYOUT.weights}, expected the weights there")
    others = (file for file in path.iterdir() if file.is_file() and file not in weights)
    read = (f for f in others if f.name == LAYOUT.config or is_preprocessor_file(f.name))
    return digest_files([*weights, *read])


def check_outside(out: Path, plan: Plan) -> None:
    """Refuse to write into the base, if that is a folder.

    Raises:
        OutputError: `out` is the base or lies inside it.
    """
    base, folder = Path(plan.base).resolve(), out.resolve()
    if base.is_dir() and (base == folder or base in folder.parents):
        raise OutputError(f"{out}: OUT lies inside the base {plan.base}; choose another OUT")


def run_study(
    file: Path,
    out: Path,
    *,
    engine: Callable[[Plan], Engine],
    device: str | None = None,
    overwrite: bool = False,
    observer: StudyObserver | None = None,
    must_stop: Callable[[], bool] = lambda: False,
) -> StudyResult:
    """Do the runs of a plan that have not been done.

    Args:
        file: The plan.
        out: The folder of the study: a new one, or that of the study to go on with.
        engine: Makes what does the runs. It is called only if there are some to do.
        device: Device of the runs; None takes a GPU if there is one.
        overwrite: Whether to remove the records in `out` and start anew.
        observer: Is told how the study goes.
        must_stop: Asked a few times per second; True saves the runs in progress and stops.

    Raises:
        PlanError: Something in the plan is wrong.
        CheckpointError: The base cannot be found or read.
        OutputError: `out` holds something else, or another process writes it.
        TrainingStoppedError: `must_stop` returned True.
    """
    plan, runs = load_plan(file)
    check_outside(out, plan)
    with study_folder(out, overwrite=overwrite) as folder:
        folder.write_plan(plan.text)
        study = _Study(plan, runs, folder, device, observer or StudyObserver())
        working = engine(plan) if study.has_runs_left else _Idle()
        try:
            study.run(working, must_stop)
        except TrainingStoppedError:
            study.summarize()
            raise
        finally:
            working.close()
        return study.result(study.summarize())


def _command(plan: Plan, out: Path) -> str:
    """Return the command of a study, without the folders of this machine."""
    return shlex.join(["mixout-export", "study", plan.file.name, out.absolute().name])


class _Idle:
    """The engine of a study whose runs are all done."""

    workers = 1

    def submit(self, job: Job) -> None:
        raise NotImplementedError

    def wait(self, timeout: float) -> list[Outcome]:
        return []

    def close(self) -> None:
        pass


class _Study:
    """The bookkeeping of a study while its runs are done."""

    def __init__(
        self,
        plan: Plan,
        runs: list[Run],
        folder: StudyFolder,
        device: str | None,
        observer: StudyObserver,
    ) -> None:
        self._plan, self._runs, self._folder = plan, runs, folder
        self._device, self._observer = device, observer
        self._records = folder.log.latest()
        self._unique: dict[str, Run] = {}
        for run in runs:
            self._unique.setdefault(run.key, run)
        self._new = 0
        self._summarized = time.monotonic()
        self._tries: dict[str, int] = {}
        self._flying: dict[str, Job] = {}
        self._waiting = deque(r for r in self._unique.values() if not self._is_done(r.key))

    @property
    def has_runs_left(self) -> bool:
        """Whether there is something for an engine to do."""
        return bool(self._waiting) and not self._over_budget()

    def run(self, engine: Engine, must_stop: Callable[[], bool]) -> None:
        """Do the runs that are left.

        Raises:
            TrainingStoppedError: `must_stop` returned True.
        """
        self._folder.begin()
        for key in filter(self._is_done, self._unique):  # if it was killed after the record
            self._finish(key)
        self._warn_of_missing_checkpoints()
        self._tidy()
        self._observer.started(
            runs=len(self._unique), done=self._done(), seconds_left=self._left(engine)
        )
        stopping = False
        while self._flying or (self.has_runs_left and not stopping):
            if not stopping and must_stop():
                stopping = True
                self._folder.ask_to_stop()
            while self.has_runs_left and len(self._flying) < engine.workers and not stopping:
                self._submit(engine, self._waiting.popleft())
            for outcome in engine.wait(_PATIENCE):
                self._receive(outcome, engine, stopping=stopping)
        if stopping:
            raise TrainingStoppedError(
                f"stopped; {self._done()} of {len(self._unique)} runs are done"
            )
        if not self._waiting:
            self._folder.end()

    def summarize(self) -> StudySummary:
        """Write the summary and the report of what is done so far, and return the summary."""
        from mixout_export.report.study.page import write_study_report  # matplotlib, only here

        plan, out = self._plan, self._folder.path
        records = records_of(self._runs, self._records)
        summary = summarize(
            records,
            tasks=[task.name for task in plan.tasks],
            arms=[arm.name for arm in plan.arms],
            baseline=plan.baseline,
        )
        self._folder.write_summary(json_text(summary.to_dict()))
        write_study_report(
            out, plan.text, records, summary,
            planned=len(self._runs), command=_command(plan, out), made=datetime.now(UTC),
        )  # fmt: skip
        self._summarized = time.monotonic()
        return summary

    def result(self, summary: StudySummary) -> StudyResult:
        """Return what the study did."""
        found = [self._records[key] for key in self._unique if key in self._records]
        crashed = [record for record in found if record.status == CRASHED]
        return StudyResult(
            out=self._folder.path,
            report=self._folder.path / LAYOUT.report,
            runs=len(self._unique),
            done=self._done(),
            new=self._new,
            crashed=tuple(Crash(r.task, r.arm, r.seeds, r.error or "", r.refused) for r in crashed),
            other=len(self._records.keys() - self._unique.keys()),
            stopped_by_budget=bool(self._waiting),
            commands=self._commands_of(summary.recommendation.arm),
            summary=summary,
        )

    def _commands_of(self, arm: str) -> tuple[str, ...]:
        if len(self._plan.tasks) > 1:
            return ()
        return next(run.commands for run in self._runs if run.arm == arm)

    def _is_done(self, key: str) -> bool:
        return key in self._records and self._records[key].status != CRASHED

    def _done(self) -> int:
        return sum(self._is_done(key) for key in self._unique)

    def _left(self, engine: Engine) -> float | None:
        runs = [*(job.run for job in self._flying.values()), *self._waiting]
        known = records_of(self._runs, self._records)
        return Estimate(known).left(runs, workers=engine.workers)

    def _over_budget(self) -> bool:
        """Return whether the runs have used up the plan's budget of training time."""
        if self._plan.budget is None:
            return False
        done = (self._records[key] for key in self._unique if self._is_done(key))
        return sum(record.training_seconds for record in done) >= self._plan.budget

    def _submit(self, engine: Engine, run: Run) -> None:
        self._tries[run.key] = self._tries.get(run.key, 0) + 1
        self._flying[run.key] = self._job(run)
        engine.submit(self._flying[run.key])

    def _job(self, run: Run) -> Job:
        earlier = self._records.get(run.key)
        attempt = 1 if earlier is None else earlier.attempt + 1
        return Job(run, attempt, self._folder.work, self._plan.threads, self._device)

    def _receive(self, outcome: Outcome, engine: Engine, *, stopping: bool) -> None:
        """Record how a job ended, and remove what is no longer needed."""
        run = self._flying.pop(outcome.job.run.key).run
        record = outcome.record
        if record is None and outcome.error is None:  # asked to stop, it has saved a checkpoint
            self._waiting.appendleft(run)
            self._tries[run.key] -= 1
            return
        if record is None:
            record = outcome.job.crashed(outcome.error or "")
        self._folder.log.append(record)
        self._records[run.key] = record
        for warning in record.warnings:
            logger.warning("%s, %s: %s", record.task, record.arm, warning)
        if record.status != CRASHED:
            self._new += 1
            self._finish(run.key)
        elif record.refused:
            same = (run.task, run.arm)
            self._waiting = deque(r for r in self._waiting if (r.task, r.arm) != same)
        elif self._tries[run.key] < ATTEMPTS and not stopping:
            self._waiting.appendleft(run)
        self._tidy()
        if time.monotonic() - self._summarized > _SUMMARY_INTERVAL:
            self._summarize_meanwhile()
        self._observer.finished(record, done=self._done(), seconds_left=self._left(engine))

    def _summarize_meanwhile(self) -> None:
        """Summarize what is done so far; runs in progress are worth more than a picture."""
        try:
            self.summarize()
        except Exception as error:
            self._summarized = time.monotonic()
            logger.warning("the report so far could not be written: %s", error)

    def _finish(self, key: str) -> None:
        """Keep or remove the trained checkpoint of a run whose record is on the disk."""
        if self._plan.keep:
            self._folder.keep(key)
        self._folder.clean(key)

    def _warn_of_missing_checkpoints(self) -> None:
        """Say which runs kept no checkpoint because the plan did not ask for it at that time."""
        if not self._plan.keep:
            return
        done = [record for key, record in self._records.items() if key in self._unique]
        missing = sum(r.status == DONE and not self._folder.has_kept(r.key) for r in done)
        if missing:
            logger.warning(
                "keep: %s of the runs ended without keep = true, so their checkpoints are not in "
                "%s; the commands in %s train them again, as does --overwrite",
                missing, self._folder.path / LAYOUT.checkpoints, self._folder.path / LAYOUT.runs,
            )  # fmt: skip

    def _tidy(self) -> None:
        """Remove the prepared checkpoints that neither a job in flight nor the next one needs."""
        needed = [job.prepared for job in self._flying.values()]
        if self._waiting:
            needed.append(self._job(self._waiting[0]).prepared)
        self._folder.remove_prepared(needed)
