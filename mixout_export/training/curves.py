"""Draw a training run: its loss and its metric at each step."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from mixout_export.plotting import COLORS, drawing, new_figure, save_png, simplify

_TRAIN, _EVAL, _CHOSEN = COLORS[0], COLORS[1], COLORS[3]


def series(records: Sequence[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Return the steps at which a value was recorded, and the values."""
    points = [(r["step"], r[key]) for r in records if r.get(key) is not None]
    return [x for x, _ in points], [y for _, y in points]


def _draw_training_loss(axes: Axes, records: Sequence[dict[str, Any]]) -> None:
    """Draw each recorded loss, a mean, over the steps that it is the mean of."""
    steps, losses = series(records, "loss")
    start = [0] if steps else []
    axes.plot(
        [*start, *steps],
        [*losses[:1], *losses],
        color=_TRAIN,
        label="training",
        drawstyle="steps-pre",
    )


def _style(axes: Axes, name: str) -> None:
    axes.set_xlabel("step")
    axes.set_ylabel(name)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    simplify(axes)
    axes.legend()


def write_curves(
    records: Sequence[dict[str, Any]], path: Path, *, metric: str, chosen_step: int, title: str
) -> None:
    """Draw the records of a run into a PNG file.

    Args:
        records: The lines of `metrics.jsonl`.
        path: The file to write.
        metric: The metric that selects the checkpoint. The loss has a panel of its own; if it
            selects the checkpoint, the second panel shows another metric.
        chosen_step: The step whose checkpoint was selected.
        title: Title of the picture.
    """
    names = [key.removeprefix("eval_") for r in records for key in r if key.startswith("eval_")]
    evaluated = "loss" in names
    if metric == "loss":
        metric = next((name for name in names if name != "loss"), metric)
    with drawing():
        figure = new_figure(9.0 if evaluated else 5.0, 3.6)
        figure.suptitle(title, x=0.01, horizontalalignment="left", wrap=True, fontsize=11)
        panels = figure.subplots(1, 2 if evaluated else 1, squeeze=False)[0]
        _draw_training_loss(panels[0], records)
        if evaluated:
            steps, losses = series(records, "eval_loss")
            panels[0].plot(steps, losses, "o-", color=_EVAL, label="evaluation", clip_on=False)
            steps, values = series(records, f"eval_{metric}")
            panels[1].plot(steps, values, "o-", color=_EVAL, label="evaluation", clip_on=False)
            selected = f"selected, step {chosen_step}"
            panels[1].axvline(chosen_step, color=_CHOSEN, linestyle="--", label=selected)
            _style(panels[1], metric)
        _style(panels[0], "loss")
        save_png(figure, path)
