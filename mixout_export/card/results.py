"""A run's evaluation, as the hub's `model-index` and as a table."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mixout_export.card.markdown import inline, table

#: The hub's names of metrics, where they are others; the average of F1 is an argument there.
_METRICS = {
    "matthews": "matthews_correlation",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
    "micro_f1": "f1",
    "macro_f1": "f1",
}
_ARGUMENTS = {"micro_f1": {"average": "micro"}, "macro_f1": {"average": "macro"}}

#: What a model was measured on if not on a data set of the hub; no data set can be called so.
LOCAL_FILE = "local-file"


@dataclass(frozen=True)
class Evaluation:
    """What a model was measured on, and how it did.

    Attributes:
        data: Name of the file, or of the hub's data set.
        metrics: The result's metrics.
        before: The untrained model's.
        hub_id: The data set's name on the hub; None for a file.
        configuration: The data set's configuration; None without.
        split: The split; None for a file.
    """

    data: str
    metrics: Mapping[str, float]
    before: Mapping[str, float]
    hub_id: str | None = None
    configuration: str | None = None
    split: str | None = None

    def model_index(self, title: str, task: str) -> list[dict[str, Any]]:
        """Return the metrics that are numbers, as the hub's entry of that name.

        Args:
            title: The model's name.
            task: The hub's name of the task.
        """
        from huggingface_hub.repocard_data import EvalResult, eval_results_to_model_index

        results = [
            EvalResult(
                task_type=task,
                dataset_type=self.hub_id or LOCAL_FILE,
                dataset_name=self.data,
                dataset_config=self.configuration,
                dataset_split=self.split,
                metric_type=_METRICS.get(name, name),
                metric_name=name,
                metric_args=_ARGUMENTS.get(name),
                metric_value=round(value, 6),
            )
            for name, value in self.metrics.items()
            if math.isfinite(value)
        ]
        return eval_results_to_model_index(title, results) if results else []

    def metric_ids(self) -> list[str]:
        """Return the hub's names of the metrics, each once; a loss is none."""
        names = [_METRICS.get(name, name) for name in self.metrics if name != "loss"]
        return list(dict.fromkeys(names))

    def to_markdown(self) -> str:
        """Return the metrics before and after."""
        rows = [
            (name, f"{self.before.get(name, math.nan):.4f}", f"{value:.4f}")
            for name, value in self.metrics.items()
        ]
        return f"On {inline(self.data)}:\n\n" + table(("metric", "untrained", "finetuned"), rows)
