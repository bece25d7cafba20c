"""Recognise a weight in an integer constant: within half a step, and in steps as fine as can be."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.integer]

_INTEGERS = (ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT32)

#: How onnxruntime names a quantised constant and what belongs to it.
_SUFFIX, _SCALE, _ZERO_POINT = "_quantized", "_scale", "_zero_point"

#: Rounding to the nearest step moves a value by half a step, and float32 by its own rounding.
_HALF_A_STEP = 0.501
_FLOAT32_ROUNDING = 2.0**-22

#: A weight must reach at least this many steps: 7 bits with a sign reach 64. Any weight lies within
#: half a step of nothing but zeros if the steps are large enough.
_LEAST_STEPS = 60.0

#: Rows compared at once, and in a first look.
_ROWS, _FIRST_ROWS = 4096, 2


@dataclass(frozen=True)
class QuantizedConstant:
    """An integer constant and the real numbers it stands for: scale · (values − zero_point).

    Attributes:
        name: Its name.
        values: The integers.
        scale: The steps: one, or one for each index along one dimension of `values`.
        zero_point: The integers that stand for 0, of the scale's shape.
        parts: Names of the scale and the zero point.
    """

    name: str
    values: Integers
    scale: Floats
    zero_point: Integers
    parts: tuple[str, ...]

    def _shapes(self) -> Iterator[tuple[int, ...]]:
        """Yield the shapes in which the steps can lie along the values, the last axis first."""
        if self.scale.size == 1:
            yield (1,) * self.values.ndim
            return
        for axis in reversed(range(self.values.ndim)):
            if self.values.shape[axis] == self.scale.size:
                yield tuple(-1 if i == axis else 1 for i in range(self.values.ndim))

    def distance(self, weight: Floats, *, stop: float = np.inf) -> float:
        """Return how far a weight is from this constant, in steps.

        Args:
            weight: float32.
            stop: Stop measuring where it is farther than this.

        Returns:
            The largest |weight − scale · (values − zero_point)| / scale; infinite if the shape is
            another, or the steps are coarser than the weight needs.
        """
        if weight.shape != self.values.shape or not weight.ndim:
            return np.inf
        return min(
            (self._distance(weight, shape, stop) for shape in self._shapes()), default=np.inf
        )

    def _distance(self, weight: Floats, shape: tuple[int, ...], stop: float) -> float:
        steps = np.broadcast_to(self.scale.reshape(shape), weight.shape)
        zeros = np.broadcast_to(self.zero_point.reshape(shape), weight.shape)
        worst = self._rows(weight, steps, zeros, slice(0, _FIRST_ROWS))
        for start in range(0, len(weight), _ROWS):
            if worst > stop:
                return worst
            rows = slice(start, start + _ROWS)
            worst = max(worst, self._rows(weight, steps, zeros, rows))
        narrow = self.values.dtype.itemsize == 1  # 32 bits are never too few
        return np.inf if narrow and self._too_coarse(weight, shape) else worst

    def _rows(self, weight: Floats, steps: Floats, zeros: Integers, rows: slice) -> float:
        wide = np.float64 if self.values.dtype.itemsize > 1 else np.float32
        whole = self.values[rows].astype(wide) - zeros[rows].astype(wide)
        with np.errstate(divide="ignore", invalid="ignore"):
            distance = np.abs(weight[rows] / steps[rows].astype(wide) - whole)
        if wide is np.float64:  # a bias has millions of steps
            distance -= _FLOAT32_ROUNDING * np.abs(whole)
        return float(np.where(np.isnan(distance), np.inf, distance).max(initial=0.0))

    def _too_coarse(self, weight: Floats, shape: tuple[int, ...]) -> bool:
        """Tell whether a weight that is not 0 reaches fewer steps than integers have."""
        axes = tuple(i for i, length in enumerate(shape) if length == 1)
        reach = np.abs(weight).max(axis=axes, keepdims=True)
        return bool(((reach > 0) & (reach < _LEAST_STEPS * self.scale.reshape(shape))).any())

    def holds(self, weight: Floats) -> str | None:
        """Return how this constant holds a weight, "direct" or "transposed"; None if it does not.

        Args:
            weight: float32 of any shape.
        """
        for how, form in (("direct", weight), ("transposed", weight.T)):
            if self.distance(form, stop=_HALF_A_STEP) <= _HALF_A_STEP:
                return how
        return None


def quantized_constants(
    model: ir.Model, constants: Mapping[str, ir.TensorProtocol]
) -> tuple[QuantizedConstant, ...]:
    """Find a graph's quantised constants.

    They are known by the names that onnxruntime's quantiser gives, which its optimiser keeps, or
    because a DequantizeLinear reads them.

    Args:
        model: The graph.
        constants: Its constants by name.
    """
    found: dict[str, QuantizedConstant] = {}
    for name, scale, zero_point in (*_named(constants), *_dequantized(model)):
        if name in found or name not in constants or scale not in constants:
            continue
        values, steps = constants[name], constants[scale]
        if values.dtype not in _INTEGERS or steps.dtype != ir.DataType.FLOAT:
            continue
        zeros = constants.get(zero_point)
        found[name] = QuantizedConstant(
            name=name,
            values=values.numpy(),
            scale=steps.numpy().reshape(-1),
            zero_point=np.zeros(steps.size, np.int8)
            if zeros is None
            else np.broadcast_to(zeros.numpy().reshape(-1), (steps.size,)),
            parts=(scale, zero_point),
        )
    return tuple(found.values())


def _named(constants: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    for name in constants:
        if name.endswith(_SUFFIX):
            for base in (name.removesuffix(_SUFFIX), name):
                yield name, base + _SCALE, base + _ZERO_POINT


def _dequantized(model: ir.Model) -> Iterator[tuple[str, str, str]]:
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.op_type == "DequantizeLinear":
            names = [value.name or "" if value is not None else "" for value in node.inputs]
            yield names[0], names[1], names[2] if len(names) > 2 else ""
