from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import image
from matplotlib.figure import Figure

from mixout_export.training.curves import write_curves

TRAINING = [{"step": s, "loss": 1.0 / s, "lr": 1e-3} for s in (10, 20, 30)]
EVALUATION = [{"step": s, "eval_loss": 0.7, "eval_accuracy": 0.5 + s / 100} for s in (0, 15, 30)]


def panels(pixels: Any) -> int:
    """Count axes side by side by the vertical lines that frame each on the left."""
    dark = (pixels[..., :3].mean(axis=2) < 0.3).mean(axis=0) > 0.5
    return int((np.diff(dark.astype(int)) == 1).sum())


def test_a_run_with_evaluation_has_two_panels(tmp_path: Path) -> None:
    write_curves(
        TRAINING + EVALUATION, tmp_path / "c.png", metric="accuracy", chosen_step=30, title="a run"
    )
    assert panels(image.imread(tmp_path / "c.png")) == 2


def test_a_run_without_evaluation_has_one(tmp_path: Path) -> None:
    write_curves(TRAINING, tmp_path / "c.png", metric="accuracy", chosen_step=30, title="a run")
    assert panels(image.imread(tmp_path / "c.png")) == 1


def test_a_metric_that_is_never_defined_leaves_its_panel_empty(tmp_path: Path) -> None:
    records = [{"step": s, "eval_loss": 0.7, "eval_pearson": None} for s in (0, 15)]
    write_curves(records, tmp_path / "c.png", metric="pearson", chosen_step=15, title="a run")
    assert panels(image.imread(tmp_path / "c.png")) == 2


def test_equal_runs_give_equal_pictures_and_the_users_style_stays(tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    for name in ("a.png", "b.png"):
        write_curves(
            TRAINING + EVALUATION, tmp_path / name, metric="accuracy", chosen_step=30, title="a run"
        )
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert dict(mpl.rcParams) == before


def test_the_picture_shows_the_records(tmp_path: Path) -> None:
    other = [{**record, "loss": 5.0 - record["loss"]} for record in TRAINING]
    write_curves(TRAINING, tmp_path / "a.png", metric="accuracy", chosen_step=30, title="a run")
    write_curves(other, tmp_path / "b.png", metric="accuracy", chosen_step=30, title="a run")
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()


def test_where_the_loss_ranks_checkpoints_another_metric_is_shown(tmp_path: Path) -> None:
    evaluation = [{"step": s, "eval_loss": 0.7, "eval_perplexity": 2.0 + s} for s in (0, 15, 30)]
    for name, metric in (("a.png", "loss"), ("b.png", "perplexity")):
        write_curves(
            TRAINING + evaluation, tmp_path / name, metric=metric, chosen_step=30, title="a run"
        )
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_the_picture_has_a_title_named_axes_and_begins_at_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    options = {"metric": "accuracy", "chosen_step": 30, "title": "bert with mixout(0.7)"}
    write_curves(TRAINING + EVALUATION, tmp_path / "c.png", **options)
    (figure,) = drawn
    assert figure.get_suptitle() == "bert with mixout(0.7)"
    assert [axes.get_xlabel() for axes in figure.axes] == ["step", "step"]
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "accuracy"]
    assert [axes.get_xlim()[0] for axes in figure.axes] == [0, 0]
    training = figure.axes[0].lines[0]
    assert list(training.get_xdata()) == [0, 10, 20, 30]
    assert list(training.get_ydata())[:2] == [0.1, 0.1]  # the mean of steps 1 to 10
