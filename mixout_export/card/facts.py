"""What the steps tell a card."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mixout_export.card.markdown import table
from mixout_export.card.results import Evaluation
from mixout_export.tasks import Task


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole}"


@dataclass(frozen=True)
class TrainingFacts:
    """What a run did.

    Attributes:
        strategy: In the paper's notation.
        settings: Name → value, as they are shown.
        evaluation: How the result did; None where it was not evaluated.
        dataset: The training data's name on the hub; None for a file.
        curves: File name of the picture; None without.
    """

    strategy: str
    settings: Mapping[str, Any]
    evaluation: Evaluation | None = None
    dataset: str | None = None
    curves: str | None = None


@dataclass(frozen=True)
class CollapseFacts:
    """What became of the weights.

    Attributes:
        tensors: Tensors in all.
        interpolated: Those of them that were mixed with their pretrained value.
        alpha: The trained weights' share, in [0, 1].
        dtype: Dtype that they were converted to; None if it was kept.
    """

    tensors: int
    interpolated: int
    alpha: float = 1.0
    dtype: str | None = None

    @property
    def is_exact(self) -> bool:
        """Whether it is bit for bit the model that was trained."""
        return self.alpha == 1.0 and self.dtype is None

    def to_markdown(self) -> str:
        """Return how many tensors are what."""
        exact = self.tensors - self.interpolated
        rows = []
        if self.interpolated:
            mixed = f"(1 - {self.alpha:g}) · pretrained + {self.alpha:g} · trained"
            rows.append((_share(self.interpolated, self.tensors), mixed))
        if exact:
            how = "the trained ones, bit for bit"
            changed = f"the trained ones, as {self.dtype} where they are numbers with a fraction"
            rows.append((_share(exact, self.tensors), changed if self.dtype else how))
        shown = table(("tensors", "are"), rows)
        return f"Collapsed from the checkpoint that was trained.\n\n{shown}"


@dataclass(frozen=True)
class OutputParity:
    """How far one of a graph's outputs is from PyTorch's.

    Attributes:
        name: The output.
        max_abs: Largest difference.
        mean_abs: Mean difference.
        agreement: Share of equal decisions in [0, 1]; None where it carries none.
    """

    name: str
    max_abs: float
    mean_abs: float
    agreement: float | None


@dataclass(frozen=True)
class ParityFacts:
    """What a comparison with PyTorch came to.

    Attributes:
        outputs: The graph's outputs.
        criteria: What they were judged by.
        weights: Weights found, and looked for; None where none were.
        covered: What it was run on, name → how much.
    """

    outputs: Sequence[OutputParity]
    criteria: str
    weights: tuple[int, int] | None
    covered: Mapping[str, str] = field(default_factory=dict)

    def to_markdown(self) -> str:
        """Return the outputs' table and what was run."""
        rows = [
            (
                output.name,
                f"{output.max_abs:.2g}",
                f"{output.mean_abs:.2g}",
                "-" if output.agreement is None else f"{output.agreement:.2%}",
            )
            for output in self.outputs
        ]
        header = ("output", "largest difference", "mean difference", "equal decisions")
        found = [] if self.weights is None else [("weights accounted for", _share(*self.weights))]
        covered = table(
            ("what was compared", ""),
            [*self.covered.items(), *found, ("held to", self.criteria)],
        )
        return f"{table(header, rows)}\n\n{covered}"


@dataclass(frozen=True)
class ExportFacts:
    """What a graph is.

    Attributes:
        task: The model's task; None for one without a head.
        architecture: The model's class.
        precision: "fp32", "fp16" or "int8".
        opset: ONNX operator set version.
        inputs: Names of the graph's inputs.
        parity: The comparison with PyTorch; None where there was none.
    """

    task: Task | None
    architecture: str
    precision: str
    opset: int
    inputs: Sequence[str]
    parity: ParityFacts | None
