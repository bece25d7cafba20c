"""The tasks a checkpoint can be finetuned for, by the name a user gives."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mixout_export.errors import ArgumentError, CheckpointError


@dataclass(frozen=True)
class Task:
    """A task and how transformers spells it.

    Attributes:
        name: What the user writes (`--task`).
        auto_class: Name of the `transformers.AutoModelFor…` class.
        architecture_suffix: How an architecture's class name for the task ends.
        problem_type: transformers' `config.problem_type`, where the task needs it.
        has_labels: Whether the head's width is the number of labels.
        default_labels: Number of labels when the user names none; None if it must be named.
        metrics: What an evaluation reports and `--metric` takes; the first ranks checkpoints
            unless the user names another.
        output: Name of the output that carries the result.
    """

    name: str
    auto_class: str
    architecture_suffix: str
    problem_type: str | None = None
    has_labels: bool = True
    default_labels: int | None = 2
    metrics: tuple[str, ...] = ("accuracy",)
    output: str = "logits"

    @property
    def metric(self) -> str:
        """Metric that ranks checkpoints unless the user names another."""
        return self.metrics[0]


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "text-classification",
            "AutoModelForSequenceClassification",
            "ForSequenceClassification",
            "single_label_classification",
            metrics=("accuracy", "f1", "matthews"),
        ),
        Task(
            "regression",
            "AutoModelForSequenceClassification",
            "ForSequenceClassification",
            "regression",
            default_labels=1,
            metrics=("pearson", "spearman", "mse"),
        ),
        Task(
            "multi-label",
            "AutoModelForSequenceClassification",
            "ForSequenceClassification",
            "multi_label_classification",
            default_labels=None,
            metrics=("micro_f1", "macro_f1", "accuracy"),
        ),
        Task(
            "token-classification",
            "AutoModelForTokenClassification",
            "ForTokenClassification",
            default_labels=None,
            metrics=("f1", "precision", "recall", "accuracy"),
        ),
        Task(
            "question-answering",
            "AutoModelForQuestionAnswering",
            "ForQuestionAnswering",
            has_labels=False,
            metrics=("f1", "exact_match"),
            output="start_logits",
        ),
        Task(
            "multiple-choice", "AutoModelForMultipleChoice", "ForMultipleChoice", has_labels=False
        ),
        Task(
            "masked-lm",
            "AutoModelForMaskedLM",
            "ForMaskedLM",
            has_labels=False,
            metrics=("loss", "perplexity"),
        ),
        Task(
            "causal-lm",
            "AutoModelForCausalLM",
            "ForCausalLM",
            has_labels=False,
            metrics=("loss", "perplexity"),
        ),
    )
}


#: Heads that a checkpoint may come with, and that no fresh one is made for: `--task` takes none.
OWN_HEADS: dict[str, Task] = {
    "image-classification": Task(
        "image-classification", "AutoModelForImageClassification", "ForImageClassification"
    )
}


def known_task(name: str) -> Task | None:
    """Return the task that a checkpoint or a graph records; None if it is none of these."""
    return TASKS.get(name) or OWN_HEADS.get(name)


def get_task(name: str) -> Task:
    """Return the task of that name.

    Raises:
        ArgumentError: No such task; the message lists those there are.
    """
    if name not in TASKS:
        raise ArgumentError(f"task: got {name!r}, expected one of {', '.join(TASKS)}")
    return TASKS[name]


def task_of_config(config: Mapping[str, Any]) -> Task | None:
    """Return the task that a checkpoint's own head serves, or None for a headless base.

    Args:
        config: The parsed `config.json`.

    Raises:
        CheckpointError: The architecture has a head, or the configuration a problem type, that
            none of the tasks covers.
    """
    architectures = config.get("architectures") or []
    if not architectures or not isinstance(architectures, list):
        return None
    name = str(architectures[0])
    if name.endswith("LMHeadModel"):
        return TASKS["causal-lm"]
    known = (*TASKS.values(), *OWN_HEADS.values())
    matches = [task for task in known if name.endswith(task.architecture_suffix)]
    if not matches:
        if "For" in name and not name.endswith("ForPreTraining"):
            raise CheckpointError(
                f"config.json: architecture {name!r} has a head for none of the known tasks "
                f"({', '.join(TASKS)}); name one with --task to give it a fresh head"
            )
        return None
    if matches[0].architecture_suffix != "ForSequenceClassification":
        return matches[0]
    problem_type = config.get("problem_type")
    if problem_type is None:
        labels = config.get("id2label")
        single = (labels is not None and len(labels) == 1) or config.get("num_labels") == 1
        return TASKS["regression" if single else "text-classification"]
    for task in matches:
        if task.problem_type == problem_type:
            return task
    raise CheckpointError(
        f"config.json: has the unknown problem_type {problem_type!r}, expected one of "
        f"{', '.join(str(task.problem_type) for task in matches)}; name the task with --task"
    )
