"""A live display of a training run."""

import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from mixout_export_cli.output import Output

#: Weight of the newest loss in the loss that is shown, a moving average.
_NEWEST = 0.1

#: Columns below which units are abbreviated.
_NARROW = 60


class _Bar(Progress):
    """A bar with the time left, and a line below it that is cut rather than wrapped."""

    below = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        """Return the two lines."""
        yield self.make_tasks_table(self.tasks)
        yield Text(self.below, no_wrap=True, overflow="ellipsis")


class TrainingDisplay:
    """Shows loss, metric, examples per second and time left; quiet when not a terminal.

    Args:
        output: Where the command's words go.
        metric: Name of the metric to show; None shows the task's first.
        evaluations: Whether to say what an evaluation found even where there is no terminal.
    """

    def __init__(
        self, output: Output, metric: str | None = None, *, evaluations: bool = False
    ) -> None:
        self._output, self._metric, self._evaluations = output, metric, evaluations
        self._live = output.shows_progress
        self._bar = _Bar(
            TextColumn("update {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=None),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=Console(stderr=True),
            disable=not self._live,
            expand=True,
            transient=True,
        )
        self._task: TaskID | None = None
        self._examples, self._since = 0, time.monotonic()
        self._loss: float | None = None
        self._latest = ""

    def started(self, *, updates: int, done: int, examples: int) -> None:
        """Start the bar."""
        if done:
            self._say(f"resumed at update {done} of {updates}")
        self._task = self._bar.add_task("train", total=updates, completed=done)
        self._bar.start()
        self._since = time.monotonic()

    def updated(self, *, step: int, examples: int, loss: float | None) -> None:
        """Advance the bar."""
        self._examples += examples
        if loss is not None:
            self._loss = loss if self._loss is None else self._loss + _NEWEST * (loss - self._loss)
        if self._task is None:
            return
        rate = self._examples / max(time.monotonic() - self._since, 1e-9)
        shown = "" if self._loss is None else f"loss {self._loss:.3f}"
        unit = "examples/s" if self._bar.console.width >= _NARROW else "ex/s"
        parts = (shown, self._latest, f"{rate:.0f} {unit}")
        self._bar.below = "  ".join(part for part in parts if part)
        self._bar.update(self._task, completed=step)

    def evaluated(self, *, step: int, metrics: Mapping[str, float]) -> None:
        """Say what an evaluation found."""
        name = self._metric
        if name is None or name not in metrics:
            name = next(key for key in metrics if key != "loss")
        self._latest = f"{name} {metrics[name]:.3f}"
        self._say(f"update {step}: loss {metrics['loss']:.4f}, {name} {metrics[name]:.4f}")

    def _say(self, line: str) -> None:
        if self._live:
            self._bar.console.print(line, highlight=False, markup=False)
        elif self._evaluations:
            self._output.note(line)

    def saved(self, *, step: int, path: Path) -> None:
        """Say nothing: checkpoints are in the folder."""

    def finished(self) -> None:
        """Stop the bar."""
        if self._live:  # rich before 14 ends a bar that it never showed with an empty line
            self._bar.stop()

    def __enter__(self) -> "TrainingDisplay":
        return self

    def __exit__(self, *_: object) -> None:
        self.finished()
