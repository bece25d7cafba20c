"""Token classification: one label for every word of a text."""

from mixout_export.tasks.task import ACCURACY, Metric, Task, Usage

TOKEN_CLASSIFICATION = Task(
    name="token-classification",
    auto_class="AutoModelForTokenClassification",
    architecture_suffixes=("ForTokenClassification",),
    pipeline_tag="token-classification",
    reader="mixout_export.data.readers.token_classification:TokenClassification",
    answers="mixout_export.prediction.tags:Tags",
    default_labels=None,
    reports=(
        Metric("f1", note="f1 counts whole entities of all types together."),
        Metric("precision"),
        Metric("recall"),
        ACCURACY,
    ),
    per_token=True,
    usage=Usage(
        text='"A text to find entities in."',
        pipeline='"A text to find entities in."',
        pipeline_options=', aggregation_strategy="simple"',
        javascript='"A text to find entities in."',
    ),
)
