"""Image classification. Such a model can be converted and compared, but `train` reads no images."""

from mixout_export.tasks.task import Task, Usage

IMAGE_CLASSIFICATION = Task(
    name="image-classification",
    auto_class="AutoModelForImageClassification",
    architecture_suffixes=("ForImageClassification",),
    pipeline_tag="image-classification",
    usage=Usage(text="", pipeline='"image.png"', javascript='"image.png"'),
)
