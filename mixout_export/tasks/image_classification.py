"""Image classification: one label for an image."""

from mixout_export.tasks.task import LABEL_METRICS, Task, Usage

IMAGE_CLASSIFICATION = Task(
    name="image-classification",
    auto_class="AutoModelForImageClassification",
    architecture_suffixes=("ForImageClassification",),
    pipeline_tag="image-classification",
    reader="mixout_export.data.readers.image_classification:ImageClassification",
    answers="mixout_export.prediction.labels:OneLabel",
    problem_type="single_label_classification",
    reports=LABEL_METRICS,
    usage=Usage(text="", pipeline='"image.png"', javascript='"image.png"'),
)
