"""Multiple choice: which of several texts goes with another one."""

from mixout_export.tasks.decision import CHOICE
from mixout_export.tasks.task import Task, Usage

MULTIPLE_CHOICE = Task(
    name="multiple-choice",
    auto_class="AutoModelForMultipleChoice",
    architecture_suffixes=("ForMultipleChoice",),
    pipeline_tag="multiple-choice",
    reader="mixout_export.data.readers.multiple_choice:MultipleChoice",
    answers="mixout_export.prediction.choices:OneChoice",
    has_labels=False,
    decision=CHOICE,
    has_choices=True,
    usage=Usage(
        text='["The context."] * 2, ["A first choice.", "A second choice."], padding=True',
        answer='print("choice", int(outputs.logits.argmax()))',
    ),
)
