"""Check that the result of a row depends neither on its padding nor on the rows beside it.

Each row is run alone, and then with padding and other rows around it. Both sides do this: if the
reference's own results change, the model depends on what is around a row by its architecture, so
the candidate is not judged there. int8 is not judged either: dynamic quantization takes the range
of an activation from everything in a batch, padding included. Its changes are shown.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mixout_export.checkpoint.interface import ModelInterface
from mixout_export.checkpoint.model_inputs import Batch
from mixout_export.errors import ArgumentError, CheckpointError
from mixout_export.files.json_files import fields_as_json
from mixout_export.parity.compare import (
    TOLERANCES,
    OutputComparison,
    OutputDifference,
    Tolerance,
    decision_of,
    is_per_token,
)
from mixout_export.parity.padded_rows import LEFT, NEIGHBORS, RIGHT, SIDES, Plan, make_plan
from mixout_export.rounding import difference
from mixout_export.runners.runner import Runner

#: Number of rows that are padded, and of those whose changes are counted for int8.
_ROWS, _COUNTED_ROWS = 12, 32

#: What is around a row → when its result changes, as the end of a sentence.
_WHEN = {
    NEIGHBORS: "beside other rows",
    RIGHT: "padded on the right",
    LEFT: "padded on the left",
}

#: What is around a row → what a model that depends on it gets wrong.
_CAUSES = {
    NEIGHBORS: "the candidate mixes the rows of a batch",
    RIGHT: "the candidate reads padding as text; check that it uses attention_mask",
    LEFT: "the candidate reads padding as text or counts it in positions; check that it uses "
    "attention_mask, and that position ids follow it",
}


@dataclass(frozen=True)
class PaddingEffect:
    """How far results move if something is around a row.

    Attributes:
        around: "neighbors" for other rows of the same length, or the side of the padding, "right"
            or "left".
        rows: Number of rows.
        widths: The lengths in tokens that rows were padded to.
        tolerance: How far a value may move; None if that is not judged, as for int8.
        outputs: The difference of each output to that of the row alone. An fp16 graph also has its
            outputs "in fp16 arithmetic".
        reference: The same for the reference; () if it was not measured.
    """

    around: str
    rows: int
    widths: tuple[int, ...]
    tolerance: Tolerance | None
    outputs: tuple[OutputDifference, ...]
    reference: tuple[OutputDifference, ...] = ()

    @property
    def title(self) -> str:
        """What is around the row, in words."""
        return _WHEN[self.around]

    @property
    def safe(self) -> bool:
        """Whether the reference's results do not move."""
        return all(output.holds for output in self.reference)

    @property
    def judged(self) -> bool:
        """Whether the candidate must not move: not for int8, or where the reference itself does."""
        return self.tolerance is not None and self.safe

    @property
    def holds(self) -> bool:
        """Whether nothing moves that must not."""
        return not self.judged or all(each.holds for each in self.outputs)

    @property
    def moves(self) -> float:
        """The largest change of any value."""
        return max((each.max_abs for each in self.outputs), default=0.0)

    @property
    def reference_moves(self) -> float | None:
        """The same for the reference; None if it was not measured."""
        return max((each.max_abs for each in self.reference), default=None)

    @property
    def agreement(self) -> float | None:
        """The smallest share of decisions that stay the same; None if nothing is decided."""
        shares = (each.agreement for each in self.outputs)
        return min((share for share in shares if share is not None), default=None)

    @property
    def reason(self) -> str:
        """Why it does not hold, as a sentence; "" if it does."""
        if self.holds:
            return ""
        worst = next(each for each in self.outputs if not each.holds)
        moved = worst.problem or f"changes by up to {difference(worst.max_abs)}"
        own = difference(self.reference_moves)
        allowed = worst.tolerance or self.tolerance
        limit = "" if allowed is None else f", expected at most {allowed.limit('result')}"
        return (
            f"output {worst.name!r} of a row {moved} when it is {self.title}{limit}; the "
            f"reference's changes by up to {own}; {_CAUSES[self.around]}"
        )

    @property
    def counts(self) -> tuple[str, ...]:
        """How many predictions change, one sentence for each output."""
        return tuple(self._count(output) for output in self.outputs)

    def _count(self, output: OutputDifference) -> str:
        *first, last = map(str, self.widths)
        widths = f"{', '.join(first)} or {last}" if first else last
        how = f"{_WHEN[self.around]} to {widths} tokens or is in a batch with others"
        if not output.decisions:
            return f"{output.name} moves by up to {difference(output.max_abs)} when a text is {how}"
        return (
            f"{output.flips} of {output.decisions} predictions change when a text is {how}, and "
            f"probabilities move by up to {difference(output.max_shift)}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return fields_as_json(self, "judged", "holds", "moves", "reference_moves")


@dataclass(frozen=True)
class PaddingCheck:
    """Whether the result of a row depends on what is around it.

    Attributes:
        effects: What was measured.
        not_padded: Why rows were not padded, as the end of a sentence; "" if they were.
    """

    effects: tuple[PaddingEffect, ...] = ()
    not_padded: str = ""

    @property
    def holds(self) -> bool:
        """Whether no result moves that must not."""
        return all(effect.holds for effect in self.effects)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it does not hold, as sentences."""
        return tuple(effect.reason for effect in self.effects if not effect.holds)

    @property
    def counts(self) -> tuple[str, ...]:
        """How many predictions change where that is not judged, as sentences."""
        return tuple(
            count
            for effect in self.effects
            if effect.tolerance is None and effect.around in SIDES and effect.safe
            for count in effect.counts
        )

    def notes(self, reference: str = "the reference") -> tuple[str, ...]:
        """Return what a user of the model must know, as sentences."""
        found = list(self.counts)
        unsafe = {effect.around: effect for effect in self.effects if not effect.safe}
        for around, effect in unsafe.items():
            moved = difference(effect.reference_moves)
            note = (
                f"a row {effect.title} gets other results from {reference} itself, by up to "
                f"{moved}, so this is not judged"
            )
            other = {LEFT: RIGHT, RIGHT: LEFT}.get(around)
            found.append(
                f"{note}; pad texts on the {other}" if other and other not in unsafe else note
            )
        if self.not_padded:
            found.append(f"padding was not tested, because {self.not_padded}")
        return tuple(found)

    @property
    def sentences(self) -> tuple[str, ...]:
        """What was found, for the card of a graph that was compared with PyTorch."""
        judged = [effect for effect in self.effects if effect.judged]
        moved = [f"{difference(effect.moves)} {effect.title}" for effect in judged]
        found = [f"the result of a row changes by at most {', '.join(moved)}"] if moved else []
        return (*found, *self.notes("PyTorch"))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        values = fields_as_json(self, "holds", "reasons")
        return values | {"notes": list(self.notes())}


def _run(
    runner: Runner,
    plan: Plan,
    names: Sequence[str],
    *,
    task: str | None,
    tolerance: Tolerance | None,
) -> dict[str, tuple[OutputDifference, ...]]:
    """Run rows alone, then with something around them: what is around → each output's change."""
    alone = [runner.run(row) for row in plan.rows]
    comparisons: dict[str, dict[str, OutputComparison]] = {}
    for batch in plan.batches:
        found = runner.run(plan.inputs(batch))
        if batch.around not in comparisons:
            comparisons[batch.around] = _comparisons(names, task=task, tolerance=tolerance)
        for place, row in enumerate(batch.rows):
            for name, comparison in comparisons[batch.around].items():
                own = plan.own_part(batch, place, alone[row][name], found[name])
                comparison.add(Batch(batch.around, plan.rows[row]), alone[row][name], own)
    return {
        around: tuple(comparison.result() for comparison in outputs.values())
        for around, outputs in comparisons.items()
    }


def _comparisons(
    names: Sequence[str], *, task: str | None, tolerance: Tolerance | None
) -> dict[str, OutputComparison]:
    return {
        name: OutputComparison(
            name, tolerance, decision=decision_of(task, name), per_token=is_per_token(task, name)
        )
        for name in names
    }


@dataclass(frozen=True)
class InHalf:
    """An fp16 graph that is run with each result rounded to fp16.

    Attributes:
        runner: What runs it.
        tolerance: How far a value may move.
        name: What follows the name of its outputs.
    """

    runner: Runner
    tolerance: Tolerance | None
    name: str


def check_padding(
    candidate: Runner,
    interface: ModelInterface,
    *,
    reference: Runner | None = None,
    task: str | None,
    tolerance: Tolerance | None,
    in_half: InHalf | None = None,
    data: Sequence[Batch] = (),
    seed: int = 0,
) -> PaddingCheck:
    """Check whether results of rows depend on padding and on the rows beside them.

    Args:
        candidate: What runs the candidate.
        interface: The inputs of both sides.
        reference: What runs the reference; None measures the candidate alone.
        task: Name of the task; None if only bodies are run.
        tolerance: How far a value of the candidate may move; None shows how many predictions
            change, and judges nothing.
        in_half: The candidate with each result rounded to fp16, which is judged, too; None if it
            is not an fp16 graph.
        data: The user's own texts. Without them, rows are random.
        seed: Seed of random rows.

    Raises:
        CheckpointError: The candidate does not run on rows on which the reference runs.
    """
    counted = tolerance is None
    try:
        plan = make_plan(
            interface,
            task=task,
            data=data,
            count=_COUNTED_ROWS if counted else _ROWS,
            seed=seed,
        )
    except ArgumentError as error:
        return PaddingCheck(not_padded=str(error))
    names = candidate.outputs if reference is None else reference.outputs
    own: dict[str, tuple[OutputDifference, ...]] = {}
    if reference is not None:
        limit = tolerance or TOLERANCES["fp32"]
        try:
            own = _run(reference, plan, names, task=task, tolerance=limit)
        except CheckpointError as error:
            return PaddingCheck(not_padded=f"the reference does not run on padded texts: {error}")
    if counted:
        safe = [around for around, outputs in own.items() if all(each.holds for each in outputs)]
        plan = plan.one_by_one(safe if reference else _expected_safe(interface))
    moved = _run(candidate, plan, names, task=task, tolerance=tolerance)
    if in_half is not None:
        rounded = _run(in_half.runner, plan, names, task=task, tolerance=in_half.tolerance)
        for around, outputs in rounded.items():
            named = (replace(each, name=f"{each.name} {in_half.name}") for each in outputs)
            moved[around] = (*moved[around], *named)
    effects = [
        PaddingEffect(
            around=around,
            rows=plan.count(around),
            widths=plan.widths(around),
            tolerance=tolerance,
            outputs=outputs,
            reference=own.get(around, ()),
        )
        for around, outputs in moved.items()
    ]
    return PaddingCheck(tuple(effects), plan.no_padding)


def _expected_safe(interface: ModelInterface) -> list[str]:
    """Return what may be around a row according to the interface."""
    return [NEIGHBORS, RIGHT, *([LEFT] if interface.left_padding else [])]
