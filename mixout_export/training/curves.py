"""The picture of a run: loss and metric against updates."""

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


def _style(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel("updates")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def write_curves(
    records: Sequence[dict[str, Any]], path: Path, *, metric: str, chosen_step: int
) -> None:
    """Draw a run's records into a PNG.

    Args:
        records: The lines of `metrics.jsonl`.
        path: The file to write.
        metric: Name of the metric that ranks checkpoints; in the place of the loss, which has a
            panel of its own, another one is shown.
        chosen_step: Update whose model is the result.
    """
    names = [key.removeprefix("eval_") for r in records for key in r if key.startswith("eval_")]
    evaluated = "loss" in names
    if metric == "loss":
        metric = next((name for name in names if name != "loss"), metric)
    with mpl.rc_context({"font.size": 9}):
        figure = Figure(figsize=(9.0 if evaluated else 5.0, 3.4), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, 2 if evaluated else 1, squeeze=False)[0]
        panels[0].plot(*_series(records, "loss"), color=_TRAIN, label="training")
        if evaluated:
            panels[0].plot(*_series(records, "eval_loss"), "o-", color=_EVAL, label="evaluation")
            steps, values = _series(records, f"eval_{metric}")
            panels[1].plot(steps, values, "o-", color=_EVAL)
            panels[1].axvline(chosen_step, color=_CHOSEN, linestyle="--", label="chosen")
            panels[1].legend(frameon=False)
            _style(panels[1], metric)
        panels[0].legend(frameon=False)
        _style(panels[0], "loss")
        figure.savefig(path, dpi=150, metadata={"Software": None})
