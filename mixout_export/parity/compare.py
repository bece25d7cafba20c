"""Compare the outputs of two sides, batch by batch."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mixout_export.checkpoint.model_inputs import Batch
from mixout_export.files.json_files import fields_as_json
from mixout_export.parity.decisions import (
    DATA_BATCH,
    DecisionComparison,
    DecisionCounts,
    DecisionLimits,
    Flip,
    Rows,
)
from mixout_export.tasks import known_task
from mixout_export.tasks.decision import Rule

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

#: Number of values compared at once. A language model returns one for each token and each word.
_CHUNK = 1 << 20

#: Outputs that have a value for each token, whether the task is known or not.
_PER_TOKEN_OUTPUTS = ("last_hidden_state", "start_logits", "end_logits")

#: The histogram of |candidate − reference| counts zeros, values below the first edge, the values of
#: each decade, and values from the last edge on, which include NaN and infinity.
HISTOGRAM_EDGES = tuple(10.0**exponent for exponent in range(-10, 3))


@dataclass(frozen=True)
class Tolerance:
    """Two values agree if |candidate − reference| <= atol + rtol · |reference|."""

    atol: float
    rtol: float

    @property
    def words(self) -> str:
        """The two numbers, for example "atol 1e-05, rtol 0.0001"."""
        return f"atol {self.atol:g}, rtol {self.rtol:g}"

    def limit(self, name: str) -> str:
        """Return how far a value may differ, as a formula. `name` is what it is compared with."""
        return f"{self.atol:g} + {self.rtol:g}·|{name}|"


#: Least precise dtype that the weights were rounded to → tolerance. bf16 has three bits less than
#: fp16 and so eight times its rounding error: the logits of a BERT with 22 M parameters, which are
#: within ±3, change by up to 2.7e-3 with fp16 weights and by up to 2.1e-2 with bf16 weights.
TOLERANCES: dict[str, Tolerance] = {
    "fp32": Tolerance(atol=1e-5, rtol=1e-4),
    "fp16": Tolerance(atol=5e-3, rtol=1e-3),
    "bf16": Tolerance(atol=4e-2, rtol=8e-3),
}


@dataclass(frozen=True)
class OutputDifference:
    """How much one output differs, over all batches.

    Attributes:
        name: Name of the output.
        max_abs: Largest |candidate − reference|; infinite where a shape or a NaN differs.
        mean_abs: Mean |candidate − reference|.
        max_relative: Largest |candidate − reference| / |reference|, over the elements beyond the
            absolute tolerance; 0 where there are none.
        elements: Number of values compared.
        exceeding: Number of values beyond the tolerance.
        not_a_number: Number of values that are NaN on either side; each counts as exceeding.
        worst_batch: Name of the batch with the largest difference.
        worst_shape: Shape of that batch's inputs.
        problem: A reason to fail other than a number; "" if none.
        shortfall: The limit that the output as a whole exceeds, as the end of a sentence; "" if
            none.
        relative_l2: ‖candidate − reference‖ / ‖reference‖ over all values.
        by_batch: Name of a batch → its decisions.
        flip_examples: Flips with their inputs, first those on the user's own data.
        histogram: Number of differences by size, see `HISTOGRAM_EDGES`.
        undefined_max_abs: Largest difference in rows that are all padding. Their result is not
            defined, so they are not judged. None if there are no such rows.
        worst_number: Number of that batch in the battery, from 0; -1 if none was compared.
        worst_row: The row of it that differs most; -1 likewise.
        tolerance: Tolerance for each value; None accepts every finite value.

    The other fields are those of `DecisionCounts`, over all batches; 0 without decisions.
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
    shortfall: str = ""
    relative_l2: float = 0.0
    mean_shift: float = 0.0
    max_shift: float = 0.0
    sure: int = 0
    sure_flips: int = 0
    by_batch: Mapping[str, DecisionCounts] = field(default_factory=dict)
    flip_examples: tuple[Flip, ...] = ()
    histogram: tuple[int, ...] = (0,) * (len(HISTOGRAM_EDGES) + 2)
    undefined_max_abs: float | None = None
    worst_number: int = -1
    worst_row: int = -1
    tolerance: Tolerance | None = None

    @property
    def holds(self) -> bool:
        """Whether every value is within the tolerance, and the output within its bounds."""
        failed = self.exceeding or self.problem or self.shortfall
        return not failed and self.elements > 0

    @property
    def agreement(self) -> float | None:
        """Share of equal decisions in [0, 1]; None where the output carries none."""
        return 1.0 - self.flips / self.decisions if self.decisions else None

    @property
    def judged(self) -> DecisionCounts | None:
        """The decisions to judge: those on the user's own data, or else the sure ones.

        On most random ids a model may be undecided, and then rounding decides. None if the output
        has no decisions.
        """
        if not self.decisions:
            return None
        if self.on_data:
            return self.by_batch[DATA_BATCH]
        return DecisionCounts(self.sure, self.sure_flips, self.mean_shift, self.max_shift)

    @property
    def on_data(self) -> bool:
        """Whether the user's own data was run; then only its decisions are judged."""
        return DATA_BATCH in self.by_batch

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return fields_as_json(self, "agreement", "holds")


def _histogram(difference: Array) -> Array:
    """Count differences, float64 `(n,)` without NaN, by size, see `HISTOGRAM_EDGES`."""
    at_least = [difference.size, np.count_nonzero(difference)]
    for edge in HISTOGRAM_EDGES:
        left = at_least[-1]
        at_least.append(np.count_nonzero(difference >= edge) if left else 0)
    return -np.diff([*at_least, 0])


class OutputComparison:
    """Collects how much one output differs, over the batches of a battery.

    Args:
        name: Name of the output.
        tolerance: Tolerance for each value; None accepts every finite value.
        limits: Limits for the output as a whole.
        decision: How the output becomes a decision.
        per_token: Whether the output has a value for each token. The values of padding have no
            meaning and are skipped.
    """

    def __init__(
        self,
        name: str,
        tolerance: Tolerance | None,
        *,
        limits: DecisionLimits | None = None,
        decision: Rule | None = None,
        per_token: bool = False,
    ) -> None:
        self.name = name
        self.tolerance = tolerance
        self.limits = limits or DecisionLimits()
        self.per_token = per_token
        self._decisions = DecisionComparison(decision)
        self._max_abs = -1.0
        self._sum_abs = self._sum_squares = self._reference_squares = 0.0
        self._max_relative = 0.0
        self._batches = self._elements = self._exceeding = self._not_a_number = 0
        self._histogram = np.zeros(len(HISTOGRAM_EDGES) + 2, dtype=np.int64)
        self._worst: tuple[str, tuple[int, ...], int, int] = ("", (), -1, -1)
        self._problem = ""
        self._undefined: float | None = None

    def add(self, batch: Batch, reference: Array, candidate: Array) -> None:
        """Compare the output of one batch, float `(batch, ...)` on both sides."""
        number, self._batches = self._batches, self._batches + 1
        if reference.shape != candidate.shape:
            self._problem = self._problem or (
                f"has shape {candidate.shape}, expected {reference.shape}, at a {batch.name} "
                f"batch of {batch.shape}"
            )
            return
        real = self._real_tokens(batch, reference)
        undefined = batch.undefined_rows
        self._add_undefined(reference[undefined], candidate[undefined])
        step = max(1, _CHUNK * len(reference) // max(1, reference.size))
        for rows in _runs(~undefined, step):
            for places in _pieces(reference[rows].shape):
                part = (rows, *places)
                self._add_rows(
                    Rows(
                        batch=batch,
                        number=number,
                        first=rows.start,
                        place=places[0].start if places else 0,
                        reference=reference[part].astype(np.float64),
                        candidate=candidate[part].astype(np.float64),
                        real=None if real is None else real[part],
                    )
                )

    def _add_undefined(self, reference: Array, candidate: Array) -> None:
        """Record how much rows that are all padding differ. They are not judged."""
        if len(reference):
            difference = self._difference(
                reference.astype(np.float64), candidate.astype(np.float64)
            )
            largest = float(np.where(np.isnan(difference), np.inf, difference).max())
            self._undefined = max(self._undefined or 0.0, largest)

    def _add_rows(self, rows: Rows) -> None:
        """Compare some rows of a batch's output."""
        self._decisions.add(rows)
        reference, candidate = rows.reference, rows.candidate
        if rows.real is not None:
            reference, candidate = reference[rows.real], candidate[rows.real]
        difference = self._difference(reference, candidate)
        nan = np.isnan(difference)
        finite = np.where(nan, np.inf, difference)
        self._elements += difference.size
        self._not_a_number += int(nan.sum())
        self._exceeding += int(self._beyond(reference, finite).sum())
        self._histogram += _histogram(finite)
        self._sum_abs += float(finite.sum())
        self._sum_squares += float(np.square(finite).sum())
        self._reference_squares += float(np.square(reference[np.isfinite(reference)]).sum())
        self._add_relative(reference, finite)
        worst = float(finite.max(initial=0.0))
        if worst > self._max_abs:
            row = rows.first + _worst_row(finite, rows.real)
            self._max_abs = worst
            self._worst = (rows.batch.name, rows.batch.shape, rows.number, row)

    def _beyond(self, reference: Array, difference: Array) -> Mask:
        """Return which differences are beyond the tolerance. Infinite ones always are."""
        if self.tolerance is None:
            return np.isinf(difference)
        scale = np.where(np.isfinite(reference), np.abs(reference), 0.0)
        return np.asarray(difference > self.tolerance.atol + self.tolerance.rtol * scale)

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
        smallest = 0.0 if self.tolerance is None else self.tolerance.atol
        beyond = (difference > smallest) & (reference != 0) & np.isfinite(difference)
        if beyond.any():
            relative = float((difference[beyond] / np.abs(reference[beyond])).max())
            self._max_relative = max(self._max_relative, relative)

    def _relative_l2(self) -> float:
        """Return ‖candidate − reference‖ / ‖reference‖: 0 if equal, infinite over a zero."""
        if not self._sum_squares:
            return 0.0
        ratio = self._sum_squares / self._reference_squares if self._reference_squares else math.inf
        return math.sqrt(ratio)

    def result(self) -> OutputDifference:
        """Return the differences over all batches so far."""
        found = OutputDifference(
            **vars(self._decisions.total),
            name=self.name,
            max_abs=float("inf") if self._problem else max(self._max_abs, 0.0),
            mean_abs=self._sum_abs / self._elements if self._elements else 0.0,
            max_relative=self._max_relative,
            elements=self._elements,
            exceeding=self._exceeding,
            not_a_number=self._not_a_number,
            worst_batch=self._worst[0],
            worst_shape=self._worst[1],
            worst_number=self._worst[2],
            worst_row=self._worst[3],
            problem=self._problem,
            relative_l2=self._relative_l2(),
            by_batch=self._decisions.by_batch,
            flip_examples=self._decisions.flips,
            histogram=tuple(self._histogram.tolist()),
            undefined_max_abs=self._undefined,
            tolerance=self.tolerance,
        )
        missed = self.limits.shortfall(found.judged, found.relative_l2, on_data=found.on_data)
        return replace(found, shortfall=missed)


def _pieces(shape: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    """Yield slices of the second axis with about `_CHUNK` values each; () stands for everything.

    One long row of a language model's logits has more values than the model has weights. Without a
    third axis, one decision is made from the whole row, so it is not cut.
    """
    values = math.prod(shape)
    if len(shape) < 3 or values <= _CHUNK:
        yield ()
        return
    step = max(1, _CHUNK * shape[1] // values)
    for first in range(0, shape[1], step):
        yield (slice(first, first + step),)


def _worst_row(difference: Array, real: Mask | None) -> int:
    """Return the row of the largest difference. `real` says which tokens `difference` holds."""
    if not difference.size:
        return 0
    first = int(np.unravel_index(difference.argmax(), difference.shape)[0])
    return first if real is None else int(np.argwhere(real)[first][0])


def _runs(chosen: Mask, longest: int) -> Iterator[slice]:
    """Yield slices of at most `longest` that cover the true elements of `chosen`, bool `(n,)`."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], chosen.astype(np.int8), [0]])))
    for start, stop in edges.reshape(-1, 2).tolist():
        for first in range(start, stop, longest):
            yield slice(first, min(first + longest, stop))


def decision_of(task: str | None, output: str) -> Rule | None:
    """Return how a task decides from an output; None if it does not."""
    if task is None or output == "last_hidden_state":
        return None
    known = known_task(task)
    if known is None:
        return "argmax"  # a graph from another tool may name any task
    return None if known.decision is None else known.decision.rule


def is_per_token(task: str | None, output: str) -> bool:
    """Return whether an output has a value for each token of the input."""
    known = known_task(task)
    return output in _PER_TOKEN_OUTPUTS or (known is not None and known.per_token)
