"""Token classification: one label for every word of a text."""

from mixout_export.tasks.task import Task, Usage

TOKEN_CLASSIFICATION = Task(
    name="token-classification",
    auto_class="AutoModelForTokenClassification",
    architecture_suffixes=("ForTokenClassification",),
    pipeline_tag="token-classification",
    reader="mixout_export.data.readers.token_classification:TokenClassification",
    default_labels=None,
    metrics=("f1", "precision", "recall", "accuracy"),
    per_token=True,
    usage=Usage(
        text='"A text to find entities in."',
        pipeline='"A text to find entities in."',
        pipeline_options=', aggregation_strategy="simple"',
        javascript='"A text to find entities in."',
    ),
)
