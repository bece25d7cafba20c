"""A metric that an evaluation reports."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


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

    def explain(self, labels: Sequence[str]) -> str:
        """Return the sentence for the card of a model with these labels."""
        if self.two_label_note and len(labels) == 2:
            return self.two_label_note.format(labels[1])
        return self.note


ACCURACY = Metric("accuracy")
LANGUAGE_MODEL_METRICS = (
    Metric("loss", lower_is_better=True),
    Metric("perplexity", lower_is_better=True),
)
