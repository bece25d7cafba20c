"""Regression: one number for a text or a pair of texts."""

from typing import ClassVar

from mixout_export.data.readers.text_classification import TextClassification
from mixout_export.tasks import TASKS, Task


class Regression(TextClassification):
    """Reads what a text classification does, with a number in the place of the label."""

    task: ClassVar[Task] = TASKS["regression"]
