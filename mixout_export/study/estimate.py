"""How long the runs that are left will take, from those that are done."""

from collections.abc import Iterable, Sequence
from statistics import fmean

from mixout_export.study.records import DONE, RunRecord
from mixout_export.study.runs import Run


def seconds_left(
    runs: Sequence[Run], records: Iterable[RunRecord], *, workers: int
) -> float | None:
    """Return the seconds that runs will take; None if nothing like them has been done.

    A run takes as long as the finished runs of its task and arm, else as those of its task, else
    as all.

    Args:
        runs: The runs that are left.
        records: Finished runs.
        workers: Number of runs at the same time.
    """
    done = [record for record in records if record.status == DONE and record.seconds]
    if not done:
        return None if runs else 0.0

    def mean(chosen: list[RunRecord]) -> float | None:
        return fmean(record.seconds for record in chosen) if chosen else None

    by_pair = {
        pair: [r for r in done if (r.task, r.arm) == pair]
        for pair in {(run.task, run.arm) for run in runs}
    }
    total = sum(
        mean(by_pair[run.task, run.arm])
        or mean([record for record in done if record.task == run.task])
        or mean(done)
        or 0.0
        for run in runs
    )
    return total / min(workers, max(len(runs), 1))
