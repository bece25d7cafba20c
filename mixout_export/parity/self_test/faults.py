"""The faults of the self-test. Each changes a copy of a model, in any file format."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

#: The purpose of a tensor in the model.
Role = Literal["linear", "positions", "segments", "vocabulary", "classifier", "classifier bias"]

#: Default of Keras, which remains if a conversion forgets to replace it.
_DEFAULT_EPSILON = 1e-3


class NotApplicableError(Exception):
    """A fault is not possible in this model. The message gives the reason."""


@dataclass(frozen=True)
class Part:
    """A tensor that a fault changes.

    Attributes:
        name: Key of the tensor, or its name in the graph.
        label: Name of the tensor in messages, because exporters give some tensors odd names.
        value: Values, float32. Those of a linear layer have shape `(out_features, in_features)`.
        epsilon: Distance from 1 to the next larger number of the dtype on disk.
    """

    name: str
    label: str
    value: Array
    epsilon: float


class Copier(Protocol):
    """Writes changed copies of a candidate."""

    def part(self, role: Role) -> Part:
        """Return the tensor with a role.

        Raises:
            NotApplicableError: The model has no such tensor.
        """

    def write(self, out: Path, values: Mapping[str, Array]) -> Path:
        """Write a copy with other values (part name → values), and return its path."""

    def write_without_bias(self, out: Path) -> tuple[Path, str]:
        """Write a copy without the bias of a linear layer. Return its path and the bias's name."""

    def write_with_epsilon(self, out: Path, choose: Callable[[float], float]) -> tuple[Path, str]:
        """Write a copy whose normalizations have the epsilon that `choose` makes of theirs.

        Return its path and a description of the change.
        """

    def write_with_labels(self, out: Path, labels: Sequence[str]) -> Path:
        """Write a copy with other label names, and return its path."""

    def write_without_mask(self, out: Path) -> Path:
        """Write a copy that reads padding as text, and return its path."""


@dataclass(frozen=True)
class Fault:
    """A fault that occurs in practice.

    Attributes:
        name: Name of the fault.
        inject: Writes a copy with the fault. It takes a copier, a folder that does not exist and
            the label names, and returns the path of the copy and a description of the change.
        changes_outputs: Whether the fault changes the outputs by more than rounding does. If so,
            the battery has to catch it too.
        about_padding: Whether the fault changes how padding is read, so that the check of padding
            has to catch it.
    """

    name: str
    inject: Callable[[Copier, Path, Sequence[str] | None], tuple[Path, str]]
    changes_outputs: bool = True
    about_padding: bool = False


def _perturb_linear(copier: Copier, out: Path, labels: Sequence[str] | None) -> tuple[Path, str]:
    part = copier.part("linear")
    factor = 1.0 + max(1e-3, 4 * part.epsilon)
    path = copier.write(out, {part.name: part.value * np.float32(factor)})
    return path, f"{part.label} × {factor:g}"


def _change_scalar(copier: Copier, out: Path, labels: Sequence[str] | None) -> tuple[Path, str]:
    part = copier.part("linear")
    value = part.value.copy()
    index = np.unravel_index(np.argmax(np.abs(value)), value.shape)
    value[index] *= np.float32(1.0 - max(1e-3, 4 * part.epsilon))  # a larger value might be clipped
    where = ", ".join(str(int(i)) for i in index)
    return copier.write(out, {part.name: value}), f"{part.label}[{where}], one number"


def _zero_rows(
    copier: Copier, out: Path, role: Role, count: Callable[[int], int]
) -> tuple[Path, str]:
    part = copier.part(role)
    rows = len(part.value)
    first = rows - count(rows)
    if not part.value[first:].any():
        raise NotApplicableError(f"the last rows of {part.label} are already zero")
    value = part.value.copy()
    value[first:] = 0.0
    which = f"row {first}" if first == rows - 1 else f"rows {first} to {rows - 1}"
    return copier.write(out, {part.name: value}), f"{part.label}, {which}, set to 0"


def _zero_positions(copier: Copier, out: Path, labels: Sequence[str] | None) -> tuple[Path, str]:
    return _zero_rows(copier, out, "positions", lambda rows: max(1, rows // 64))


def _zero_segment(copier: Copier, out: Path, labels: Sequence[str] | None) -> tuple[Path, str]:
    return _zero_rows(copier, out, "segments", lambda rows: 1)


def _zero_vocabulary(copier: Copier, out: Path, labels: Sequence[str] | None) -> tuple[Path, str]:
    return _zero_rows(copier, out, "vocabulary", lambda rows: max(1, rows // 20))


def _classifier(copier: Copier) -> list[Part]:
    """Return the classifier's weight `(labels, in_features)` and its bias, if it has one."""
    parts = [copier.part("classifier")]
    with suppress(NotApplicableError):
        parts.append(copier.part("classifier bias"))
    return parts


def _swap_classes(copier: Copier, out: Path, labels: Sequence[str] | None) -> tuple[Path, str]:
    parts = _classifier(copier)
    if len(parts[0].value) < 2:
        raise NotApplicableError("the classifier has only one output")
    order = np.arange(len(parts[0].value))
    order[:2] = 1, 0
    if all(np.array_equal(part.value[0], part.value[1]) for part in parts):
        raise NotApplicableError("the classifier's first two outputs are equal")
    path = copier.write(out, {part.name: part.value[order] for part in parts})
    return path, f"{parts[0].label}, outputs 0 and 1 swapped"


def _stale_classifier(copier: Copier, out: Path, labels: Sequence[str] | None) -> tuple[Path, str]:
    weight, *bias = _classifier(copier)
    fresh = np.random.default_rng(0).normal(0.0, 0.02, weight.value.shape).astype(np.float32)
    values = {weight.name: fresh, **{part.name: np.zeros_like(part.value) for part in bias}}
    return copier.write(out, values), f"{weight.label} as it was before training"


def _swap_labels(copier: Copier, out: Path, labels: Sequence[str] | None) -> tuple[Path, str]:
    if labels is None or len(labels) < 2:
        raise NotApplicableError("the task has fewer than two labels")
    first, second, *others = labels
    path = copier.write_with_labels(out, [second, first, *others])
    return path, f"the names of labels 0 and 1 ({first}, {second}) swapped"


def _other_epsilon(epsilon: float) -> float:
    return max(_DEFAULT_EPSILON, 50 * epsilon)


def _change_epsilon(copier: Copier, out: Path, labels: Sequence[str] | None) -> tuple[Path, str]:
    return copier.write_with_epsilon(out, _other_epsilon)


def _drop_bias(copier: Copier, out: Path, labels: Sequence[str] | None) -> tuple[Path, str]:
    path, name = copier.write_without_bias(out)
    return path, f"{name} removed"


def _ignore_mask(copier: Copier, out: Path, labels: Sequence[str] | None) -> tuple[Path, str]:
    return copier.write_without_mask(out), "attention_mask taken, but not used"


FAULTS = (
    Fault("perturbed Linear", _perturb_linear),
    Fault("zeroed position rows", _zero_positions),
    Fault("zeroed segment row", _zero_segment),
    Fault("zeroed vocabulary tail", _zero_vocabulary),
    Fault("swapped classes", _swap_classes),
    Fault("swapped labels", _swap_labels, changes_outputs=False),
    Fault("wrong epsilon", _change_epsilon),
    Fault("dropped bias", _drop_bias),
    Fault("stale classifier", _stale_classifier),
    Fault("one changed number", _change_scalar, changes_outputs=False),
    Fault("padding read as text", _ignore_mask, about_padding=True),
)
