"""What the pictures of a study show, read from matplotlib's artists."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import fromstring

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from study_records import crashed, curve, diverged, record, sweep

from mixout_export.plotting import COLORS, as_svg, drawing, look
from mixout_export.report.study.against_p import draw_distance_against_p, draw_score_against_p
from mixout_export.report.study.curves import draw_training_curves
from mixout_export.report.study.pictures import draw_pictures
from mixout_export.report.study.scores import draw_expected_best, draw_scores, time_unit
from mixout_export.report.study.series import TaskSeries, task_series, wrapped
from mixout_export.study.analysis import summarize
from mixout_export.study.records import RunRecord

ENDED = "scores", "expected-best", "score-against-p", "distance-against-p", "training-curves"


def series(records: Sequence[RunRecord], baseline: str = "plain") -> TaskSeries:
    arms = list(dict.fromkeys(r.arm for r in records))
    summary = summarize(records, tasks=[records[0].task], arms=arms, baseline=baseline)
    return task_series(summary.tasks[0], records)


def marked(axes: Axes, label: str) -> list[Line2D]:
    return [line for line in axes.lines if line.get_label() == label]


def number(axes: Axes, label: str) -> int:
    """Return how many points of a kind there are."""
    return sum(len(line.get_xdata()) for line in marked(axes, label))


@pytest.fixture(autouse=True)
def _house_style() -> Any:
    with drawing():
        yield


def test_each_run_is_a_point_and_failed_ones_are_crosses() -> None:
    task = series([*sweep(seeds=10), crashed("plain", 11), diverged("plain", 12)])
    (axes,) = draw_scores([task]).axes
    failed = sum(run.failed for arm in task.arms for run in arm.ended)
    assert failed > 1
    assert number(axes, "run") == 31 - failed
    assert number(axes, "failed") == failed
    assert {line.get_marker() for line in marked(axes, "failed")} == {"x"}
    scores = {run.score for run in task.arms[1].ended if not run.failed}
    drawn = {x for line in marked(axes, "run") for x in line.get_xdata()}
    assert scores <= drawn
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["plain", "mixout 0.5", "mixout 0.9"]
    assert axes.get_xlabel() == "matthews (higher is better)"


def test_means_have_their_intervals_and_the_chance_level_is_a_line() -> None:
    task = series(sweep("RTE", seeds=10, chance=0.2))
    (axes,) = draw_scores([task]).axes
    means = [line.get_xdata()[0] for line in marked(axes, "mean")]
    assert means == [arm.summary.mean.value for arm in task.arms if arm.summary.mean]
    first = task.arms[0].summary.mean
    assert first is not None
    assert any(list(line.get_xdata()) == [first.low, first.high] for line in axes.lines)
    assert any(list(line.get_xdata()) == [0.2, 0.2] for line in axes.lines)


@pytest.mark.parametrize(("seeds", "boxes"), [(1, 0), (3, 0), (4, 2)])
def test_a_box_needs_four_runs(seeds: int, boxes: int) -> None:
    task = series([record(arm=arm, seed=s) for arm in ("plain", "mixout") for s in range(seeds)])
    (axes,) = draw_scores([task]).axes
    assert len(axes.patches) == boxes


def test_expected_best_has_a_point_for_each_number_of_runs() -> None:
    task = series(sweep(seeds=6))
    (axes,) = draw_expected_best(task).axes
    for line, arm in zip(axes.lines, task.arms, strict=True):
        assert tuple(line.get_ydata()) == arm.summary.expected_best
        seconds = arm.summary.training_seconds or 0.0
        assert list(line.get_xdata()) == pytest.approx([n * seconds / 60 for n in range(1, 7)])
    assert axes.get_xlabel().endswith("(minutes)")


@pytest.mark.parametrize(
    ("seconds", "unit"), [(0.5, "seconds"), (119, "seconds"), (120, "minutes"), (7200, "hours")]
)
def test_times_have_a_unit_of_their_size(seconds: float, unit: str) -> None:
    assert time_unit(seconds)[0] == unit


def test_scores_stand_at_their_p() -> None:
    task = series(sweep(seeds=5))
    (axes,) = draw_score_against_p(task).axes
    (line,) = marked(axes, "mean")
    assert list(line.get_xdata()) == [0.0, 0.5, 0.9]
    assert list(line.get_ydata()) == [a.summary.mean.value for a in task.arms if a.summary.mean]
    assert number(axes, "run") + number(axes, "failed") == 15


def test_arms_that_differ_in_more_than_p_have_lines_of_their_own() -> None:
    decayed = [
        replace(r, arm=f"{r.arm} decayed", train={**r.train, "decay_toward": "pretrained"})
        for r in sweep(seeds=5)
    ]
    (axes,) = draw_distance_against_p(series([*sweep(seeds=5), *decayed])).axes
    first, second = marked(axes, "mean")
    assert first.get_color() != second.get_color()
    assert len(first.get_xdata()) == len(second.get_xdata()) == 3


def test_curves_of_all_runs_and_crosses_where_failed_ones_end() -> None:
    task = series([*sweep(seeds=6), diverged("plain", 7)])
    figure = draw_training_curves(task)
    assert [axes.get_ylabel() for axes in figure.axes] == ["training loss", "matthews"] * 3
    for row, arm in enumerate(task.arms):
        loss, metric = figure.axes[2 * row : 2 * row + 2]
        failed = sum(run.failed for run in arm.ended)
        assert len(marked(loss, "failed")) == failed
        assert len(marked(loss, "run")) == len(arm.ended) - failed
        ends = [line for line in loss.lines if line.get_marker() == "x"]
        assert len(ends) == failed
        assert len(marked(metric, "run")) == len(arm.ended) - failed
        assert loss.get_ylim()[1] < 1.5, "one run whose loss exploded hides no other"


def test_a_run_that_was_evaluated_once_has_no_curve_of_its_metric() -> None:
    points = [p for p in curve("matthews", 0.4) if "loss" in p or p["step"] in (0, 160)]
    task = series([record(curve=tuple(points))])
    assert [axes.get_ylabel() for axes in draw_training_curves(task).axes] == ["training loss"]


def test_long_curves_are_thinned_to_means() -> None:
    points = tuple({"step": s, "epoch": 0.0, "loss": float(s)} for s in range(1, 1001))
    (axes,) = draw_training_curves(series([record(curve=points)])).axes
    (line,) = marked(axes, "run")
    assert len(line.get_xdata()) == 100
    assert list(line.get_ydata()) == list(line.get_xdata())


def files_of(records: Sequence[RunRecord], folder: Path) -> list[str]:
    (pictures,) = draw_pictures([series(records, records[0].arm)], folder).tasks
    found = sorted(path.name for path in folder.iterdir())
    names = [picture.name for picture in pictures]
    assert found == sorted(f"{name}{suffix}" for name in names for suffix in (".png", ".svg"))
    return [name.removeprefix("cola-") for name in names]


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        (sweep(seeds=2), list(ENDED)),
        ([record()], ["scores", "training-curves"]),
        ([record(curve=())], ["scores"]),
        ([crashed()], []),
        ([record(distance=None), record(arm="mixout", prepare={"p": 0.7}, distance=2.0)],
         ["scores", "training-curves"]),
        ([record(), record(arm="mixout", prepare={"p": 0.7})],
         ["scores", "distance-against-p", "training-curves"]),
    ],
    ids=["all", "one run", "no curve", "nothing ended", "one distance", "two values of p"],
)  # fmt: skip
def test_a_picture_with_nothing_to_show_is_not_written(
    records: Sequence[RunRecord], expected: list[str], tmp_path: Path
) -> None:
    assert files_of(records, tmp_path) == expected


def test_odd_runs_are_drawn(tmp_path: Path) -> None:
    """No score, a loss that is not a number, negative scores, infinite values."""
    odd = [
        record(score=None),
        diverged(seed=1),
        record(seed=2, score=-0.4),
        record(seed=3, score=float("inf")),
        record(seed=4, distance=float("nan")),
        record(seed=5, curve=({"step": 1, "loss": float("nan")}, {"step": 2, "loss": None})),
    ]
    assert files_of(odd, tmp_path) == ["scores", "expected-best", "training-curves"]


def test_twelve_arms_with_long_names_are_drawn() -> None:
    names = [f"mixout {n} toward the pretrained weights, and with a $very_long^name" for n in range(12)]  # fmt: skip  # noqa: E501
    task = series([record(arm=name, seed=s) for name in names for s in range(2)], names[0])
    (axes,) = draw_scores([task]).axes
    assert number(axes, "run") == 24
    figure = draw_expected_best(task)
    figure.draw_without_rendering()
    assert figure.axes[0].get_position().height > 0.4, "the legend leaves room"


def test_lower_is_better_is_said(tmp_path: Path) -> None:
    records = [
        record(seed=s, metric="perplexity", lower_is_better=True, chance=90.0, score=20.0 + s)
        for s in range(3)
    ]
    task = series(records)
    assert draw_scores([task]).axes[0].get_xlabel() == "perplexity (lower is better)"
    (pictures,) = draw_pictures([task], tmp_path).tasks
    assert "the lower curve" in pictures[1].caption
    assert number(draw_scores([task]).axes[0], "failed") == 0


def test_equal_records_give_equal_files_and_other_pictures_of_ours_go(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for name in ("old-scores.png", "mine.png", "notes.txt"):
            (tmp_path / folder / name).touch()
        draw_pictures([series(sweep(seeds=1))], tmp_path / folder)
    first = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert first == {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}
    assert "old-scores.png" not in first
    assert {"mine.png", "notes.txt", "cola-scores.png"} <= set(first)


def test_tasks_with_equal_slugs_have_files_of_their_own(tmp_path: Path) -> None:
    tasks = [series([record(name, curve=())]) for name in ("a b", "A-b", "日本", "x" * 300)]
    drawn = draw_pictures(tasks, tmp_path)
    names = [picture.name for pictures in drawn.tasks for picture in pictures]
    assert names == ["a-b-scores", "a-b-2-scores", "task-scores", f"{'x' * 60}-scores"]
    assert drawn.overview is not None
    assert drawn.overview.name == "all-tasks-scores"
    assert (tmp_path / "all-tasks-scores.png").exists()


def test_several_tasks_share_the_rows_of_their_arms() -> None:
    first, second = series(sweep(seeds=5)), series(sweep("RTE", seeds=4))
    third = series([record("MRPC", arm="mixout 0.5"), crashed()], "mixout 0.5")
    arms = (replace(third.arms[0], number=1),)
    panels = draw_scores([first, second, replace(third, arms=arms)]).axes
    assert [axes.get_title(loc="left") for axes in panels[:3]] == ["CoLA", "RTE", "MRPC"]
    assert not panels[3].get_visible()
    counts = [number(axes, "run") + number(axes, "failed") for axes in panels]
    assert counts == [15, 12, 1, 0]
    (mean,) = marked(panels[2], "mean")
    assert round(mean.get_ydata()[0]) == 1, "the row of mixout 0.5"


def test_eighteen_arms_look_different() -> None:
    looks = {(one.color, one.marker, one.dashes) for one in map(look, range(18))}
    assert len(looks) == 18
    assert len({look(n).color for n in range(6)}) == len(COLORS) == 6


def test_names_fit_into_lines() -> None:
    assert wrapped("plain") == "plain"
    assert wrapped("") == "–"
    long = wrapped(" ".join(f"word{n}" for n in range(60))).split("\n")
    assert len(long) == 5
    assert max(map(len, long)) <= 26
    assert (long[0].split()[0], long[2], long[-1].split()[-1]) == ("word0", "…", "word59")


def test_text_in_a_picture_is_text() -> None:
    """Names are neither formulas nor markup."""
    figure: Figure = draw_scores([series([record(arm="$p_1$ <b>&")], "$p_1$ <b>&")])
    texts = [element.text for element in fromstring(as_svg(figure)).iter() if element.text]
    assert "$p_1$ <b>&" in texts
