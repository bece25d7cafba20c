"""Account for every weight of one folder in another, byte by byte, without running anything."""

from collections import Counter
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mixout_export.checkpoint.folder import PlainCheckpoint
from mixout_export.checkpoint.model import tensor_of
from mixout_export.files.json_files import fields_as_json
from mixout_export.files.tensors import DTYPE_SIZES, FLOATING, TensorEntry
from mixout_export.parity.compare import Tolerance

#: How messages call them.
_SHORT = {"F64": "fp64", "F32": "fp32", "F16": "fp16", "BF16": "bf16"}


@dataclass(frozen=True)
class WeightProblem:
    """A tensor that is not where it should be.

    Attributes:
        key: Its key in the reference, or in the candidate if only that has it.
        reason: What is wrong, as the end of a sentence.
        max_abs: Largest difference, where both sides have the tensor.
    """

    key: str
    reason: str
    max_abs: float | None = None


@dataclass(frozen=True)
class WeightAudit:
    """What became of every tensor.

    Attributes:
        total: Tensors looked for.
        counts: How many were found in which way ("identical", "transposed", ...).
        problems: Those that were not found, or differ.
        ignored: Key → reason, of tensors that take no part.
        extra: What only the candidate has and may have: a fresh head, constants of a graph.
        notes: What a reader should know, as sentences.
    """

    total: int
    counts: Mapping[str, int]
    problems: tuple[WeightProblem, ...] = ()
    ignored: Mapping[str, str] = field(default_factory=dict)
    extra: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether every tensor is accounted for."""
        return not self.problems and self.total > 0

    @property
    def accounted(self) -> int:
        """Tensors that were found, or take no part."""
        return self.total - len({problem.key for problem in self.problems})

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return fields_as_json(self, "accounted", "holds")


@dataclass(frozen=True)
class WeightSet:
    """The tensors of one folder and what its architecture knows of them.

    Attributes:
        tensors: The tensors, without anchors.
        parameters: Keys on disk of what the loaded model has.
        prefix: The `base_model_prefix` that keys inside the body begin with, "" for a
            headless model.
    """

    tensors: Mapping[str, TensorEntry]
    parameters: Set[str]
    prefix: str = ""

    def canonical(self, key: str) -> str:
        """Return the key as a headless model has it."""
        return key.removeprefix(f"{self.prefix}.") if self.prefix else key


def weights_of(checkpoint: PlainCheckpoint) -> WeightSet:
    """Return the tensors of a checkpoint and what its architecture knows of them."""
    prefix = "" if checkpoint.headless else checkpoint.model.base_model_prefix
    return WeightSet(checkpoint.tensors, checkpoint.parameter_keys, prefix)


def _max_difference(reference: Tensor, candidate: Tensor) -> float:
    difference = (candidate.double() - reference.double()).abs()
    return float("inf") if difference.isnan().any() else float(difference.max())


def _within(reference: Tensor, candidate: Tensor, tolerance: Tolerance) -> bool:
    return torch.allclose(
        candidate.double(), reference.double(), atol=tolerance.atol, rtol=tolerance.rtol
    )


def _equal_after_rounding(reference: Tensor, candidate: Tensor) -> bool:
    """Tell whether the wider of the two, rounded to the narrower's dtype, is the narrower."""
    wide, narrow = reference, candidate
    if wide.element_size() < narrow.element_size():
        wide, narrow = narrow, wide
    return torch.equal(wide.to(narrow.dtype), narrow)


def _narrower(left: str, right: str) -> str:
    return min(left, right, key=lambda dtype: (DTYPE_SIZES[dtype], dtype))


def _compare_entry(
    reference: TensorEntry, candidate: TensorEntry, tolerance: Tolerance | None
) -> str | WeightProblem:
    """Return how a tensor was found, or what is wrong with it."""
    if reference.same_bytes(candidate):
        return "identical"
    if reference.shape != candidate.shape:
        return WeightProblem(
            reference.key, f"has shape {candidate.shape}, expected {reference.shape}"
        )
    if not {reference.dtype, candidate.dtype} <= FLOATING:
        return WeightProblem(reference.key, f"differs ({reference.dtype} and {candidate.dtype})")
    left, right = tensor_of(reference), tensor_of(candidate)
    if reference.dtype != candidate.dtype and _equal_after_rounding(left, right):
        return f"rounded to {_SHORT[_narrower(reference.dtype, candidate.dtype)]}"
    if tolerance is not None and _within(left, right, tolerance):
        return "within tolerance"
    largest = _max_difference(left, right)
    return WeightProblem(reference.key, f"differs by at most {largest:.3g}", largest)


def _is_tied(entry: TensorEntry, tensors: Mapping[str, TensorEntry]) -> bool:
    """Tell whether a folder holds the same tensor under another key too."""
    return any(
        other.key != entry.key and other.nbytes == entry.nbytes and other.same_bytes(entry)
        for other in tensors.values()
    )


def _explain_one_sided(key: str, owner: WeightSet, other: WeightSet, headless: bool) -> str | None:
    """Return why only one folder may hold `key`; None if it may not."""
    if key not in owner.parameters:
        return "no parameter of the architecture"
    if _is_tied(owner.tensors[key], owner.tensors):
        return "tied to another tensor"
    other_keys = {other.canonical(name) for name in other.parameters}
    if headless and owner.canonical(key) not in other_keys:
        return "not part of the other side's architecture"
    return None


def audit_folders(
    reference: WeightSet,
    candidate: WeightSet,
    *,
    headless: bool = False,
    tolerance: Tolerance | None = None,
) -> WeightAudit:
    """Compare two folders' tensors key by key.

    Args:
        reference: What the weights should be.
        candidate: What they are.
        headless: Whether one side has no head: then only the body is compared.
        tolerance: How far values may differ; None means not at all.

    Returns:
        The audit; a tensor of another dtype counts as found if rounding explains the difference.
    """
    ours = {reference.canonical(key): entry for key, entry in reference.tensors.items()}
    theirs = {candidate.canonical(key): entry for key, entry in candidate.tensors.items()}
    counts: Counter[str] = Counter()
    problems: list[WeightProblem] = []
    ignored: dict[str, str] = {}
    for name in ours.keys() & theirs.keys():
        found = _compare_entry(ours[name], theirs[name], tolerance)
        if isinstance(found, str):
            counts[found] += 1
        else:
            problems.append(found)
    for mine, others, owner, other, where in (
        (ours, theirs, reference, candidate, "the candidate"),
        (theirs, ours, candidate, reference, "the reference"),
    ):
        for name in mine.keys() - others.keys():
            key = mine[name].key
            reason = _explain_one_sided(key, owner, other, headless)
            if reason is None:
                problems.append(WeightProblem(key, f"is missing from {where}"))
            else:
                ignored[key] = reason
    notes = tuple(
        f"{count} tensors differ in dtype and are equal once {how}"
        for how, count in sorted(counts.items())
        if how.startswith("rounded")
    )
    return WeightAudit(
        total=len(ours.keys() | theirs.keys()),
        counts=dict(sorted((+counts).items())),
        problems=tuple(sorted(problems, key=lambda problem: problem.key)),
        ignored=dict(sorted(ignored.items())),
        notes=notes,
    )
