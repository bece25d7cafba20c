"""The decisions that a task makes from an output, and how much those of two sides differ."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mixout_export.checkpoint.model_inputs import Batch
from mixout_export.files.json_files import fields_as_json
from mixout_export.rounding import share
from mixout_export.tasks.decision import Rule

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

#: Number of flips that are kept with their inputs.
FLIP_EXAMPLES = 20

#: Name of the batches with the user's own data. If there are any, only they are judged: random ids
#: are far from what the model was trained on, so their decisions flip more than those of text.
DATA_BATCH = "data"

#: A decision is sure if the probabilities of the two likeliest answers differ by at least this.
SURE = 0.1


@dataclass(frozen=True)
class Flip:
    """A decision that differs, with the inputs that it was made on.

    Attributes:
        batch: Name of its batch.
        batch_number: Number of the batch in the battery, from 0.
        row: Row of the batch.
        index: Which decision of the row: () if there is one per row, else the position of the token
            or the index of the label.
        reference: What the reference decides: the index of a label, or 0 or 1 for a label's sign.
        candidate: What the candidate decides.
        margin: How sure the reference was: the distance of its two largest logits, or |logit|.
        shift: Total variation distance of the probabilities, in [0, 1].
        inputs: The row's inputs as nested lists, without the padding at their end. Images are left
            out; the batch and the row identify them.
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


@dataclass(frozen=True)
class DecisionCounts:
    """How much the decisions on some batches differ.

    Attributes:
        decisions: Number of decisions compared.
        flips: Number of decisions that differ.
        mean_shift: Mean total variation distance of the probabilities, in [0, 1].
        max_shift: The largest such distance.
        sure: Number of decisions of which the reference was sure, see `SURE`.
        sure_flips: Number of those that differ.
    """

    decisions: int
    flips: int
    mean_shift: float
    max_shift: float
    sure: int = 0
    sure_flips: int = 0

    @property
    def agreement(self) -> float:
        """Share of equal decisions, in [0, 1]; 1 if there are none."""
        return 1.0 - self.flips / max(self.decisions, 1)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return fields_as_json(self, "agreement")


@dataclass(frozen=True)
class DecisionLimits:
    """Limits for an output as a whole. None means no limit.

    Attributes:
        agreement: Smallest share of equal decisions, in [0, 1].
        mean_shift: Largest mean total variation distance of the decisions' probabilities, in
            [0, 1].
        relative_l2: Largest ‖candidate − reference‖ / ‖reference‖. It applies only if no decisions
            are judged.
    """

    agreement: float | None = None
    mean_shift: float | None = None
    relative_l2: float | None = None

    def accepting(self, agreement: float) -> "DecisionLimits":
        """Return the limits of a user who states the smallest share of equal decisions.

        Who accepts more changed decisions than usual also accepts what changes them: probabilities
        that move further.
        """
        accepted = self.agreement is not None and agreement < self.agreement
        return replace(self, agreement=agreement, mean_shift=None if accepted else self.mean_shift)

    def shortfall(self, judged: DecisionCounts | None, relative_l2: float, *, on_data: bool) -> str:
        """Return the limit that an output exceeds, as the end of a sentence; "" if none.

        Args:
            judged: The decisions to judge; None if the output has no decisions.
            relative_l2: ‖candidate − reference‖ / ‖reference‖.
            on_data: Whether `judged` holds all decisions on the user's data. Otherwise it holds
                the sure decisions of the battery.
        """
        if judged is None or not judged.decisions:
            if self.relative_l2 is None or relative_l2 <= self.relative_l2:
                return ""
            return (
                f"differs by {relative_l2:.3g} of its norm, expected at most {self.relative_l2:g}"
            )
        where = f"{judged.decisions} {'decisions on the data' if on_data else 'sure decisions'}"
        if self.agreement is not None and judged.agreement < self.agreement:
            return (
                f"agrees on {share(judged.agreement)} of {where}, expected at least "
                f"{share(self.agreement)}"
            )
        if self.mean_shift is not None and judged.mean_shift > self.mean_shift:
            return (
                f"changes probabilities by {judged.mean_shift:.3g} on average over {where}, "
                f"expected at most {self.mean_shift:g}"
            )
        return ""


#: Precision → limits. int8 changes values by an amount that depends on the model, so its decisions
#: are judged. Other precisions have a tolerance for every value. For an output without decisions,
#: the norm is judged: the hidden states of a BERT with 22 M parameters change by 0.2 of their norm.
DECISION_LIMITS: dict[str, DecisionLimits] = {
    "int8": DecisionLimits(agreement=0.97, mean_shift=0.05, relative_l2=0.3),
}


@dataclass
class _Sums:
    """The sums of a `DecisionCounts`."""

    decisions: int = 0
    flips: int = 0
    sure: int = 0
    sure_flips: int = 0
    sum_shift: float = 0.0
    max_shift: float = 0.0

    def add(self, shift: Array, sure: Mask, differ: Mask) -> None:
        """Add decisions: how far probabilities moved, which are sure, and which differ."""
        self.decisions += shift.size
        self.flips += int(differ.sum())
        self.sure += int(sure.sum())
        self.sure_flips += int((differ & sure).sum())
        self.sum_shift += float(shift.sum())
        self.max_shift = max(self.max_shift, float(shift.max()))

    def counts(self) -> DecisionCounts:
        mean = self.sum_shift / max(self.decisions, 1)
        return DecisionCounts(
            self.decisions, self.flips, mean, self.max_shift, self.sure, self.sure_flips
        )


def _decide(logits: Array, decision: Rule) -> Array:
    """Return the decisions, int64, from float64 logits `(..., labels)`."""
    chosen = logits.argmax(axis=-1) if decision == "argmax" else logits > 0
    return np.asarray(chosen, dtype=np.int64)


def _probabilities(logits: Array, decision: Rule) -> Array:
    """Return the probability of each label, in the shape of `logits`."""
    with np.errstate(invalid="ignore", over="ignore"):
        if decision == "sign":
            return np.asarray(1.0 / (1.0 + np.exp(-logits)))
        exponentials: Array = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))


def _shift(reference: Array, candidate: Array, decision: Rule) -> Array:
    """Return the total variation distance of each decision's probabilities, in [0, 1].

    It is the most by which the probability of any set of labels differs. NaN counts as 1.

    Args:
        reference: Probabilities, float64 `(..., labels)`.
        candidate: Probabilities of the other side, of the same shape.
        decision: "argmax" if the labels share one decision, "sign" if each has its own.

    Returns:
        Float64, `(...)` for "argmax" and `(..., labels)` for "sign".
    """
    shift = np.abs(candidate - reference)
    if decision == "argmax":
        shift = 0.5 * shift.sum(axis=-1)
    return np.where(np.isnan(shift), 1.0, shift)


def _is_sure(probabilities: Array, chosen: Array, decision: Rule) -> Mask:
    """Return which decisions are sure, bool in the shape of the decisions."""
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

    Padding before or between tokens stays, so that positions keep their meaning.
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
        number: Number of the batch in the battery, from 0.
        first: Number of the first row.
        place: First index on the second axis, if a row is compared piece by piece.
        reference: Logits, float64 `(rows, ..., labels)`.
        candidate: Logits of the other side, of the same shape.
        real: If the output has a value for each token: which tokens are not padding, bool
            `(rows, ..., sequence)`. None if all count.
    """

    batch: Batch
    number: int
    first: int
    place: int
    reference: Array
    candidate: Array
    real: Mask | None


class DecisionComparison:
    """Collects the decisions from one output, over the batches of a battery."""

    def __init__(self, decision: Rule | None) -> None:
        self.decision = decision
        self._total = _Sums()
        self._groups: dict[str, _Sums] = {}
        self._flips: list[Flip] = []

    def add(self, rows: Rows) -> None:
        """Compare some rows of a batch."""
        if self.decision is None:
            return
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
        for sums in (self._total, self._groups.setdefault(rows.batch.name, _Sums())):
            sums.add(shift, sure, differ)
        if differ.any():
            self._keep_flips(rows, reference, places, ours, theirs, shift)

    def _keep_flips(
        self, rows: Rows, reference: Array, places: Array, ours: Array, theirs: Array, shift: Array
    ) -> None:
        """Keep the flips with the widest margins. Decisions are `(n,)` or `(n, labels)`."""
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
        """Name of a batch → its counts."""
        return {name: group.counts() for name, group in self._groups.items()}

    @property
    def total(self) -> DecisionCounts:
        """The counts of all batches together."""
        return self._total.counts()

    @property
    def flips(self) -> tuple[Flip, ...]:
        """At most `FLIP_EXAMPLES` flips: those on the user's data first, then by margin."""
        return tuple(self._flips)
