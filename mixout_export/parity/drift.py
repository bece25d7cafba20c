"""Find the first module that computes something else.

Both sides run one batch, and the outputs of their modules are compared in the order of execution.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mixout_export.checkpoint.artifact import Artifact
from mixout_export.checkpoint.model_inputs import Batch
from mixout_export.files.json_files import fields_as_json
from mixout_export.parity.compare import OutputDifference
from mixout_export.runners.runner import Array
from mixout_export.runners.trace import Call, Trace

#: Largest relative L2 difference of a module's output that rounding explains, by precision.
DRIFT_TOLERANCES = {"fp32": 3e-5, "fp16": 1e-2, "bf16": 8e-2, "int8": 3e-1}

#: Most tokens, or pixels, of a batch that are run, because every module's output is kept.
_VALUES = 1024

#: Reasons why a module's output is not compared.
_SAME = "returns its input"
_ABSENT = "not in the graph"
_OTHERS = "returns another form of the same values, because the module around it agrees"

#: If the difference in the module around is smaller by this factor, the module itself is right.
_DILUTION = 1e-3

#: Classes that return one tensor in one order, to which `_DILUTION` does not apply. A changed bias
#: of attention keys changes no output around it, for example, but it is a fault.
_STRICT = ("Linear", "Conv1D", "Embedding")


@dataclass(frozen=True)
class ModuleDrift:
    """How far the output of one call of a module differs.

    Attributes:
        module: Qualified name of the module; "" is the model itself.
        kind: Class name, for example "Linear"; "" if only graphs are compared.
        relative_l2: ‖candidate − reference‖ / ‖reference‖ of the output. It is infinite if only
            one side is NaN or infinite, and None if the output could not be compared.
        max_abs: Largest |candidate − reference| of the output; None if it was not compared.
        shape: Shape of the output; None if it was not compared.
        call: Number of the call, from 0. Some modules are called several times.
        reason: Why the output was not compared, for example "not in the graph"; "" if it was.
    """

    module: str
    kind: str
    relative_l2: float | None = None
    max_abs: float | None = None
    shape: tuple[int, ...] | None = None
    call: int = 0
    reason: str = ""

    @property
    def label(self) -> str:
        """The module's name in messages, with the number of the call from the second call on."""
        name = self.module or "(the model)"
        return f"{name}, call {self.call + 1}" if self.call else name


@dataclass(frozen=True)
class DriftMap:
    """How far each module's output differs, in the order in which the modules finish.

    Attributes:
        modules: One entry for each call of each module.
        tolerance: Largest relative L2 difference that rounding explains.
        batch: Name of the batch that was run.
        shape: Shape of the inputs that were run, which are a part of that batch.
        seconds: Wall time, in seconds.
    """

    modules: tuple[ModuleDrift, ...]
    tolerance: float
    batch: str
    shape: tuple[int, ...]
    seconds: float

    def leaves(self, drift: ModuleDrift) -> bool:
        """Return whether a module's output is beyond the tolerance."""
        return drift.relative_l2 is not None and drift.relative_l2 > self.tolerance

    @property
    def compared(self) -> tuple[ModuleDrift, ...]:
        """The modules whose outputs were compared."""
        return tuple(drift for drift in self.modules if drift.relative_l2 is not None)

    @property
    def not_compared(self) -> tuple[ModuleDrift, ...]:
        """The modules whose outputs were not compared."""
        return tuple(drift for drift in self.modules if drift.relative_l2 is None)

    @property
    def first(self) -> ModuleDrift | None:
        """The first module beyond the tolerance; None if all are within it."""
        return next((drift for drift in self.modules if self.leaves(drift)), None)

    @property
    def worst(self) -> ModuleDrift | None:
        """The module that differs most; None if none was compared."""
        return max(self.compared, key=lambda drift: drift.relative_l2 or 0.0, default=None)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        first, worst = self.first, self.worst
        return {
            "first": None if first is None else first.label,
            "worst": None if worst is None else worst.label,
            "compared": len(self.compared),
            **fields_as_json(self),
        }


def _difference(
    reference: Array, candidate: Array, mask: Array | None
) -> tuple[float, float, tuple[int, ...]]:
    """Return the relative L2 difference, the largest difference, and the shape.

    Both differences are infinite if only one side is NaN. Tokens that are padding are left out:
    padding on the left of a causal model attends to nothing. A softmax over nothing has no defined
    value, so both sides may differ there.
    """
    left = reference.astype(np.float64)
    right = candidate.reshape(reference.shape).astype(np.float64)
    if mask is not None and reference.shape[: mask.ndim] == mask.shape:
        left, right = left[mask != 0], right[mask != 0]
    same = (left == right) | (np.isnan(left) & np.isnan(right))
    with np.errstate(invalid="ignore"):
        apart = np.where(same, 0.0, np.abs(right - left))
    apart = np.where(np.isnan(apart), np.inf, apart)
    norm = float(np.sqrt(np.square(left[np.isfinite(left)]).sum()))
    total = float(np.sqrt(np.square(apart).sum()))
    relative = 0.0 if total == 0.0 else (total / norm if norm else float("inf"))
    return relative, float(apart.max(initial=0.0)), reference.shape


def _nearest(
    references: Sequence[Array], candidates: Sequence[Array], mask: Array | None
) -> tuple[float, float, tuple[int, ...]] | None:
    """Compare the tensors that a call returned, each with the most similar one of the other side.

    A graph shows which values a module returns, but not in which order. A rotary embedding returns
    a sine and a cosine, for example. Each tensor of the side with fewer tensors is compared.

    Returns:
        The relative L2 difference, the largest difference and the shape of the tensor that differs
        most; None if no sizes match.
    """
    pairs = [[(left, right) for right in candidates] for left in references]
    if len(candidates) < len(references):
        pairs = [list(column) for column in zip(*pairs, strict=True)]
    found = []
    for choices in pairs:
        fitting = [_difference(*pair, mask) for pair in choices if pair[0].size == pair[1].size]
        if fitting:
            found.append(min(fitting))
    return max(found, default=None)


def _compare(
    call: Call, clock: Trace, ours: Trace, theirs: Trace, mask: Array | None
) -> ModuleDrift:
    module, number = call
    kind = clock.kinds.get(module, "")
    if module in clock.passing:
        return ModuleDrift(module, kind, call=number, reason=_SAME)
    if call not in ours.outputs or call not in theirs.outputs:
        return ModuleDrift(module, kind, call=number, reason=_ABSENT)
    found = _nearest(ours.outputs[call], theirs.outputs[call], mask)
    if found is None:
        shapes = [trace.outputs[call][-1].shape for trace in (theirs, ours)]
        reason = f"has shape {shapes[0]} on one side and {shapes[1]} on the other"
        return ModuleDrift(module, kind, call=number, reason=reason)
    return ModuleDrift(module, kind, *found, call=number)


def _encloses(outer: ModuleDrift, inner: ModuleDrift) -> bool:
    return outer.call == inner.call and (
        not outer.module or inner.module.startswith(f"{outer.module}.")
    )


def _discard_false(modules: Sequence[ModuleDrift], tolerance: float) -> Iterator[ModuleDrift]:
    """Yield the drifts. Discard differences that do not reach the module around.

    A graph may return a module's values in another form: a router may return other tensors, and
    experts may see tokens in another order. If the module around differs a thousand times less,
    the module itself is right.
    """
    for at, drift in enumerate(modules):
        if drift.relative_l2 is not None and tolerance < drift.relative_l2:
            limit = min(tolerance, _DILUTION * drift.relative_l2)
            agrees = any(  # modules end after those inside them
                _encloses(outer, drift)
                and outer.relative_l2 is not None
                and outer.relative_l2 <= limit
                for outer in modules[at + 1 :]
            )
            if agrees and drift.kind not in _STRICT:
                drift = ModuleDrift(drift.module, drift.kind, call=drift.call, reason=_OTHERS)
        yield drift


def _rows_of(batch: Batch, rows: npt.NDArray[np.int64]) -> Batch:
    return Batch(batch.name, {name: value[rows] for name, value in batch.inputs.items()})


def pick_batch(batches: Sequence[Batch], outputs: Sequence[OutputDifference]) -> Batch:
    """Return the batch with the largest difference, cut to a few rows.

    The row that differs most comes first. Rows of padding only are left out.
    """
    worst = max(outputs, key=lambda output: output.max_abs, default=None)
    number, first = (0, 0) if worst is None else (worst.worst_number, worst.worst_row)
    chosen = batches[max(0, number)]
    rows = np.flatnonzero(~chosen.undefined_rows)
    rows = np.roll(rows, -int(np.searchsorted(rows, max(0, first))))
    each = max(1, int(np.prod(chosen.shape[1:])))
    return _rows_of(chosen, rows[: max(1, _VALUES // each)])


def draw_drift(
    reference: Artifact,
    candidate: Artifact,
    batch: Batch,
    *,
    tolerance: float = DRIFT_TOLERANCES["fp32"],
    headless: bool = False,
) -> DriftMap:
    """Compare every module's output on one batch.

    The modules of a graph are known if this tool exported it. Modules that are not in a graph are
    listed as such.

    Raises:
        CheckpointError: A side does not run the batch.
    """
    start = time.perf_counter()
    checkpoints = (reference.checkpoint, candidate.checkpoint)
    if any(checkpoint is not None and checkpoint.row_by_row for checkpoint in checkpoints):
        batch = _rows_of(batch, np.zeros(1, dtype=np.int64))
    sides = [side.trace(batch.inputs, headless=headless) for side in (reference, candidate)]
    clock = next((side for side in sides if side.counts_calls), sides[0])
    ours, theirs = (side.split_by(clock.calls) for side in sides)
    mask = batch.inputs.get("attention_mask")
    modules = [_compare(call, clock, ours, theirs, mask) for call in clock.outputs]
    return DriftMap(
        modules=tuple(_discard_false(modules, tolerance)),
        tolerance=tolerance,
        batch=batch.name,
        shape=batch.shape,
        seconds=time.perf_counter() - start,
    )
