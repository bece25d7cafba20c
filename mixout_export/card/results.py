"""Show a run's evaluation as the hub's `model-index` and as a table."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mixout_export.card.markdown import inline, table
from mixout_export.tasks import Metric, Task

#: Data set type of a model that was evaluated on a file. No data set of the hub has this name.
LOCAL_FILE = "local-file"

#: The columns of the table of labels, which are fields of `LabelScores`.
_LABEL_COLUMNS = ("label", "rows", "predicted", "precision", "recall", "f1")

#: Labels that a card shows at most. `config.json` has all of them.
SHOWN_LABELS = 50


@dataclass(frozen=True)
class Evaluation:
    """The evaluation of a model.

    Attributes:
        data: Name of the file, or of the hub's data set.
        metrics: Metrics of the finetuned model.
        before: Metrics of the model before training.
        hub_id: The data set's name on the hub; None for a file.
        configuration: The data set's configuration; None if it has none.
        split: The split; None for a file.
        by_label: The figures of each label, with the fields of `LabelScores`.
    """

    data: str
    metrics: Mapping[str, float]
    before: Mapping[str, float]
    hub_id: str | None = None
    configuration: str | None = None
    split: str | None = None
    by_label: Sequence[Mapping[str, Any]] = ()

    def _described(self, task: Task | None) -> list[tuple[Metric, float]]:
        """Return the metrics with their values. The loss belongs to no task."""
        known = {} if task is None else {metric.name: metric for metric in task.reports}
        return [(known.get(name, Metric(name)), value) for name, value in self.metrics.items()]

    def model_index(self, title: str, task: Task | None) -> list[dict[str, Any]]:
        """Return the hub's `model-index` entry, which has every metric that is a number."""
        from huggingface_hub.repocard_data import EvalResult, eval_results_to_model_index

        results = [
            EvalResult(
                task_type="other" if task is None else task.pipeline_tag,
                dataset_type=self.hub_id or LOCAL_FILE,
                dataset_name=self.data,
                dataset_config=self.configuration,
                dataset_split=self.split,
                metric_type=metric.hub_name or metric.name,
                metric_name=metric.name,
                metric_args=dict(metric.hub_arguments) if metric.hub_arguments else None,
                metric_value=round(value, 6),
            )
            for metric, value in self._described(task)
            if math.isfinite(value)
        ]
        return eval_results_to_model_index(title, results) if results else []

    def metric_ids(self, task: Task | None) -> list[str]:
        """Return the hub's names of the metrics, each once. The loss is not a metric there."""
        found = [metric for metric, _ in self._described(task) if metric.name != "loss"]
        return list(dict.fromkeys(metric.hub_name or metric.name for metric in found))

    def to_markdown(self, task: Task | None, labels: Sequence[str]) -> str:
        """Return a table of the metrics before and after training, and one of the labels."""
        rows = [
            (name, f"{self.before.get(name, math.nan):.4f}", f"{value:.4f}")
            for name, value in self.metrics.items()
        ]
        shown = table(("metric", "before training", "finetuned"), rows)
        notes = " ".join(filter(None, (m.explain(labels) for m, _ in self._described(task))))
        parts = (f"On {inline(self.data)}:", shown, inline(notes), self._label_table())
        return "\n\n".join(filter(None, parts))

    def _label_table(self) -> str:
        if not 1 < len(self.by_label) <= SHOWN_LABELS:
            return ""
        rows = ([scores[name] for name in _LABEL_COLUMNS] for scores in self.by_label)
        return table(
            _LABEL_COLUMNS,
            ([f"{v:.4f}" if isinstance(v, float) else v for v in row] for row in rows),
        )
