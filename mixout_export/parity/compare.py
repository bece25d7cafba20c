"""How far two sides' outputs are apart, gathered batch by batch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mixout_export.parity.battery import Batch

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

#: Values compared at once: language models give a number for each token and each word.
_CHUNK = 1 << 20

#: How an output becomes a decision: the largest logit, each logit's sign, or none.
Decision = Literal["argmax", "sign"]


@dataclass(frozen=True)
class Tolerance:
    """Two values agree if |candidate − reference| <= atol + rtol · |reference|."""

    atol: float
    rtol: float


#: By the precision that weights were rounded to on the way, "fp32" where they were not. bf16 has
#: three bits less than fp16, so eight times its rounding error: on a 22 M BERT whose logits lie
#: within ±3, fp16 weights move them by up to 2.7e-3 and bf16 weights by up to 2.1e-2.
TOLERANCES: dict[str, Tolerance] = {
    "fp32": Tolerance(atol=1e-5, rtol=1e-4),
    "fp16": Tolerance(atol=5e-3, rtol=1e-3),
    "bf16": Tolerance(atol=4e-2, rtol=8e-3),
}


@dataclass(frozen=True)
class OutputDifference:
    """How far one output is apart, over all batches.

    Attributes:
        name: The output's name.
        max_abs: Largest |candidate − reference|; infinite where a shape or a NaN differs.
        mean_abs: Mean |candidate − reference|.
        max_relative: Largest |candidate − reference| / |reference|, over the elements beyond the
            absolute tolerance; 0 where there are none.
        elements: Values compared.
        exceeding: Values beyond the tolerance.
        not_a_number: Values that are NaN on either side; each counts as exceeding.
        decisions: Decisions compared; 0 where the output carries none.
        flips: Decisions that differ.
        worst_batch: Name of the batch with the largest difference.
        worst_shape: Shape of that batch's inputs.
        problem: A reason to fail other than a number, "" if none.
    """

    name: str
    max_abs: float
    mean_abs: float
    max_relative: float
    elements: int
    exceeding: int
    not_a_number: int
    decisions: int
    flips: int
    worst_batch: str
    worst_shape: tuple[int, ...]
    problem: str = ""

    @property
    def holds(self) -> bool:
        """Whether every value is within the tolerance."""
        return not self.exceeding and not self.problem and self.elements > 0

    @property
    def agreement(self) -> float | None:
        """Share of equal decisions in [0, 1]; None where the output carries none."""
        return 1.0 - self.flips / self.decisions if self.decisions else None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values; None stands for infinity, which JSON lacks."""
        fields = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in vars(self).items()
        }
        fields["worst_shape"] = list(self.worst_shape)
        return {**fields, "agreement": self.agreement, "holds": self.holds}


class OutputComparison:
    """Gathers one output's differences over the batches of a battery."""

    def __init__(
        self,
        name: str,
        tolerance: Tolerance,
        *,
        decision: Decision | None = None,
        per_token: bool = False,
    ) -> None:
        """Start with nothing compared.

        Args:
            name: The output's name.
            tolerance: What values are judged by.
            decision: How the output becomes a decision.
            per_token: Whether it has a value for each token: then those of padding, which mean
                nothing, are left out.
        """
        self.name = name
        self.tolerance = tolerance
        self.decision = decision
        self.per_token = per_token
        self._max_abs = -1.0
        self._sum_abs = 0.0
        self._max_relative = 0.0
        self._elements = self._exceeding = self._not_a_number = 0
        self._decisions = self._flips = 0
        self._worst: tuple[str, tuple[int, ...]] = ("", ())
        self._problem = ""

    def add(self, batch: Batch, reference: Array, candidate: Array) -> None:
        """Compare one batch's output, float `(batch, ...)` on both sides."""
        if reference.shape != candidate.shape:
            self._problem = self._problem or (
                f"has shape {candidate.shape}, expected {reference.shape}, at a {batch.name} "
                f"batch of {batch.shape}"
            )
            return
        real = self._real_tokens(batch, reference)
        step = max(1, _CHUNK * len(reference) // max(1, reference.size))
        for start in range(0, len(reference), step):
            rows = slice(start, start + step)
            self._add_rows(
                batch,
                reference[rows].astype(np.float64),
                candidate[rows].astype(np.float64),
                None if real is None else real[rows],
            )

    def _add_rows(
        self, batch: Batch, reference: Array, candidate: Array, real: Mask | None
    ) -> None:
        """Compare some rows of a batch's output, float64."""
        self._add_decisions(reference, candidate, real)
        if real is not None:
            reference, candidate = reference[real], candidate[real]
        difference = self._difference(reference, candidate)
        nan = np.isnan(difference)
        finite = np.where(nan, np.inf, difference)
        scale = np.where(np.isfinite(reference), np.abs(reference), 0.0)
        beyond = finite > self.tolerance.atol + self.tolerance.rtol * scale
        self._elements += difference.size
        self._not_a_number += int(nan.sum())
        self._exceeding += int(beyond.sum())
        self._sum_abs += float(finite.sum())
        self._add_relative(reference, finite)
        worst = float(finite.max(initial=0.0))
        if worst > self._max_abs:
            self._max_abs, self._worst = worst, (batch.name, batch.shape)

    def _real_tokens(self, batch: Batch, output: Array) -> Mask | None:
        """Return which tokens are not padding, bool `(batch, sequence)`; None if all count."""
        mask = batch.inputs.get("attention_mask")
        if not self.per_token or mask is None or output.shape[: mask.ndim] != mask.shape:
            return None
        real: Mask = mask != 0
        return None if real.all() else real

    @staticmethod
    def _difference(reference: Array, candidate: Array) -> Array:
        """Return |candidate − reference|: 0 for equal infinities, NaN where either is NaN."""
        with np.errstate(invalid="ignore"):
            difference: Array = np.abs(candidate - reference)
        difference[(candidate == reference) & np.isinf(reference)] = 0.0
        return difference

    def _add_relative(self, reference: Array, difference: Array) -> None:
        beyond = (difference > self.tolerance.atol) & (reference != 0) & np.isfinite(difference)
        if beyond.any():
            relative = float((difference[beyond] / np.abs(reference[beyond])).max())
            self._max_relative = max(self._max_relative, relative)

    def _add_decisions(self, reference: Array, candidate: Array, real: Mask | None) -> None:
        if self.decision is None:
            return
        if real is not None and reference.ndim == real.ndim:  # which token is decided
            reference, candidate = (np.where(real, x, -np.inf) for x in (reference, candidate))
        elif real is not None:
            reference, candidate = reference[real], candidate[real]
        if self.decision == "argmax":
            ours, theirs = reference.argmax(axis=-1), candidate.argmax(axis=-1)
        else:
            ours, theirs = reference > 0, candidate > 0
        self._decisions += ours.size
        self._flips += int((ours != theirs).sum())

    def result(self) -> OutputDifference:
        """Return what was gathered."""
        return OutputDifference(
            name=self.name,
            max_abs=float("inf") if self._problem else max(self._max_abs, 0.0),
            mean_abs=self._sum_abs / self._elements if self._elements else 0.0,
            max_relative=self._max_relative,
            elements=self._elements,
            exceeding=self._exceeding,
            not_a_number=self._not_a_number,
            decisions=self._decisions,
            flips=self._flips,
            worst_batch=self._worst[0],
            worst_shape=self._worst[1],
            problem=self._problem,
        )


def decision_of(task: str | None, output: str) -> Decision | None:
    """Return how a task decides from an output; None where it does not."""
    if task is None or task == "regression" or output == "last_hidden_state":
        return None
    return "sign" if task == "multi-label" else "argmax"


def is_per_token(task: str | None, output: str) -> bool:
    """Tell whether an output has a value for each token of the input."""
    return output in ("last_hidden_state", "start_logits", "end_logits") or task in (
        "token-classification",
        "masked-lm",
        "causal-lm",
    )


def compare_outputs(
    comparisons: Mapping[str, OutputComparison],
    batch: Batch,
    reference: Mapping[str, Array],
    candidate: Mapping[str, Array],
) -> None:
    """Add one batch's outputs to each output's comparison."""
    for name, comparison in comparisons.items():
        comparison.add(batch, reference[name], candidate[name])
