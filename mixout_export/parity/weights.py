"""Compare the weights of two folders byte by byte, without running a model."""

from collections import Counter
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mixout_export.checkpoint.plain import PlainCheckpoint
from mixout_export.checkpoint.torch_tensors import tensor_of
from mixout_export.files.json_files import fields_as_json
from mixout_export.files.tensors import DTYPE_SIZES, FLOATING, TensorEntry
from mixout_export.parity.compare import Tolerance

#: Dtype → its name in messages.
_SHORT = {"F64": "fp64", "F32": "fp32", "F16": "fp16", "BF16": "bf16"}


@dataclass(frozen=True)
class WeightProblem:
    """A tensor that is missing or differs.

    Attributes:
        key: Its key in the reference, or in the candidate if only that has it.
        reason: What is wrong, as the end of a sentence.
        max_abs: Largest difference; None if only one side has the tensor.
    """

    key: str
    reason: str
    max_abs: float | None = None


@dataclass(frozen=True)
class WeightAudit:
    """How every tensor was found.

    Attributes:
        total: Number of tensors to find.
        counts: Way of finding a tensor ("identical", "transposed", ...) → number of tensors.
        problems: The tensors that are missing or differ.
        ignored: Key → reason, for tensors that have no effect.
        extra: What only the candidate has and may have: a fresh head, constants of a graph.
        notes: Remarks for the reader, as sentences.
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
        """Number of tensors that were found or have no effect."""
        return self.total - len({problem.key for problem in self.problems})

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return fields_as_json(self, "accounted", "holds")


@dataclass(frozen=True)
class WeightSet:
    """The tensors of a folder and the parameters of its architecture.

    Attributes:
        tensors: The tensors, without anchors.
        parameters: Keys on disk of the loaded model's parameters.
        prefix: The `base_model_prefix` with which keys of the body begin; "" for a headless model.
    """

    tensors: Mapping[str, TensorEntry]
    parameters: Set[str]
    prefix: str = ""

    def canonical(self, key: str) -> str:
        """Return the key that a headless model has."""
        return key.removeprefix(f"{self.prefix}.") if self.prefix else key


def weights_of(checkpoint: PlainCheckpoint) -> WeightSet:
    """Return the tensors of a checkpoint and the parameters of its architecture."""
    prefix = "" if checkpoint.headless else checkpoint.model.base_model_prefix
    return WeightSet(checkpoint.tensors, checkpoint.parameter_keys, prefix)


def _equal_after_rounding(reference: Tensor, candidate: Tensor) -> bool:
    """Return whether one tensor is the other one rounded to its dtype."""
    wide, narrow = reference, candidate
    if wide.element_size() < narrow.element_size():
        wide, narrow = narrow, wide
    return torch.equal(wide.to(narrow.dtype), narrow)


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
        dtypes = (reference.dtype, candidate.dtype)
        return f"rounded to {_SHORT[min(dtypes, key=lambda name: (DTYPE_SIZES[name], name))]}"
    left, right = left.double(), right.double()
    if tolerance is not None and torch.allclose(
        right, left, atol=tolerance.atol, rtol=tolerance.rtol
    ):
        return "within tolerance"
    difference = (right - left).abs()
    largest = float("inf") if difference.isnan().any() else float(difference.max())
    return WeightProblem(reference.key, f"differs by up to {largest:.3g}", largest)


def _is_tied(entry: TensorEntry, tensors: Mapping[str, TensorEntry]) -> bool:
    """Return whether a folder holds the same tensor also under another key."""
    return any(
        other.key != entry.key and other.nbytes == entry.nbytes and other.same_bytes(entry)
        for other in tensors.values()
    )


def _explain_one_sided(key: str, owner: WeightSet, other: WeightSet, headless: bool) -> str | None:
    """Return why only one folder has `key`; None if that is a fault."""
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

    A tensor of another dtype counts as found if rounding explains the difference. If one side is
    headless, only the bodies are compared. Without a tolerance, values must be equal.
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
        f"{count} tensors differ in dtype and are equal when {how}"
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
