"""Facts that the steps pass to a card."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mixout_export.card.markdown import table
from mixout_export.card.results import Evaluation
from mixout_export.rounding import difference, share
from mixout_export.tasks import Task


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole}"


@dataclass(frozen=True)
class TrainingFacts:
    """Facts about a training run.

    Attributes:
        strategy: The strategy in the paper's notation.
        settings: Option → value, as shown.
        evaluation: The evaluation of the result; None if there was none.
        dataset: The training data's name on the hub; None for a file.
        curves: File name of the picture; None if no picture was drawn.
    """

    strategy: str
    settings: Mapping[str, Any]
    evaluation: Evaluation | None = None
    dataset: str | None = None
    curves: str | None = None


@dataclass(frozen=True)
class CollapseFacts:
    """What `collapse` did to the weights.

    Attributes:
        tensors: Number of tensors.
        interpolated: Number of tensors that were interpolated with their pretrained value.
        alpha: Share of the trained weights, in [0, 1].
        dtype: The dtype to which they were converted; None if it was kept.
    """

    tensors: int
    interpolated: int
    alpha: float = 1.0
    dtype: str | None = None

    @property
    def is_exact(self) -> bool:
        """Whether the weights are those of the trained model, bit for bit."""
        return self.alpha == 1.0 and self.dtype is None

    def to_markdown(self) -> str:
        """Return a table of how many tensors were changed, and how."""
        exact = self.tensors - self.interpolated
        rows = []
        if self.interpolated:
            mixed = f"(1 - {self.alpha:g}) · pretrained + {self.alpha:g} · trained"
            rows.append((_share(self.interpolated, self.tensors), mixed))
        if exact:
            how = "trained, bit for bit"
            changed = f"trained, converted to {self.dtype} if they are floating point"
            rows.append((_share(exact, self.tensors), changed if self.dtype else how))
        shown = table(("tensors", "value"), rows)
        return f"Collapsed from the trained checkpoint.\n\n{shown}"


@dataclass(frozen=True)
class OutputParity:
    """How far an output of a graph is from PyTorch's.

    Attributes:
        name: Name of the output.
        max_abs: Largest absolute difference.
        mean_abs: Mean absolute difference.
        agreement: Share of equal decisions in [0, 1], of those that count; None if nothing is
            decided from the output.
    """

    name: str
    max_abs: float
    mean_abs: float
    agreement: float | None


@dataclass(frozen=True)
class ParityFacts:
    """The result of a comparison with PyTorch.

    Attributes:
        outputs: The graph's outputs.
        criteria: The tolerance, or another criterion, in words.
        weights: Number of weights that were found, and of all weights; None if no weights
            were compared.
        covered: What was run: name → amount.
    """

    outputs: Sequence[OutputParity]
    criteria: str
    weights: tuple[int, int] | None
    covered: Mapping[str, str] = field(default_factory=dict)

    def to_markdown(self) -> str:
        """Return a table of the outputs, and one of what was compared."""
        rows = [
            (
                output.name,
                difference(output.max_abs),
                difference(output.mean_abs),
                share(output.agreement),
            )
            for output in self.outputs
        ]
        header = ("output", "largest difference", "mean difference", "equal decisions")
        found = [] if self.weights is None else [("weights found", _share(*self.weights))]
        covered = table(
            ("compared", "amount"),
            [*self.covered.items(), *found, ("criterion", self.criteria)],
        )
        return f"{table(header, rows)}\n\n{covered}"


@dataclass(frozen=True)
class ExportFacts:
    """Facts about an ONNX graph.

    Attributes:
        task: The model's task; None for a model without a head.
        architecture: The model's class.
        precision: "fp32", "fp16" or "int8".
        opset: ONNX operator set version.
        needs: Which runtimes load the graph, as a sentence; "" if unknown.
        inputs: Names of the graph's inputs.
        parity: The comparison with PyTorch; None if there was none.
        padding: How much results depend on padding, as sentences; () where it was not measured.
    """

    task: Task | None
    architecture: str
    precision: str
    opset: int
    needs: str
    inputs: Sequence[str]
    parity: ParityFacts | None
    padding: Sequence[str] = ()
