"""What a task decides from an output, and how far two sides' decisions are apart."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mixout_export.checkpoint.model_inputs import Batch
from mixout_export.tasks.decision import Rule

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

#: Flips kept with their inputs: those on the user's own data, then those with the widest margins.
FLIP_EXAMPLES = 20

#: Batches of the user's own data. Where there are any, they alone decide: ids drawn at random lie
#: far from what the model was trained on, and flip more than text does.
DATA_BATCH = "data"

#: A decision is sure if the probabilities of the two likeliest answers are at least so far apart.
SURE = 0.1


@dataclass(frozen=True)
class Flip:
    """A decision that differs, with the inputs it was made on.

    Attributes:
        batch: Name of its batch.
        batch_number: Which of the battery's batches, from 0.
        row: Row of the batch.
        index: Which decision of the row: () where it has one, the token's position, the label.
        reference: What the reference decides: the index of a label, 0 or 1 for a label's sign.
        candidate: What the candidate decides.
        margin: How sure the reference was: its two largest logits' distance, or |logit|.
        shift: Total variation distance of the probabilities, in [0, 1].
        inputs: The row's inputs as nested lists, without the padding at their end; images are left
            out, the batch and the row tell which one it is.
    """

    batch: str
    batch_number: int
    row: int
    index: tuple[int, ...]
    reference: int
    candidate: int
    margin: float
    shift: float
    inputs: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values; None stands for infinity, which JSON lacks."""
        margin = self.margin if math.isfinite(self.margin) else None
        return {**vars(self), "index": list(self.index), "margin": margin}


@dataclass(frozen=True)
class DecisionCounts:
    """How far decisions are apart over some batches.

    Attributes:
        decisions: Decisions compared.
        flips: Those that differ.
        mean_shift: Mean total variation distance of the probabilities, in [0, 1].
        max_shift: The largest.
        sure: Decisions of which the reference was sure, as `SURE` says.
        sure_flips: Those of them that differ.
    """

    decisions: int
    flips: int
    mean_shift: float
    max_shift: float
    sure: int = 0
    sure_flips: int = 0

    @property
    def agreement(self) -> float:
        """Share of equal decisions in [0, 1]; 1 where there are none."""
        return 1.0 - self.flips / max(self.decisions, 1)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return {**asdict(self), "agreement": self.agreement}


class _Gathered:
    """Sums behind a `DecisionCounts`."""

    def __init__(self) -> None:
        self.decisions = self.flips = 0
        self.sure = self.sure_flips = 0
        self.sum_shift = self.max_shift = 0.0

    def add(self, shift: Array, sure: Mask, differ: Mask) -> None:
        """Add decisions: how far probabilities moved, which are sure, which differ."""
        self.decisions += shift.size
        self.flips += int(differ.sum())
        self.sure += int(sure.sum())
        self.sure_flips += int((differ & sure).sum())
        self.sum_shift += float(shift.sum())
        self.max_shift = max(self.max_shift, float(shift.max()))

    def __add__(self, other: "_Gathered") -> "_Gathered":
        both = _Gathered()
        both.decisions = self.decisions + other.decisions
        both.flips = self.flips + other.flips
        both.sure = self.sure + other.sure
        both.sure_flips = self.sure_flips + other.sure_flips
        both.sum_shift = self.sum_shift + other.sum_shift
        both.max_shift = max(self.max_shift, other.max_shift)
        return both

    def counts(self) -> DecisionCounts:
        return DecisionCounts(
            decisions=self.decisions,
            flips=self.flips,
            mean_shift=self.sum_shift / self.decisions if self.decisions else 0.0,
            max_shift=self.max_shift,
            sure=self.sure,
            sure_flips=self.sure_flips,
        )


def _softmax(logits: Array) -> Array:
    exponentials: Array = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))


def _sigmoid(logits: Array) -> Array:
    with np.errstate(over="ignore"):
        return np.asarray(1.0 / (1.0 + np.exp(-logits)))


def _decide(logits: Array, decision: Rule) -> Array:
    """Return what is decided, int64, from float64 logits `(..., labels)`."""
    chosen = logits.argmax(axis=-1) if decision == "argmax" else logits > 0
    return np.asarray(chosen, dtype=np.int64)


def _probabilities(logits: Array, decision: Rule) -> Array:
    """Return each label's probability, of the same shape."""
    with np.errstate(invalid="ignore"):
        return _sigmoid(logits) if decision == "sign" else _softmax(logits)


def _shift(reference: Array, candidate: Array, decision: Rule) -> Array:
    """Return the total variation distance of each decision's probabilities, in [0, 1].

    It bounds by how much the probability of any set of labels differs; of two labels it is the
    difference of either's probability. A NaN on either side counts as 1.

    Args:
        reference: Probabilities, float64 `(..., labels)`.
        candidate: The same of the other side.
        decision: Whether the labels share one decision ("argmax"), or each has its own ("sign").

    Returns:
        Float64 `(...)` for "argmax", `(..., labels)` for "sign".
    """
    shift = np.abs(candidate - reference)
    if decision == "argmax":
        shift = 0.5 * shift.sum(axis=-1)
    return np.where(np.isnan(shift), 1.0, shift)


def _is_sure(probabilities: Array, chosen: Array, decision: Rule) -> Mask:
    """Return which decisions are sure: bool of the decisions' shape."""
    if decision == "sign":
        return np.asarray(np.abs(2.0 * probabilities - 1.0) >= SURE)
    places = chosen[..., None]
    first = np.take_along_axis(probabilities, places, axis=-1)[..., 0]
    others = probabilities.copy()
    np.put_along_axis(others, places, 0.0, axis=-1)
    return np.asarray(first - others.max(axis=-1) >= SURE)


def _margins(logits: Array) -> Array:
    """Return the distance of the two largest logits: float64 `(n, labels)` -> `(n,)`."""
    if logits.shape[-1] < 2:
        return np.full(len(logits), np.inf)
    two = np.partition(logits, -2, axis=-1)
    return np.asarray(two[:, -1] - two[:, -2])


def _row_inputs(batch: Batch, row: int) -> dict[str, Any]:
    """Return a row's inputs as nested lists, without the padding at their end.

    Padding before or between tokens stays, so that positions in the row mean what they did.
    """
    mask = batch.inputs.get("attention_mask")
    if mask is None or not mask[row].any():
        small = {name: value[row] for name, value in batch.inputs.items() if value[row].ndim < 3}
        return {name: value.tolist() for name, value in small.items()}
    real = mask[row].reshape(-1, mask.shape[-1]).any(axis=0)
    length = int(np.flatnonzero(real)[-1]) + 1
    return {
        name: (value[row][..., :length] if value.shape == mask.shape else value[row]).tolist()
        for name, value in batch.inputs.items()
    }


@dataclass(frozen=True)
class Rows:
    """Some rows of a batch's output on both sides.

    Attributes:
        batch: The batch.
        number: Which of the battery's batches, from 0.
        first: The first of the rows.
        place: The first on the second axis, where a row is compared piece by piece.
        reference: Logits, float64 `(rows, ..., labels)`.
        candidate: The same of the other side.
        real: Which tokens are not padding, bool `(rows, ..., sequence)`, where the output has a
            value for each token; None if all count.
    """

    batch: Batch
    number: int
    first: int
    place: int
    reference: Array
    candidate: Array
    real: Mask | None


class DecisionComparison:
    """Gathers one output's decisions over the batches of a battery."""

    def __init__(self, decision: Rule) -> None:
        """Start with nothing compared."""
        self.decision = decision
        self._groups: dict[str, _Gathered] = {}
        self._flips: list[Flip] = []

    def add(self, rows: Rows) -> None:
        """Compare some rows of a batch."""
        reference, candidate, counted = rows.reference, rows.candidate, rows.real
        if counted is not None and reference.ndim == counted.ndim:  # which token is decided
            some = counted.any(axis=-1)
            reference = np.where(counted, reference, -np.inf)[some]
            candidate = np.where(counted, candidate, -np.inf)[some]
            places = np.argwhere(some)
        elif counted is not None:
            reference, candidate = reference[counted], candidate[counted]
            places = np.argwhere(counted)
        else:
            places = np.argwhere(np.ones(reference.shape[:-1], dtype=bool))
            reference = reference.reshape(-1, reference.shape[-1])
            candidate = candidate.reshape(-1, candidate.shape[-1])
        if not len(reference):
            return
        ours, theirs = (_decide(logits, self.decision) for logits in (reference, candidate))
        probabilities = _probabilities(reference, self.decision)
        shift = _shift(probabilities, _probabilities(candidate, self.decision), self.decision)
        sure = _is_sure(probabilities, ours, self.decision)
        differ = ours != theirs
        self._groups.setdefault(rows.batch.name, _Gathered()).add(shift, sure, differ)
        if differ.any():
            self._keep_flips(rows, reference, places, ours, theirs, shift)

    def _keep_flips(
        self, rows: Rows, reference: Array, places: Array, ours: Array, theirs: Array, shift: Array
    ) -> None:
        """Keep the flips with the widest margins; decisions are `(n,)`, or `(n, labels)`."""
        flipped = np.argwhere(ours != theirs)
        if self.decision == "sign":
            margins = np.abs(reference[tuple(flipped.T)])
        else:
            margins = _margins(reference[flipped[:, 0]])
        margins = np.where(np.isnan(margins), np.inf, margins)
        for chosen in np.argsort(-margins, kind="stable")[:FLIP_EXAMPLES]:
            at = tuple(int(i) for i in flipped[chosen])
            row, *index = (int(i) for i in places[at[0]])
            if index:
                index[0] += rows.place
            self._flips.append(
                Flip(
                    batch=rows.batch.name,
                    batch_number=rows.number,
                    row=rows.first + row,
                    index=(*index, *at[1:]),
                    reference=int(ours[at]),
                    candidate=int(theirs[at]),
                    margin=float(margins[chosen]),
                    shift=float(shift[at]),
                    inputs=_row_inputs(rows.batch, rows.first + row),
                )
            )
        self._flips.sort(key=lambda flip: (flip.batch != DATA_BATCH, -flip.margin))
        del self._flips[FLIP_EXAMPLES:]

    @property
    def by_batch(self) -> dict[str, DecisionCounts]:
        """The counts, by the batches' names."""
        return {name: group.counts() for name, group in self._groups.items()}

    @property
    def total(self) -> DecisionCounts:
        """The counts over all batches."""
        return sum(self._groups.values(), _Gathered()).counts()

    @property
    def flips(self) -> tuple[Flip, ...]:
        """Up to `FLIP_EXAMPLES` flips: the user's own data first, then by the widest margin."""
        return tuple(self._flips)
