"""How long the runs that are left will take."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from mixout_export.study.records import DONE, RunRecord
from mixout_export.study.runs import Run

_EPOCHS = 3.0


@dataclass(frozen=True)
class Trial:
    """What the first steps of a run took.

    Attributes:
        fixed: Seconds that a run of any length takes: preparing, loading, and writing the result.
        loop: Seconds of all its steps, evaluations and checkpoints.
        epochs: Number of its epochs, or of its steps if `max-steps` limits them.
    """

    fixed: float
    loop: float
    epochs: float


def length_of(run: Run) -> float:
    """Return the number of epochs of a run, or of its steps if `max-steps` limits them."""
    return float(run.train.get("max_steps") or run.train.get("epochs", _EPOCHS))


class Estimate:
    """Estimates the seconds of runs.

    A run takes as long as the finished runs of its task and arm, else as those of its task, else
    what the trial of its task says, else as all finished runs.

    Args:
        records: Records under the plan's names.
        trials: Task → its trial.
    """

    def __init__(
        self, records: Iterable[RunRecord], trials: Mapping[str, Trial] | None = None
    ) -> None:
        groups: dict[tuple[str, ...], list[float]] = {}
        for record in records:
            if record.status == DONE and record.seconds:
                for group in ((record.task, record.arm), (record.task,), ()):
                    groups.setdefault(group, []).append(record.seconds)
        self._means = {group: fmean(seconds) for group, seconds in groups.items()}
        self._trials = trials or {}

    def has_task(self, name: str) -> bool:
        """Return whether a run of a task has been finished."""
        return (name,) in self._means

    def seconds(self, run: Run) -> float | None:
        """Return the seconds of a run; None if nothing like it has been done."""
        for group in ((run.task, run.arm), (run.task,)):
            if group in self._means:
                return self._means[group]
        trial = self._trials.get(run.task)
        if trial is not None:
            return trial.fixed + trial.loop * length_of(run) / trial.epochs
        return self._means.get(())

    def left(self, runs: Sequence[Run], *, workers: int) -> float | None:
        """Return the seconds until all runs are done; None if nothing like them has been done.

        Args:
            runs: The runs that are left.
            workers: Number of runs at the same time.
        """
        total = 0.0
        for run in runs:
            seconds = self.seconds(run)
            if seconds is None:
                return None
            total += seconds
        return total / min(workers, max(len(runs), 1))
