"""What runs the jobs of a study: the interface that every engine has."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mixout_export.study.records import CRASHED, RunRecord
from mixout_export.study.runs import Run

#: A file of this name in the folder of a study's work asks its runs to save and stop.
STOP = "stop"

#: How the names of prepared checkpoints in that folder begin.
PREPARED = "prepared-"


@dataclass(frozen=True)
class Job:
    """An attempt to do a run. It is plain data, so that it can be sent to another process.

    Attributes:
        run: The run.
        attempt: Which attempt this is, from 1.
        work: The folder in which runs work.
        threads: CPU threads of the run.
        device: Device of the run; None takes a GPU if there is one.
    """

    run: Run
    attempt: int
    work: Path
    threads: int = 1
    device: str | None = None

    @property
    def folder(self) -> Path:
        """The trained checkpoint. While the run is in progress, its `.partial` folder exists."""
        return self.work / self.run.key

    @property
    def prepared(self) -> Path:
        """The prepared checkpoint, which other jobs may share."""
        return self.work / f"{PREPARED}{self.run.prepared_key}"

    @property
    def stop_file(self) -> Path:
        """If this file exists, the run saves a checkpoint and stops."""
        return self.work / STOP

    def crashed(self, error: str) -> RunRecord:
        """Return the record of the run if it ends with an error that is no result."""
        run = self.run
        return RunRecord(
            key=run.key,
            task=run.task,
            arm=run.arm,
            seeds=run.seeds,
            status=CRASHED,
            prepare=run.prepare,
            train=run.train,
            commands=run.commands,
            metric=run.metric or "",
            lower_is_better=False,
            score=None,
            chance=0.0,
            threads=self.threads,
            attempt=self.attempt,
            error=error,
        )


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        job: The job.
        record: The record of the run; None if it was asked to stop, or if its worker was lost.
        error: How the worker was lost; None if it was not.
    """

    job: Job
    record: RunRecord | None
    error: str | None = None


class Engine(Protocol):
    """Runs jobs. All bookkeeping is the caller's.

    Attributes:
        workers: Number of jobs to keep in flight.
    """

    workers: int

    def submit(self, job: Job) -> None:
        """Start a job. No more than `workers` jobs are in flight."""

    def wait(self, timeout: float) -> list[Outcome]:
        """Return the jobs that have ended since the last call, after so many seconds at most."""

    def close(self) -> None:
        """End the workers. Jobs in flight are lost."""
