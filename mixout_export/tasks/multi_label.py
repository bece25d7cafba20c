"""Multi-label classification: any number of labels for a text or a pair of texts."""

from mixout_export.tasks.decision import YES_OR_NO
from mixout_export.tasks.task import Task, Usage

MULTI_LABEL = Task(
    name="multi-label",
    auto_class="AutoModelForSequenceClassification",
    architecture_suffixes=("ForSequenceClassification",),
    pipeline_tag="text-classification",
    reader="mixout_export.data.readers.multi_label:MultiLabel",
    problem_type="multi_label_classification",
    default_labels=None,
    metrics=("micro_f1", "macro_f1", "accuracy"),
    decision=YES_OR_NO,
    usage=Usage(
        text='"A text to classify."',
        pipeline='"A text to classify."',
        pipeline_options=', top_k=None, function_to_apply="sigmoid"',
        javascript='"A text to classify.", { top_k: null }',
    ),
)
