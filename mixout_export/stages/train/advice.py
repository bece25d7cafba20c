"""What a user should know about a run that has ended, and what to try."""

from collections.abc import Mapping, Sequence
from typing import Any

from mixout_export.data.metrics import is_better
from mixout_export.files.layout import LAYOUT
from mixout_export.stages.train.record import TrainResult
from mixout_export.training.options import TrainOptions
from mixout_export.training.records import MetricsLog

#: A run's last recorded training loss is at most this share of the first one if it has learned.
_MOVED = 0.95
#: A loss is still falling if the last record is at most this share of the one before.
_FALLING = 0.95
#: Steps from which on a run is long enough for its schedule to have ended the fall.
_FEW_STEPS = 200
#: Pairs of labels that are named.
_PAIRS = 3


def advice_for(result: TrainResult, options: TrainOptions) -> str | None:
    """Return a sentence of advice if a run has learned nothing, else None.

    That is a run whose model is no better than the most frequent answer, or whose training loss
    hardly fell. A run without evaluation data cannot be judged.
    """
    chance, value = result.chance.get(result.metric), result.metrics.get(result.metric)
    if chance is None or value is None:
        return None
    remedy = "try --recipe small"
    if options.recipe == "small":
        remedy = "try more --epochs, another --seed or more rows"
    if not is_better(result.metric, value, chance):
        return (
            "the model ended no better than always giving the most frequent answer "
            f"({result.metric} {chance:.4f}); {remedy}"
        )
    losses = _losses(result)
    if len(losses) > 1 and losses[-1] > _MOVED * losses[0]:
        return f"the training loss hardly fell, from {losses[0]:.4f} to {losses[-1]:.4f}; {remedy}"
    return None


def _losses(result: TrainResult, key: str = "loss") -> list[float]:
    records = MetricsLog(result.out / LAYOUT.metrics).records()
    return [record[key] for record in records if record.get(key) is not None]


def notes_for(result: TrainResult, options: TrainOptions) -> tuple[str, ...]:
    """Return what a user should know about a run: its data, its labels, and its length."""
    found = (
        *result.notes,
        _constant(result.by_label),
        _confused(result.confused),
        advice_for(result, options),
        _too_short(result),
    )
    return tuple(note for note in found if note)


def _constant(by_label: Sequence[Mapping[str, Any]]) -> str | None:
    """Return a sentence if the model gives one label to all rows, and the rows have several."""
    given = [scores["label"] for scores in by_label if scores["predicted"]]
    if len(given) != 1 or sum(scores["rows"] > 0 for scores in by_label) < 2:
        return None
    return f"the model always predicts {given[0]!r}"


def _confused(confused: Sequence[Mapping[str, Any]]) -> str | None:
    """Return a sentence on the labels that are confused most often."""
    pairs = [
        f"{pair['expected']!r} predicted as {pair['predicted']!r} ({pair['count']:,} times)"
        for pair in confused[:_PAIRS]
    ]
    return f"most confused: {', '.join(pairs)}" if pairs else None


def _too_short(result: TrainResult) -> str | None:
    """Return a sentence if a short run has ended while its loss was still falling.

    That is the evaluation loss, if it was measured more than once.
    """
    evaluated = _losses(result, "eval_loss")
    losses = evaluated if len(evaluated) > 1 else _losses(result)
    if result.stopped_early or result.steps >= _FEW_STEPS or len(losses) < 2:
        return None
    if losses[-1] > _FALLING * losses[-2]:
        return None
    return (
        f"training ended after {result.steps} steps, and the loss was still falling, from "
        f"{losses[-2]:.4f} to {losses[-1]:.4f}; try more --epochs"
    )
