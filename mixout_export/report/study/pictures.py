"""All pictures of a study: as files, and as parts of its page."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from markupsafe import Markup
from matplotlib.figure import Figure

from mixout_export.files.output import replaced_file
from mixout_export.plotting import as_png, as_svg, drawing
from mixout_export.printable import printable
from mixout_export.report.study import against_p, curves, scores
from mixout_export.report.study.inline import inline
from mixout_export.report.study.series import TaskSeries
from mixout_export.report.words import duration, score
from mixout_export.study.summary import ArmSummary, Estimate

#: Begins the name of the picture of all tasks.
_ALL = "all-tasks"

#: Characters of the part of a file name that a task's name gives.
_LONGEST_SLUG = 60


@dataclass(frozen=True)
class Picture:
    """One picture on the page.

    Attributes:
        name: Name of its files without the suffix.
        caption: What it shows, and how to read it.
        svg: The picture, with its text alternative.
    """

    name: str
    caption: str
    svg: Markup


@dataclass(frozen=True)
class _Kind:
    """One kind of picture. `has` tells whether a task has anything to show in it."""

    name: str
    caption: str
    draw: Callable[[TaskSeries], Figure]
    has: Callable[[TaskSeries], object]
    describe: Callable[[TaskSeries], Iterator[str]]


def _describe_scores(task: TaskSeries) -> Iterator[str]:
    for arm in task.shown:
        failed = sum(run.failed for run in arm.ended)
        mean = arm.summary.mean
        said = "no mean" if mean is None else f"mean {score(mean.value)}"
        yield f"{arm.name}: {said} of {len(arm.ended)} runs, {failed} failed"
    yield f"chance level: {score(task.chance)}"


def _describe_expected_best(task: TaskSeries) -> Iterator[str]:
    for arm in scores.timed_arms(task):
        best, seconds = arm.summary.expected_best, arm.summary.training_seconds or 0.0
        yield (
            f"{arm.name}: {score(best[0])} with one run ({duration(seconds)}), "
            f"{score(best[-1])} with {len(best)} runs ({duration(len(best) * seconds)})"
        )


def _describe_sweeps(
    found: Sequence[against_p.Sweep], of_arm: Callable[[ArmSummary], Estimate | None]
) -> Iterator[str]:
    for sweep in found:
        means = ((arm.p, of_arm(arm.summary)) for arm in sweep)
        yield ", ".join(f"p {p:g}: mean {score(mean.value)}" for p, mean in means if mean)


def _describe_curves(task: TaskSeries) -> Iterator[str]:
    for arm in task.shown:
        yield f"{arm.name}: {len(arm.ended)} runs, {sum(run.failed for run in arm.ended)} failed"


_KINDS = (
    _Kind(
        "scores",
        "Scores of all runs. A point is a run, a cross is a failed run. The box spans the middle "
        "half of the runs, the line in it is the median.",
        lambda task: scores.draw_scores([task]),
        lambda task: task.shown,
        _describe_scores,
    ),
    _Kind(
        "expected-best",
        "Expected score if you run several seeds and keep the best, against the training time of "
        "these runs. For a given time, the arm with the higher curve is the better choice.",
        scores.draw_expected_best,
        scores.timed_arms,
        _describe_expected_best,
    ),
    _Kind(
        "score-against-p",
        "Score against the mix probability p, for arms that differ only in p. The line connects "
        "the means, the bars are their 95 % intervals.",
        against_p.draw_score_against_p,
        against_p.score_sweeps,
        lambda task: _describe_sweeps(against_p.score_sweeps(task), lambda arm: arm.mean),
    ),
    _Kind(
        "distance-against-p",
        "Distance of the trained weights w from the pretrained weights u against the mix "
        "probability p. The line connects the means, the bars are their 95 % intervals.",
        against_p.draw_distance_against_p,
        against_p.distance_sweeps,
        lambda task: _describe_sweeps(against_p.distance_sweeps(task), lambda arm: arm.distance),
    ),
    _Kind(
        "training-curves",
        "Training curves of all runs. A failed run is dashed and ends in a cross.",
        curves.draw_training_curves,
        curves.has_curves,
        _describe_curves,
    ),
)


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower())[:_LONGEST_SLUG].strip("-") or "task"


def _slugs(tasks: Sequence[TaskSeries]) -> list[str]:
    """Return a part of a file name for each task. No two are equal."""
    found = [_ALL]
    for task in tasks:
        name = _slug(task.name)
        number = 2
        while name in found:
            name = f"{_slug(task.name)}-{number}"
            number += 1
        found.append(name)
    return found[1:]


def _caption(kind: _Kind, task: TaskSeries) -> str:
    if kind.name == "expected-best" and task.lower_is_better:
        return kind.caption.replace("the higher curve", "the lower curve")
    return kind.caption


def _picture(
    draw: Callable[[], Figure], folder: Path, name: str, caption: str, described: Iterator[str]
) -> Picture:
    """Draw one picture and write its files."""
    with drawing(name):
        figure = draw()
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # the layout is done once for both formats
        svg, png = as_svg(figure), as_png(figure)
    for suffix, content in ((".svg", svg.encode()), (".png", png)):
        with replaced_file(folder / f"{name}{suffix}") as new:
            new.write_bytes(content)
    title = f"{caption.split('. ')[0].rstrip('.')}. {'; '.join(described)}."
    return Picture(name, caption, inline(svg, printable(title)))


def _overview(tasks: Sequence[TaskSeries], folder: Path) -> Picture | None:
    """Draw the scores on all tasks as one picture; None for a single task."""
    shown = [task for task in tasks if task.shown]
    if len(shown) < 2:
        return None
    described = (f"{task.name}: {said}" for task in shown for said in _describe_scores(task))
    caption = _KINDS[0].caption.replace("all runs", "all runs on all tasks")
    return _picture(
        lambda: scores.draw_scores(shown), folder, f"{_ALL}-{_KINDS[0].name}", caption, described
    )


@dataclass(frozen=True)
class StudyPictures:
    """All pictures of a study.

    Attributes:
        overview: The scores on all tasks; None for a single task.
        tasks: The pictures of each task.
    """

    overview: Picture | None
    tasks: Sequence[Sequence[Picture]]


def draw_pictures(tasks: Sequence[TaskSeries], folder: Path) -> StudyPictures:
    """Draw the pictures of a study, and write them as PNG and SVG.

    A picture that has nothing to show is not drawn. Pictures of tasks that are not in the plan
    anymore are removed.

    Args:
        tasks: The tasks.
        folder: The folder of the files. It is created if it does not exist.
    """
    folder.mkdir(exist_ok=True)
    drawn = StudyPictures(
        _overview(tasks, folder),
        [
            [
                _picture(
                    partial(kind.draw, task), folder, f"{slug}-{kind.name}",
                    _caption(kind, task), (f"{task.name}, {said}" for said in kind.describe(task)),
                )
                for kind in _KINDS
                if kind.has(task)
            ]
            for slug, task in zip(_slugs(tasks), tasks, strict=True)
        ],
    )  # fmt: skip
    names = {picture.name for pictures in drawn.tasks for picture in pictures}
    if drawn.overview is not None:
        names.add(drawn.overview.name)
    endings = tuple(f"-{kind.name}" for kind in _KINDS)
    for path in folder.iterdir():
        ours = path.suffix in (".png", ".svg") and path.stem.endswith(endings)
        if ours and path.stem not in names:
            path.unlink()
    return drawn
