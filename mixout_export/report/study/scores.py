"""Draw the scores of all runs (Figure 3 of the paper), and the expected best of several runs."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from mixout_export.plotting import BAD, INK, MUTED, new_figure, simplify
from mixout_export.report.study.series import ArmSeries, TaskSeries, drawn_score, wrapped

#: Width of all pictures of a study, in inches.
WIDTH = 5.6

_DASHED = (0, (4, 3))

#: A box needs this many runs: fewer have no quartiles.
_BOX = 4

#: Golden ratio. Its multiples spread points evenly, however many there are.
_GOLDEN = 0.6180339887

#: Characters that fit into the width of a legend, and those that a mark takes.
_LEGEND, _MARK = 92, 7


def _spread(number: int) -> list[float]:
    """Return offsets in [-0.2, 0.2] that keep points of a row apart."""
    return [0.4 * ((0.5 + n * _GOLDEN) % 1) - 0.2 for n in range(number)]


def draw_scores(tasks: Sequence[TaskSeries]) -> Figure:
    """Draw a panel for each task: a row for each arm with a box, its runs and its mean.

    A run is a point, and a failed one a cross. Several tasks are in two columns with the same rows.
    """
    several = len(tasks) > 1
    arms = tasks[0].arms if several else tasks[0].shown
    height = 0.5 * sum(1 + 0.35 * arm.label.count("\n") for arm in arms)
    columns, rows = (2, -(-len(tasks) // 2)) if several else (1, 1)
    figure = new_figure(WIDTH, 0.4 + rows * (0.75 + height * (0.75 if several else 1)))
    panels = [*figure.subplots(rows, columns, squeeze=False, sharey=True).flat]
    for axes, task in zip(panels, tasks, strict=False):
        _draw_panel(axes, task, [arm.name for arm in arms])
        if several:
            axes.set_title(wrapped(task.name, 40), loc="left", fontsize=9)
    for axes in panels[len(tasks) :]:
        axes.set_visible(False)
    panels[0].set_yticks(range(len(arms)), [arm.label for arm in arms])
    panels[0].set_ylim(len(arms) - 0.4, -0.6)
    _add_legend(figure, tasks)
    return figure


def _draw_panel(axes: Axes, task: TaskSeries, names: Sequence[str]) -> None:
    """Draw the arms of a task, each in the row of its name."""
    axes.axvline(task.chance, color=MUTED, linestyle=_DASHED, linewidth=1.2, zorder=1)
    for arm in task.shown:
        _draw_row(axes, names.index(arm.name), arm)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(task.score_label)
    axes.margins(x=0.04)
    simplify(axes)
    axes.grid(visible=False, axis="y")


def _draw_row(axes: Axes, row: int, arm: ArmSeries) -> None:
    scores = [drawn_score(run) for run in arm.ended]
    color = arm.look.color
    if len(scores) >= _BOX:
        edge = {"color": color, "linewidth": 1.0}
        axes.boxplot(
            [scores],
            positions=[row - 0.06],
            widths=0.5,
            orientation="horizontal",
            showfliers=False,
            patch_artist=True,
            boxprops={**edge, "facecolor": f"{color}22"},
            medianprops={**edge, "linewidth": 2.0},
            whiskerprops=edge,
            capprops=edge,
            manage_ticks=False,
            zorder=2,
        )
    offsets = _spread(len(scores))
    for failed in (False, True):
        found = [
            (drawn_score(run), row - 0.06 + offset)
            for run, offset in zip(arm.ended, offsets, strict=True)
            if run.failed == failed
        ]
        if found:
            mark = "x" if failed else "o"
            axes.plot(
                *zip(*found, strict=True),
                mark,
                color=BAD if failed else color,
                markersize=6 if failed else 4.5,
                markeredgewidth=1.6 if failed else 0.0,
                alpha=1.0 if failed else 0.75,
                label="failed" if failed else "run",
                zorder=3,
            )
    mean = arm.summary.mean
    if mean is not None:
        y = row + 0.31
        if mean.low is not None and mean.high is not None:
            axes.plot([mean.low, mean.high], [y, y], color=INK, linewidth=1.4, zorder=4)
        axes.plot([mean.value], [y], "D", color=INK, markersize=4.5, label="mean", zorder=4)


def _add_legend(figure: Figure, tasks: Sequence[TaskSeries]) -> None:
    """Explain the marks that are there."""
    marks: list[tuple[Line2D, str]] = []
    arms = [arm for task in tasks for arm in task.shown]
    runs = [run for arm in arms for run in arm.ended]
    if any(not run.failed for run in runs):
        marks.append((Line2D([], [], marker="o", color=MUTED, linestyle="", markersize=4.5), "run"))
    if any(run.failed for run in runs):
        cross = Line2D([], [], marker="x", color=BAD, linestyle="", markeredgewidth=1.6)
        marks.append((cross, "failed run"))
    whole = any(arm.summary.mean is not None and arm.summary.mean.low is not None for arm in arms)
    diamond = Line2D([], [], marker="D", color=INK, markersize=4.5, linestyle="-" if whole else "")
    marks.append((diamond, "mean, 95 % interval" if whole else "mean"))
    level = f" ({tasks[0].chance:.3g})" if len(tasks) == 1 else ""
    dashed = Line2D([], [], color=MUTED, linestyle=_DASHED, linewidth=1.2)
    marks.append((dashed, f"chance level{level}"))
    add_legend(figure, marks, above=True)


def legend_columns(labels: Sequence[str]) -> int:
    """Return in how many columns a legend fits into the width of a picture."""
    widths = [_MARK + max(map(len, label.split("\n"))) for label in labels]
    return len(labels) if sum(widths) <= _LEGEND else max(1, _LEGEND // max(widths))


def legend_lines(labels: Sequence[str]) -> int:
    """Return how many lines of text a legend takes."""
    tallest = max(1 + label.count("\n") for label in labels)
    return tallest * -(-len(labels) // legend_columns(labels))


def add_legend(figure: Figure, marks: Sequence[tuple[Line2D, str]], *, above: bool = False) -> None:
    """Explain the marks above or below the axes."""
    figure.legend(
        [line for line, _ in marks],
        [label for _, label in marks],
        loc="outside upper left" if above else "outside lower left",
        ncols=legend_columns([label for _, label in marks]),
        fontsize=8,
    )


def time_unit(seconds: float) -> tuple[str, float]:
    """Return the unit in which a number of seconds is easy to read, and its length in seconds."""
    units = (("hours", 3600.0), ("minutes", 60.0))
    return next((unit for unit in units if seconds >= 2 * unit[1]), ("seconds", 1.0))


def timed_arms(task: TaskSeries) -> list[ArmSeries]:
    """Return the arms for which more than one run was done and timed."""
    return [
        arm
        for arm in task.shown
        if len(arm.summary.expected_best) > 1 and arm.summary.training_seconds
    ]


def draw_expected_best(task: TaskSeries) -> Figure:
    """Draw the expected best score of n runs against the seconds of n runs, a curve per arm."""
    curves = [
        (arm, arm.summary.expected_best, arm.summary.training_seconds or 0.0)
        for arm in timed_arms(task)
    ]
    unit, length = time_unit(max(len(best) * seconds for _, best, seconds in curves))
    figure = new_figure(WIDTH, 3.0 + 0.14 * legend_lines([arm.label for arm, _, _ in curves]))
    axes = figure.subplots()
    marks = []
    for arm, best, seconds in curves:
        (line,) = axes.plot(
            [n * seconds / length for n in range(1, len(best) + 1)],
            best,
            color=arm.look.color,
            marker=arm.look.marker,
            markersize=4,
            linestyle=arm.look.dashes,
            linewidth=1.5,
        )
        marks.append((line, arm.label))
    axes.set_xlabel(f"training time of 1, 2, … runs ({unit})")
    axes.set_ylabel(f"expected best {task.metric.replace('_', ' ')}")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(7))
    simplify(axes)
    add_legend(figure, marks)
    return figure
