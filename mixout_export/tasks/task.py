"""What the project knows about a task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mixout_export.tasks.decision import LABEL, Decision


@dataclass(frozen=True)
class Metric:
    """A metric of a task.

    Attributes:
        name: What the user writes (`--metric`).
        lower_is_better: Whether a smaller value is better.
        hub_name: The hub's name of the metric; "" if it is `name`.
        hub_arguments: The arguments of the hub's metric; None for none.
        note: A sentence for the model card that says what the number means; "" for none.
        two_label_note: The same for a model with two labels; "{}" stands for the second label.
    """

    name: str
    lower_is_better: bool = False
    hub_name: str = ""
    hub_arguments: Mapping[str, str] | None = None
    note: str = ""
    two_label_note: str = ""

    def title(self, labels: Sequence[str]) -> str:
        """Return its name for a model with these labels, with the label that it is about."""
        if self.two_label_note and len(labels) == 2:
            return f"{self.name} ({labels[1]})"
        return self.name

    def explain(self, labels: Sequence[str]) -> str:
        """Return the sentence for the card of a model with these labels."""
        if self.two_label_note and len(labels) == 2:
            return self.two_label_note.format(labels[1])
        return self.note


ACCURACY = Metric("accuracy")
#: Metrics of one label for each row.
LABEL_METRICS = (
    ACCURACY,
    Metric(
        "f1",
        note="f1 is the unweighted mean of the F1 of each label (macro F1).",
        two_label_note="f1 is the F1 of the label “{}”.",
    ),
    Metric("matthews", hub_name="matthews_correlation"),
    Metric(
        "macro_f1",
        hub_name="f1",
        hub_arguments={"average": "macro"},
        note="macro_f1 is the unweighted mean of the F1 of each label.",
    ),
)
LANGUAGE_MODEL_METRICS = (
    Metric("loss", lower_is_better=True),
    Metric("perplexity", lower_is_better=True),
)


@dataclass(frozen=True)
class Usage:
    """Source code that calls a model, for the examples in model cards and bundles.

    Attributes:
        text: Python arguments of the tokenizer.
        pipeline: Python arguments of transformers' pipeline; None if the task has no pipeline.
        pipeline_options: Further Python arguments that create the pipeline.
        javascript: Arguments of transformers.js' pipeline; None if it has no class for the task.
        call: Python expression that gives the outputs for `inputs`.
        answer: Python statements that print the answer from `outputs`.
    """

    text: str
    pipeline: str | None = None
    pipeline_options: str = ""
    javascript: str | None = None
    call: str = "model(**inputs)"
    answer: str = "print(outputs)"


@dataclass(frozen=True)
class Task:
    """A task. Each one has a module in this package.

    Attributes:
        name: What the user writes (`--task`).
        auto_class: Name of the `transformers.AutoModelFor…` class.
        architecture_suffixes: How class names of models for the task end.
        pipeline_tag: The hub's name of the task.
        usage: How a model is called.
        reader: Reads a table for the task: "module:class", imported when data is read. None for a
            task that `prepare` and `train` do not support.
        answers: Turns outputs into the columns that `predict` adds: "module:class", imported when
            `predict` runs. None writes what the task decides, without scores.
        problem_type: transformers' `config.problem_type`, if the task needs it.
        has_labels: Whether the width of the head is the number of labels.
        single_output: Whether the head gives one number, which has no label.
        default_labels: Number of labels if the user gives none; None if the user must give them.
        reports: Metrics that an evaluation reports. The first one ranks checkpoints unless the
            user names another with `--metric`.
        outputs: Names of the model's outputs that carry the result.
        decision: What an output decides; None if it decides nothing.
        per_token: Whether an output has a value for each token of the input.
        over_vocabulary: Whether that value is a vector as long as the vocabulary.
        generates: Whether the model generates text, so that `onnx` also writes a graph with a
            key/value cache.
        has_choices: Whether an input is a group of sequences, one for each choice.
        limits_others: Whether other programs, too, should cut texts at the longest sequence of the
            training. Not if long texts are read in windows or continued, and not for models that
            are made to be trained further.
    """

    name: str
    auto_class: str
    architecture_suffixes: tuple[str, ...]
    pipeline_tag: str
    usage: Usage
    reader: str | None = None
    answers: str | None = None
    problem_type: str | None = None
    has_labels: bool = True
    single_output: bool = False
    default_labels: int | None = 2
    reports: tuple[Metric, ...] = (ACCURACY,)
    outputs: tuple[str, ...] = ("logits",)
    decision: Decision | None = LABEL
    per_token: bool = False
    over_vocabulary: bool = False
    generates: bool = False
    has_choices: bool = False
    limits_others: bool = True

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics."""
        return tuple(metric.name for metric in self.reports)

    @property
    def metric(self) -> str:
        """Metric that ranks checkpoints unless the user names another."""
        return self.metrics[0]

    def titles(self, labels: Sequence[str]) -> dict[str, str]:
        """Return the names of the metrics that are about one of a model's labels."""
        found = {metric.name: metric.title(labels) for metric in self.reports}
        return {name: title for name, title in found.items() if title != name}

    @property
    def rejects(self) -> bool:
        """Whether an answer to a row is either right or wrong."""
        return self.decision is not None and not self.over_vocabulary

    @property
    def classifies(self) -> bool:
        """Whether the output as a whole stands for one label."""
        return self.decision is LABEL and not self.per_token
