"""Draw scores (Figure 4 of the paper) and distances against the mix probability."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mixout_export.plotting import BAD, MUTED, new_figure, simplify
from mixout_export.report.study.scores import WIDTH, add_legend, legend_lines
from mixout_export.report.study.series import (
    ArmSeries,
    TaskSeries,
    drawn_score,
    finite,
    sweeps,
    wrapped,
)
from mixout_export.study.records import RunRecord
from mixout_export.study.summary import ArmSummary, Estimate

#: Fewer values of p show no tendency.
_SWEEP = 3

Sweep = tuple[ArmSeries, ...]


@dataclass(frozen=True)
class _Quantity:
    """What is drawn: its value in a run, and its mean in an arm."""

    of_run: Callable[[RunRecord], float | None]
    of_arm: Callable[[ArmSummary], Estimate | None]


_SCORE = _Quantity(drawn_score, lambda arm: arm.mean)
_DISTANCE = _Quantity(lambda run: run.distance, lambda arm: arm.distance)


def score_sweeps(task: TaskSeries) -> list[Sweep]:
    """Return the groups of arms that differ only in p and have at least three values of it."""
    return [sweep for sweep in sweeps(task) if len(sweep) >= _SWEEP]


def distance_sweeps(task: TaskSeries) -> list[Sweep]:
    """Return the groups of arms that differ only in p; none if all arms have the same p."""
    measured = (
        tuple(arm for arm in sweep if arm.summary.distance is not None) for sweep in sweeps(task)
    )
    known = [sweep for sweep in measured if sweep]
    return known if len({arm.p for sweep in known for arm in sweep}) > 1 else []


def _draw_sweep(axes: Axes, sweep: Sweep, quantity: _Quantity, shift: float) -> Line2D:
    """Draw the runs as points, and the means with their intervals. Return the line of means."""
    look = sweep[0].look
    means = []
    for arm in sweep:
        for failed in (False, True):
            values = finite([quantity.of_run(run) for run in arm.ended if run.failed == failed])
            axes.plot(
                [arm.p + shift] * len(values),
                values,
                "x" if failed else look.marker,
                color=BAD if failed else look.color,
                markersize=5 if failed else 4,
                markeredgewidth=1.4 if failed else 0.0,
                alpha=0.9 if failed else 0.45,
                label="failed" if failed else "run",
            )
        mean = quantity.of_arm(arm.summary)
        if mean is not None:
            means.append((arm.p + shift, mean.value))
            if mean.low is not None and mean.high is not None:
                axes.vlines(arm.p + shift, mean.low, mean.high, color=look.color, linewidth=1.6)
    (line,) = axes.plot(
        *zip(*means, strict=True),
        color=look.color,
        marker=look.marker,
        markersize=6,
        linestyle=look.dashes,
        linewidth=1.6,
        label="mean",
    )
    return line


def _draw_against_p(
    found: Sequence[Sweep], quantity: _Quantity
) -> tuple[Figure, Axes, list[tuple[Line2D, str]]]:
    """Draw groups of arms against p; also return what the legend explains."""
    names = [wrapped(", ".join(arm.name for arm in sweep), 60) for sweep in found]
    lines = legend_lines(names) if len(found) > 1 else 1
    figure = new_figure(WIDTH, 3.0 + 0.14 * lines)
    axes = figure.subplots()
    marks = []
    for number, sweep in enumerate(found):
        shift = 0.006 * (number - (len(found) - 1) / 2)  # equal p stay apart
        line = _draw_sweep(axes, sweep, quantity, shift)
        marks.append((line, names[number] if len(found) > 1 else "mean, 95 % interval"))
    if any(run.failed for sweep in found for arm in sweep for run in arm.ended):
        cross = Line2D([], [], marker="x", color=BAD, linestyle="", markeredgewidth=1.4)
        marks.append((cross, "failed run"))
    axes.set_xlabel("mix probability p")
    axes.set_xticks(sorted({arm.p for sweep in found for arm in sweep}))
    axes.xaxis.set_major_formatter("{x:g}")
    simplify(axes)
    return figure, axes, marks


def draw_score_against_p(task: TaskSeries) -> Figure:
    """Draw the score of each run against p, and the mean of each arm."""
    figure, axes, marks = _draw_against_p(score_sweeps(task), _SCORE)
    chance = axes.axhline(task.chance, color=MUTED, linestyle=(0, (4, 3)), linewidth=1.2, zorder=1)
    axes.set_ylabel(task.score_label)
    add_legend(figure, [*marks, (chance, "chance level")])
    return figure


def draw_distance_against_p(task: TaskSeries) -> Figure:
    """Draw how far each run moved from the pretrained weights against p."""
    figure, axes, marks = _draw_against_p(distance_sweeps(task), _DISTANCE)
    axes.set_ylabel("distance ‖w − u‖")
    axes.set_ylim(bottom=0)
    add_legend(figure, marks)
    return figure
