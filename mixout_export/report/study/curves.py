"""Draw the training curves of all runs of a task, a row for each arm."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from mixout_export.plotting import BAD, MUTED, new_figure, simplify
from mixout_export.report.study.scores import WIDTH, add_legend
from mixout_export.report.study.series import ArmSeries, TaskSeries, wrapped
from mixout_export.study.records import RunRecord
from mixout_export.training.curves import series

#: Points of a curve at most. More cannot be told apart at this size.
_POINTS = 100

#: A metric is drawn if a run has more evaluations than the first and the last.
_EVALUATIONS = 3

#: Characters of a line above the panels of an arm.
_TITLE = 74


def _thinned(steps: Sequence[int], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return at most 100 points: the means of equally many neighbors."""
    size = math.ceil(len(steps) / _POINTS) or 1
    starts = range(0, len(steps), size)
    parts = [(steps[s : s + size], values[s : s + size]) for s in starts]
    return [sum(x) / len(x) for x, _ in parts], [sum(y) / len(y) for _, y in parts]


def _points(run: RunRecord, key: str) -> tuple[list[float], list[float]]:
    """Return a curve of a run without values that are not numbers."""
    steps, values = series(run.curve, key)
    known = [(x, y) for x, y in zip(steps, values, strict=True) if math.isfinite(y)]
    return _thinned([x for x, _ in known], [y for _, y in known])


def has_curves(task: TaskSeries) -> bool:
    """Return whether a run of the task has a curve."""
    return any(_points(run, "loss")[0] for arm in task.shown for run in arm.ended)


def _is_evaluated(task: TaskSeries) -> bool:
    key = f"eval_{task.metric}"
    numbers = [len(_points(run, key)[0]) for arm in task.shown for run in arm.ended]
    return max(numbers, default=0) >= _EVALUATIONS


def _limits(task: TaskSeries, key: str) -> tuple[float, float] | None:
    """Return limits that show all curves, except the peaks of failed runs if others exist."""
    curves = [(run.failed, _points(run, key)[1]) for arm in task.shown for run in arm.ended]
    sound = [value for failed, values in curves if not failed for value in values]
    shown = [value for _, values in curves for value in values]
    if sound:
        room = 0.5 * (max(sound) - min(sound))
        shown = [min(max(v, min(sound) - room), max(sound) + room) for v in shown]
    if not shown:
        return None
    margin = 0.06 * (max(shown) - min(shown)) or 0.1
    return min(shown) - margin, max(shown) + margin


def _draw_arm(axes: Axes, arm: ArmSeries, key: str) -> None:
    """Draw the curve of each run. Failed runs are dashed and end in a cross."""
    for run in sorted(arm.ended, key=lambda run: run.failed):
        steps, values = _points(run, key)
        color = BAD if run.failed else arm.look.color
        axes.plot(
            steps,
            values,
            color=color,
            linewidth=1.1 if run.failed else 0.9,
            linestyle=(0, (3, 1.5)) if run.failed else "-",
            alpha=0.9 if run.failed else 0.65,
            label="failed" if run.failed else "run",
        )
        if run.failed and steps:
            axes.plot(steps[-1], values[-1], "x", color=BAD, markersize=5, markeredgewidth=1.4)


def draw_training_curves(task: TaskSeries) -> Figure:
    """Draw the training loss of all runs, and the metric if it was measured several times."""
    keys = ["loss", *([f"eval_{task.metric}"] if _is_evaluated(task) else [])]
    names = ["training loss", task.metric.replace("_", " ")]
    rows = len(task.shown)
    figure = new_figure(WIDTH, 0.75 + 1.35 * rows)
    panels = figure.subplots(rows, len(keys), squeeze=False, sharex=True)
    for column, key in enumerate(keys):
        limits = _limits(task, key)
        for row, arm in enumerate(task.shown):
            axes = panels[row, column]
            _draw_arm(axes, arm, key)
            if key != "loss":
                axes.axhline(task.chance, color=MUTED, linestyle=(0, (4, 3)), linewidth=1.0)
            if limits is not None:
                axes.set_ylim(*limits)
            axes.set_xlim(left=0)
            axes.set_ylabel(names[column])
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            simplify(axes)
            if column == 0:
                axes.set_title(wrapped(arm.name, _TITLE), loc="left", fontsize=9)
        panels[-1, column].set_xlabel("step")
    if any(run.failed for arm in task.shown for run in arm.ended):
        dashes = (0, (3, 1.5))
        failed = Line2D([], [], color=BAD, linestyle=dashes, marker="x", markeredgewidth=1.4)
        add_legend(figure, [(failed, "failed run")], above=True)
    return figure
