"""The tasks: one module for each, which says everything the project knows about it.

To add a task, write a module with a `Task` and a `Reader` (see `mixout_export.data.reader`), and
register the task here. Every command, the model cards, the bundles and the report then support it.
This package imports nothing heavy. A task names its reader, which is imported when data is read.
"""

from collections.abc import Mapping
from typing import Any

from mixout_export.errors import ArgumentError, CheckpointError
from mixout_export.tasks.causal_lm import CAUSAL_LM
from mixout_export.tasks.image_classification import IMAGE_CLASSIFICATION
from mixout_export.tasks.masked_lm import MASKED_LM
from mixout_export.tasks.multi_label import MULTI_LABEL
from mixout_export.tasks.multiple_choice import MULTIPLE_CHOICE
from mixout_export.tasks.question_answering import QUESTION_ANSWERING
from mixout_export.tasks.regression import REGRESSION
from mixout_export.tasks.task import Metric, Task, Usage
from mixout_export.tasks.text_classification import TEXT_CLASSIFICATION
from mixout_export.tasks.token_classification import TOKEN_CLASSIFICATION

#: Tasks that `prepare` and `train` support, by name.
TASKS: dict[str, Task] = {}
#: Tasks of other checkpoints that can be converted and compared, but not trained.
OWN_HEADS: dict[str, Task] = {}


def register(task: Task) -> None:
    """Add a task.

    Raises:
        ValueError: There is a task of that name.
    """
    if known_task(task.name) is not None:
        raise ValueError(f"task {task.name!r} is registered already; give it another name")
    (OWN_HEADS if task.reader is None else TASKS)[task.name] = task


def known_task(name: str | None) -> Task | None:
    """Return the task that a checkpoint or a graph records; None if it is unknown."""
    return None if name is None else TASKS.get(name) or OWN_HEADS.get(name)


def get_task(name: str) -> Task:
    """Return a task that `prepare` and `train` support.

    Raises:
        ArgumentError: There is no such task. The message lists the tasks.
    """
    if name not in TASKS:
        raise ArgumentError(f"task: got {name!r}, expected one of {', '.join(TASKS)}")
    return TASKS[name]


def task_of_config(config: Mapping[str, Any]) -> Task | None:
    """Return the task that a checkpoint's own head serves, or None for a headless base.

    Args:
        config: The parsed `config.json`.

    Raises:
        CheckpointError: The head or the problem type belongs to no registered task.
    """
    architectures = config.get("architectures") or []
    if not architectures or not isinstance(architectures, list):
        return None
    name = str(architectures[0])
    known = (*TASKS.values(), *OWN_HEADS.values())
    matches = [task for task in known if name.endswith(task.architecture_suffixes)]
    if not matches:
        if "For" in name and not name.endswith("ForPreTraining"):
            raise CheckpointError(
                f"config.json: architecture {name!r} has a head for none of the known tasks "
                f"({', '.join(TASKS)}); name one with --task to give it a fresh head"
            )
        return None
    if len(matches) == 1:
        return matches[0]
    problem_type = config.get("problem_type")
    if problem_type is None:
        labels = config.get("id2label")
        single = (labels is not None and len(labels) == 1) or config.get("num_labels") == 1
        return next((task for task in matches if task.single_output == single), matches[0])
    for task in matches:
        if task.problem_type == problem_type:
            return task
    raise CheckpointError(
        f"config.json: has the unknown problem_type {problem_type!r}, expected one of "
        f"{', '.join(str(task.problem_type) for task in matches)}; name the task with --task"
    )


def own_task_name(config: Mapping[str, Any]) -> str | None:
    """Return the task of a configuration's own head; None if it has none, or an unknown one."""
    try:
        task = task_of_config(config)
    except CheckpointError:
        return None
    return None if task is None else task.name


def labels_of(config: Mapping[str, Any], task: Task | None) -> tuple[str, ...] | None:
    """Return label names in the order of the head's outputs, None where the task has none."""
    if task is None or not task.has_labels:
        return None
    names = config.get("id2label")
    if not isinstance(names, dict):  # transformers omits its default of two labels
        return tuple(f"LABEL_{index}" for index in range(config.get("num_labels", 2)))
    return tuple(str(names[key]) for key in sorted(names, key=int))


def check_outputs(task: Task, config: Mapping[str, Any]) -> None:
    """Refuse a head with several outputs if the task's answer is one number.

    Raises:
        CheckpointError: `config.json` names several outputs.
    """
    outputs = config.get("id2label") or ()
    if task.single_output and len(outputs) > 1:
        raise CheckpointError(
            f"config.json: names {len(outputs)} outputs for {task.name}, expected 1; such a model "
            "can be exported and compared, but not trained or used by predict. If its outputs are "
            "labels, correct problem_type"
        )


for _task in (
    TEXT_CLASSIFICATION,
    REGRESSION,
    MULTI_LABEL,
    TOKEN_CLASSIFICATION,
    QUESTION_ANSWERING,
    MULTIPLE_CHOICE,
    MASKED_LM,
    CAUSAL_LM,
    IMAGE_CLASSIFICATION,
):
    register(_task)

__all__ = [
    "OWN_HEADS",
    "TASKS",
    "Metric",
    "Task",
    "Usage",
    "check_outputs",
    "get_task",
    "known_task",
    "labels_of",
    "own_task_name",
    "register",
    "task_of_config",
]
