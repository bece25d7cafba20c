"""How training runs and studies are shown while they go on."""

import time
from collections.abc import Iterable, Mapping
from datetime import timedelta
from pathlib import Path

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from mixout_export.printable import printable
from mixout_export.stages.study.observer import StudyObserver
from mixout_export.study.records import RunRecord
from mixout_export.training.records import Observer
from mixout_export_cli.output import Output, count_of, duration, human_size, last_line

#: Seconds between two lines where there is no terminal.
INTERVAL = 30.0

#: Weight of the newest loss in the loss that is shown, a moving average.
_NEWEST = 0.1

#: Columns below which units are abbreviated.
_NARROW = 60


class LiveBar(Progress):
    """A bar on stderr, shown only on a terminal, above a line that is truncated and not wrapped.

    Args:
        output: Where the command writes.
        columns: The columns of the bar.

    Attributes:
        below: The line; None without one.
    """

    below: str | None = None

    def __init__(self, output: Output, *columns: ProgressColumn) -> None:
        super().__init__(
            *columns,
            console=Console(stderr=True),
            disable=not output.shows_progress,
            expand=True,
            transient=True,
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        """Return the bar and the line, if there is one."""
        yield self.make_tasks_table(self.tasks)
        if self.below is not None:
            yield Text(self.below, no_wrap=True, overflow="ellipsis")


class TrainingDisplay(Observer):
    """Shows loss, metric, speed and time left on stderr: a live bar, or lines without a terminal.

    Args:
        output: Where the command writes.
        metric: Name of the metric to show. None shows the task's first.
        interval: Seconds between two lines without a terminal. Evaluations are always shown.
    """

    def __init__(
        self, output: Output, metric: str | None = None, *, interval: float = INTERVAL
    ) -> None:
        self._output, self._metric, self._interval = output, metric, interval
        self._live = output.shows_progress
        self._bar = LiveBar(
            output,
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=None),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
        )
        self._bar.below = ""
        self._task: TaskID | None = None
        self._steps = self._done = self._examples = 0
        self._since = self._said = time.monotonic()
        self._loss: float | None = None
        self._latest = ""
        self._checkpoint: int | None = None

    @property
    def wants_estimate(self) -> bool:  # type: ignore[override]
        """Whether the estimate would be seen."""
        return not self._output.quiet

    def noticed(self, note: str) -> None:
        """Write something that the user should know before the run."""
        self._output.note(f"note: {note}")

    def estimated(self, *, seconds: float, memory: int) -> None:
        """Write how long the run will take, and how much memory it needs."""
        needs = f"{duration(seconds)} and {human_size(memory)} of memory"
        self._say(self._done, f"the run needs about {needs}")

    def started(self, *, steps: int, done: int, examples: int) -> None:
        """Start the bar."""
        self._steps, self._done = steps, done
        if done:
            self._say(done, "resumed")
        elif not self._live:
            self._say(0, f"training on {count_of(examples, 'example')}")
        self._task = self._bar.add_task("train", total=steps, completed=done)
        self._bar.start()
        self._since = time.monotonic()

    def stepped(self, *, step: int, examples: int, loss: float | None) -> None:
        """Advance the bar, or write a line if the last one is old enough."""
        self._examples += examples
        if loss is not None:
            self._loss = loss if self._loss is None else self._loss + _NEWEST * (loss - self._loss)
        elapsed = max(time.monotonic() - self._since, 1e-9)
        narrow = self._live and self._bar.console.width < _NARROW
        training, last, unit = ("", "", "ex/s") if narrow else ("training ", "last ", "examples/s")
        shown = "" if self._loss is None else f"{training}loss {self._loss:.3f}"
        latest = self._latest and last + self._latest
        if self._live and self._task is not None:
            parts = (shown, latest, f"{self._examples / elapsed:.0f} {unit}")
            self._bar.below = "  ".join(part for part in parts if part)
            self._bar.update(self._task, completed=step)
        elif self._is_time():
            left = elapsed / (step - self._done) * (self._steps - step)
            saved = "" if self._checkpoint is None else f"saved step {self._checkpoint}"
            said = (shown, latest, saved, f"{timedelta(seconds=round(left))} left")
            self._say(step, ", ".join(part for part in said if part))

    def evaluated(self, *, step: int, metrics: Mapping[str, float]) -> None:
        """Write the evaluation's loss and metric."""
        name = self._metric
        if name is None or name not in metrics:
            name = next(key for key in metrics if key != "loss")
        self._latest = f"{name} {metrics[name]:.3f}"
        self._say(step, f"evaluation loss {metrics['loss']:.4f}, {name} {metrics[name]:.4f}")

    def saved(self, *, step: int, path: Path) -> None:
        """Write that a checkpoint is saved, without a terminal and if the last line is old."""
        self._checkpoint = step
        if not self._live and self._is_time():
            self._say(step, f"saved {path}")

    def _is_time(self) -> bool:
        return time.monotonic() - self._said >= self._interval

    def _say(self, step: int, text: str) -> None:
        line = f"step {step}/{self._steps}: {text}"
        self._said = time.monotonic()
        if self._live:
            self._bar.console.print(line, highlight=False, markup=False)
        else:
            self._output.note(line)

    def __enter__(self) -> "TrainingDisplay":
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:  # rich before 14 ends a bar that it never showed with an empty line
            self._bar.stop()


class StudyDisplay(StudyObserver):
    """Shows how a study goes on stderr: a live bar, and a line for each run that has ended.

    Args:
        output: Where the command writes.
    """

    def __init__(self, output: Output) -> None:
        self._output = output
        self._live = output.shows_progress
        self._runs = 0
        self._bar = LiveBar(
            output,
            TextColumn("run {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[left]}"),
        )
        self._task: TaskID | None = None

    def started(self, *, runs: int, done: int, seconds_left: float | None) -> None:
        """Say that the study has started, because its first run may take minutes; start the bar."""
        self._runs = runs
        left = _left(seconds_left)
        if done < runs:
            how = "resumed" if done else "started"
            self._say(f"run {done}/{runs}: {how}{left and ', ' + left}")
        self._task = self._bar.add_task("study", total=runs, completed=done, left=left)
        self._bar.start()

    def finished(self, record: RunRecord, *, done: int, seconds_left: float | None) -> None:
        """Write what came out of a run."""
        left = _left(seconds_left)
        if record.status == "done":
            score = "nan" if record.score is None else f"{record.score:.4f}"
            said = f"{record.metric} {score} in {record.seconds:.0f} s"
        elif record.status == "diverged":
            said = "diverged, which counts as failed"
        else:
            said = f"crashed: {last_line(record.error or '')}"
        name = f"{record.task}, {record.arm}, seed {record.seeds.masks}"
        beside = "" if self._live or not left else f", {left}"
        self._say(f"run {done}/{self._runs}: {name}: {said}{beside}")
        if self._task is not None:
            self._bar.update(self._task, completed=done, left=left)

    def _say(self, line: str) -> None:
        if self._live:
            self._bar.console.print(printable(line), highlight=False, markup=False)
        else:
            self._output.note(line)

    def __enter__(self) -> "StudyDisplay":
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._bar.stop()


def _left(seconds: float | None) -> str:
    """Return the time left in words; "" if it is unknown."""
    return "" if seconds is None else f"{duration(seconds)} left"
