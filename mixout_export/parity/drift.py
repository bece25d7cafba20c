"""Find the first module that computes something else.

Both sides run one batch, and the outputs of their modules are compared in the order of execution.
"""

import time
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from mixout_export.checkpoint.artifact import Artifact
from mixout_export.checkpoint.model_inputs import Batch
from mixout_export.parity.compare import OutputDifference
from mixout_export.parity.drift_map import DriftMap, ModuleDrift
from mixout_export.runners.runner import Array
from mixout_export.runners.trace import Call, Trace

#: Precision → largest relative L2 difference of a module's output that rounding explains.
DRIFT_TOLERANCES = {"fp32": 3e-5, "fp16": 1e-2, "bf16": 8e-2, "int8": 3e-1}

#: Largest number of tokens or pixels to run, because the output of every module is kept.
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


def _difference(reference: Array, candidate: Array) -> tuple[float, float]:
    """Return the relative L2 difference and the largest difference; infinite if one is NaN."""
    left, right = reference.astype(np.float64), candidate.astype(np.float64)
    same = (left == right) | (np.isnan(left) & np.isnan(right))
    with np.errstate(invalid="ignore"):
        difference = np.where(same, 0.0, np.abs(right - left))
    difference = np.where(np.isnan(difference), np.inf, difference)
    norm = float(np.sqrt(np.square(left[np.isfinite(left)]).sum()))
    total = float(np.sqrt(np.square(difference).sum()))
    relative = 0.0 if total == 0.0 else (total / norm if norm else float("inf"))
    return relative, float(difference.max(initial=0.0))


def _compare_tensors(
    reference: Array, candidate: Array, mask: Array | None
) -> tuple[float, float, tuple[int, ...]]:
    """Compare two tensors of equal size, without padding.

    In a causal model, padding on the left attends to nothing. A softmax over nothing has no defined
    value, so the sides may differ there.
    """
    candidate = candidate.reshape(reference.shape)
    if mask is not None and reference.shape[: mask.ndim] == mask.shape:
        real = mask != 0
        return (*_difference(reference[real], candidate[real]), reference.shape)
    return (*_difference(reference, candidate), reference.shape)


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
    found = [
        min(
            _compare_tensors(left, right, mask)
            for left, right in choices
            if left.size == right.size
        )
        for choices in pairs
        if any(left.size == right.size for left, right in choices)
    ]
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
            agrees = any(  # a module comes after the modules inside it
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
    """Compare the output of every module on one batch.

    Args:
        reference: The side with the expected outputs.
        candidate: The side to check. A graph records its modules if this tool exported it.
        batch: The inputs to run.
        tolerance: Largest relative L2 difference that rounding explains.
        headless: Whether only the bodies are compared, because one side has no head.

    Returns:
        All calls of modules, in the order in which they finish.

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
