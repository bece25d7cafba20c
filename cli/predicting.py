"""How `predict` is shown while it goes on."""

import time

from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn

from mixout_export.stages.predict import PredictionObserver
from mixout_export_cli.output import Output, duration
from mixout_export_cli.progress import INTERVAL, LiveBar


class PredictionDisplay(PredictionObserver):
    """Shows rows, speed and time left on stderr: a live bar, or lines without a terminal.

    Args:
        output: Where the command writes.
        interval: Seconds between two lines without a terminal.
    """

    def __init__(self, output: Output, *, interval: float = INTERVAL) -> None:
        self._output, self._interval = output, interval
        self._bar = LiveBar(
            output,
            TextColumn("{task.description} {task.completed:,.0f} rows"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
        )
        self._task: TaskID | None = None
        self._rows, self._done = 0, 0.0
        self._since = self._said = time.monotonic()

    def checking(self, *, rows: int) -> None:
        """Show how many rows were checked."""
        if self._task is None:
            self._task = self._bar.add_task("checked", total=None, speed="")
            self._bar.start()
        self._bar.update(self._task, completed=rows)
        self._say(f"checked {rows:,} rows")

    def started(self, *, rows: int) -> None:
        """Start counting predicted rows."""
        self._rows, self._since = rows, time.monotonic()
        if self._task is not None:
            self._bar.reset(self._task, description="predicted", total=rows, completed=0)

    def advanced(self, rows: float) -> None:
        """Advance the bar, or write a line if the last one is old enough."""
        self._done += rows
        speed = self._done / max(time.monotonic() - self._since, 1e-9)
        if self._task is not None:
            self._bar.update(self._task, completed=self._done, speed=f"{speed:,.0f} rows/s")
        left = duration((self._rows - self._done) / max(speed, 1e-9))
        self._say(
            f"predicted {self._done:,.0f} of {self._rows:,} rows, {speed:,.0f} rows/s, {left} left"
        )

    def _say(self, line: str) -> None:
        if self._output.shows_progress or time.monotonic() - self._said < self._interval:
            return
        self._said = time.monotonic()
        self._output.note(line)

    def __enter__(self) -> "PredictionDisplay":
        return self

    def __exit__(self, *_: object) -> None:
        if self._output.shows_progress:
            self._bar.stop()
