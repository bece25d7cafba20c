"""A live display of a training run."""

import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from mixout_export_cli.output import Output


class TrainingDisplay:
    """Shows loss, metric, examples per second and time left; quiet when not a terminal.

    Args:
        output: Where the command's words go.
        metric: Name of the metric to show; None shows the task's first.
    """

    def __init__(self, output: Output, metric: str | None = None) -> None:
        self._output, self._metric = output, metric
        self._live = output.shows_progress
        self._progress = Progress(
            TextColumn("train"),
            BarColumn(bar_width=None),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[shown]}"),
            TimeRemainingColumn(compact=True),
            console=Console(stderr=True),
            disable=not self._live,
            transient=True,
        )
        self._task: TaskID | None = None
        self._examples, self._since = 0, time.monotonic()
        self._loss: float | None = None
        self._latest = ""

    def started(self, *, updates: int, done: int, examples: int) -> None:
        """Start the bar."""
        if done:
            self._output.note(f"resumed at update {done} of {updates}")
        self._task = self._progress.add_task("train", total=updates, completed=done, shown="")
        self._progress.start()
        self._since = time.monotonic()

    def updated(self, *, step: int, examples: int, loss: float | None) -> None:
        """Advance the bar."""
        self._examples += examples
        if loss is not None:
            self._loss = loss if self._loss is None else 0.9 * self._loss + 0.1 * loss
        if not self._live or self._task is None:
            return
        rate = self._examples / max(time.monotonic() - self._since, 1e-9)
        shown = "" if self._loss is None else f"loss {self._loss:.3f}"
        shown += f" {self._latest} {rate:.0f}/s"
        self._progress.update(self._task, completed=step, shown=shown)

    def evaluated(self, *, step: int, metrics: Mapping[str, float]) -> None:
        """Say what an evaluation found."""
        name = self._metric
        if name is None or name not in metrics:
            name = next(key for key in metrics if key != "loss")
        self._latest = f"{name} {metrics[name]:.3f}"
        line = f"update {step}: loss {metrics['loss']:.4f}, {name} {metrics[name]:.4f}"
        if self._live:
            self._progress.console.print(line, highlight=False)
        else:
            self._output.note(line)

    def saved(self, *, step: int, path: Path) -> None:
        """Say nothing: checkpoints are in the folder."""

    def finished(self) -> None:
        """Stop the bar."""
        self._progress.stop()

    def __enter__(self) -> "TrainingDisplay":
        return self

    def __exit__(self, *_: object) -> None:
        self.finished()
