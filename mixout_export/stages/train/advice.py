"""What to try after a run that has learned nothing."""

from mixout_export.data.metrics import is_better
from mixout_export.files.layout import LAYOUT
from mixout_export.stages.train.record import TrainResult
from mixout_export.training.options import TrainOptions
from mixout_export.training.records import MetricsLog

#: A run's last recorded training loss is at most this share of the first one if it has learned.
_MOVED = 0.95


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
    records = MetricsLog(result.out / LAYOUT.metrics).records()
    losses = [record["loss"] for record in records if record.get("loss") is not None]
    if len(losses) > 1 and losses[-1] > _MOVED * losses[0]:
        return f"the training loss hardly fell, from {losses[0]:.4f} to {losses[-1]:.4f}; {remedy}"
    return None
