"""Show a run's evaluation as the hub's `model-index` and as a table."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mixout_export.card.markdown import inline, table

#: The hub's names of metrics where they differ from ours. The hub has one name for every F1.
_METRICS = {
    "matthews": "matthews_correlation",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
    "micro_f1": "f1",
    "macro_f1": "f1",
}
_ARGUMENTS = {"micro_f1": {"average": "micro"}, "macro_f1": {"average": "macro"}}

#: Which F1 a metric is, by task. Text classification depends on the number of labels.
_F1 = {
    ("multi-label", "micro_f1"): "micro_f1 counts the decisions on all labels together.",
    ("multi-label", "macro_f1"): "macro_f1 is the unweighted mean of the F1 of each label.",
    ("token-classification", "f1"): "f1 counts whole entities of all types together.",
    ("question-answering", "f1"): "f1 is the overlap of words with the best correct answer, "
    "averaged over the questions.",
}

#: Data set type of a model that was evaluated on a file. No data set of the hub has this name.
LOCAL_FILE = "local-file"


def _which_f1(task: str | None, labels: Sequence[str], metric: str) -> str:
    """Return a sentence that says whose F1 a metric is; "" for other metrics."""
    if (task, metric) == ("text-classification", "f1"):
        if len(labels) == 2:
            return f"f1 is the F1 of the label “{labels[1]}”."
        return "f1 is the unweighted mean of the F1 of each label (macro F1)."
    return _F1.get((task or "", metric), "")


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
    """

    data: str
    metrics: Mapping[str, float]
    before: Mapping[str, float]
    hub_id: str | None = None
    configuration: str | None = None
    split: str | None = None

    def model_index(self, title: str, task: str) -> list[dict[str, Any]]:
        """Return the hub's `model-index` entry, which has every metric that is a number.

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
        """Return the hub's names of the metrics, each once. The loss is not a metric there."""
        names = [_METRICS.get(name, name) for name in self.metrics if name != "loss"]
        return list(dict.fromkeys(names))

    def to_markdown(self, task: str | None, labels: Sequence[str]) -> str:
        """Return a table of the metrics before and after training.

        Args:
            task: Name of the task.
            labels: Names of its labels, in the order of the outputs.
        """
        rows = [
            (name, f"{self.before.get(name, math.nan):.4f}", f"{value:.4f}")
            for name, value in self.metrics.items()
        ]
        shown = table(("metric", "before training", "finetuned"), rows)
        notes = " ".join(filter(None, (_which_f1(task, labels, name) for name in self.metrics)))
        return "\n\n".join(filter(None, (f"On {inline(self.data)}:", shown, inline(notes))))
