"""Who is told how a study goes."""

from mixout_export.study.records import RunRecord


class StudyObserver:
    """Is told how a study goes, for example to display it. These methods do nothing."""

    def started(self, *, runs: int, done: int, seconds_left: float | None) -> None:
        """The study starts: number of runs, of those already done, and an estimate."""

    def finished(self, record: RunRecord, *, done: int, seconds_left: float | None) -> None:
        """A run has ended, or crashed."""
