"""Multi-label classification: any number of labels for a text or a pair of texts."""

from mixout_export.tasks.decision import YES_OR_NO
from mixout_export.tasks.task import ACCURACY, Metric, Task, Usage

MULTI_LABEL = Task(
    name="multi-label",
    auto_class="AutoModelForSequenceClassification",
    architecture_suffixes=("ForSequenceClassification",),
    pipeline_tag="text-classification",
    reader="mixout_export.data.readers.text_classification:MultiLabel",
    answers="mixout_export.prediction.labels:ManyLabels",
    problem_type="multi_label_classification",
    default_labels=None,
    reports=(
        Metric(
            "micro_f1",
            hub_name="f1",
            hub_arguments={"average": "micro"},
            note="micro_f1 counts the decisions on all labels together.",
        ),
        Metric(
            "macro_f1",
            hub_name="f1",
            hub_arguments={"average": "macro"},
            note="macro_f1 is the unweighted mean of the F1 of each label.",
        ),
        ACCURACY,
    ),
    decision=YES_OR_NO,
    usage=Usage(
        text='"A text to classify."',
        pipeline='"A text to classify."',
        pipeline_options=', top_k=None, function_to_apply="sigmoid"',
        javascript='"A text to classify.", { top_k: null }',
    ),
)
