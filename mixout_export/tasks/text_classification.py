"""Text classification: one label for a text or a pair of texts."""

from mixout_export.tasks.task import LABEL_METRICS, Task, Usage

TEXT_CLASSIFICATION = Task(
    name="text-classification",
    auto_class="AutoModelForSequenceClassification",
    architecture_suffixes=("ForSequenceClassification",),
    pipeline_tag="text-classification",
    reader="mixout_export.data.readers.text_classification:TextClassification",
    answers="mixout_export.prediction.labels:OneLabel",
    problem_type="single_label_classification",
    reports=LABEL_METRICS,
    usage=Usage(
        text='"A text to classify."',
        pipeline='"A text to classify."',
        javascript='"A text to classify."',
        answer="""scores = outputs.logits.softmax(-1)[0].tolist()
print(dict(zip(model.config.id2label.values(), scores)))""",
    ),
)
