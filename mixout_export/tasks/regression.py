"""Regression: one number for a text or a pair of texts."""

from mixout_export.tasks.task import Metric, Task, Usage

REGRESSION = Task(
    name="regression",
    auto_class="AutoModelForSequenceClassification",
    architecture_suffixes=("ForSequenceClassification",),
    pipeline_tag="text-classification",
    reader="mixout_export.data.readers.text_classification:Regression",
    answers="mixout_export.prediction.labels:OneNumber",
    problem_type="regression",
    single_output=True,
    default_labels=1,
    reports=(
        Metric("pearson", hub_name="pearsonr"),
        Metric("spearman", hub_name="spearmanr"),
        Metric("mse", lower_is_better=True),
    ),
    decision=None,
    usage=Usage(
        text='"A text to rate."',
        pipeline='"A text to rate."',
        pipeline_options=', function_to_apply="none"',
        javascript='"A text to rate."',
    ),
)
