"""Draw a training run: its loss and its metric at each step."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

_TRAIN, _EVAL, _CHOSEN = "#4477aa", "#cc6677", "#228833"


def _series(records: Sequence[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    points = [(r["step"], r[key]) for r in records if r.get(key) is not None]
    return [x for x, _ in points], [y for _, y in points]


def _draw_training_loss(axes: Axes, records: Sequence[dict[str, Any]]) -> None:
    """Draw each recorded loss, a mean, over the steps that it is the mean of."""
    steps, losses = _series(records, "loss")
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
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)


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
    with mpl.rc_context({"font.size": 9}):
        figure = Figure(figsize=(9.0 if evaluated else 5.0, 3.6), layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(title, x=0.01, horizontalalignment="left", wrap=True, fontsize=11)
        panels = figure.subplots(1, 2 if evaluated else 1, squeeze=False)[0]
        _draw_training_loss(panels[0], records)
        if evaluated:
            steps, losses = _series(records, "eval_loss")
            panels[0].plot(steps, losses, "o-", color=_EVAL, label="evaluation", clip_on=False)
            steps, values = _series(records, f"eval_{metric}")
            panels[1].plot(steps, values, "o-", color=_EVAL, label="evaluation", clip_on=False)
            selected = f"selected, step {chosen_step}"
            panels[1].axvline(chosen_step, color=_CHOSEN, linestyle="--", label=selected)
            _style(panels[1], metric)
        _style(panels[0], "loss")
        figure.savefig(path, dpi=150, metadata={"Software": None})
