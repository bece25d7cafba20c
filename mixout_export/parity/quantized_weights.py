"""Recognize the weight that an integer constant holds.

Every value must be within half a quantization step of the weight, and the steps must be fine.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.integer]

_INTEGERS = (ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT32)

#: Suffixes that onnxruntime gives to a quantized constant, its scale and its zero point.
_SUFFIX, _SCALE, _ZERO_POINT = "_quantized", "_scale", "_zero_point"

#: Tolerance, in steps. Rounding to the nearest step moves a value by half a step, and computing in
#: float32 adds its own rounding.
_HALF_A_STEP = 0.501
_FLOAT32_ROUNDING = 2.0**-22

#: Rounding to fp16 moves a weight by at most this share of it, or by this amount if it is tiny.
_HALF_SHARE, _HALF_AMOUNT = 2.0**-11, 2.0**-25

#: Smallest number of steps that the largest weight must use; signed 7-bit integers have 64. Without
#: this limit, integers that are all zero would match any weight if the step is large enough.
_LEAST_STEPS = 60.0

#: Number of rows that are compared at once, and that are compared first.
_ROWS, _FIRST_ROWS = 4096, 2


@dataclass(frozen=True)
class QuantizedConstant:
    """An integer constant that stands for the real numbers scale · (values − zero_point).

    Attributes:
        name: Name of the constant.
        values: The integers.
        scale: The quantization steps, float32: one, or one per index of an axis of `values`.
        zero_point: The integers that stand for 0, in the shape of `scale`.
        parts: Names of the scale and the zero point in the graph.
    """

    name: str
    values: Integers
    scale: Floats
    zero_point: Integers
    parts: tuple[str, ...]

    def _shapes(self) -> Iterator[tuple[int, ...]]:
        """Yield the shapes in which the steps can be broadcast to the values, last axis first."""
        if self.scale.size == 1:
            yield (1,) * self.values.ndim
            return
        for axis in reversed(range(self.values.ndim)):
            if self.values.shape[axis] == self.scale.size:
                yield tuple(-1 if i == axis else 1 for i in range(self.values.ndim))

    def distance(self, weight: Floats, *, stop: float = np.inf, in_half: bool = False) -> float:
        """Return the largest |weight − scale · (values − zero_point)| / scale, a distance in steps.

        It is infinite if the shapes differ or the steps are too coarse. The comparison ends early
        once the distance is larger than `stop`. With `in_half`, the weight was rounded to fp16, and
        what that can explain does not count.
        """
        if weight.shape != self.values.shape or not weight.ndim:
            return np.inf
        return min(
            (self._distance(weight, shape, stop, in_half) for shape in self._shapes()),
            default=np.inf,
        )

    def _distance(
        self, weight: Floats, shape: tuple[int, ...], stop: float, in_half: bool
    ) -> float:
        steps = np.broadcast_to(self.scale.reshape(shape), weight.shape)
        zeros = np.broadcast_to(self.zero_point.reshape(shape), weight.shape)
        worst = self._rows(weight, steps, zeros, slice(0, _FIRST_ROWS), in_half)
        for start in range(0, len(weight), _ROWS):
            if worst > stop:
                return worst
            rows = slice(start, start + _ROWS)
            worst = max(worst, self._rows(weight, steps, zeros, rows, in_half))
        narrow = self.values.dtype.itemsize == 1  # 32-bit integers are fine enough
        return np.inf if narrow and self._too_coarse(weight, shape) else worst

    def _rows(
        self, weight: Floats, steps: Floats, zeros: Integers, rows: slice, in_half: bool
    ) -> float:
        wide = np.float64 if self.values.dtype.itemsize > 1 else np.float32
        whole = self.values[rows].astype(wide) - zeros[rows].astype(wide)
        with np.errstate(divide="ignore", invalid="ignore"):
            distance = np.abs(weight[rows] / steps[rows].astype(wide) - whole)
            if in_half:
                distance -= _HALF_SHARE * (np.abs(whole) + 1) + _HALF_AMOUNT / steps[rows]
        if wide is np.float64:  # a bias has millions of steps
            distance -= _FLOAT32_ROUNDING * np.abs(whole)
        return float(np.where(np.isnan(distance), np.inf, distance).max(initial=0.0))

    def _too_coarse(self, weight: Floats, shape: tuple[int, ...]) -> bool:
        """Return whether a weight other than 0 uses fewer steps than `_LEAST_STEPS`."""
        axes = tuple(i for i, length in enumerate(shape) if length == 1)
        reach = np.abs(weight).max(axis=axes, keepdims=True)
        return bool(((reach > 0) & (reach < _LEAST_STEPS * self.scale.reshape(shape))).any())

    def holds(self, weight: Floats, *, in_half: bool = False) -> str | None:
        """Return how a weight is stored here, "direct" or "transposed"; None if it is not.

        `in_half` says that the weight was rounded to fp16.
        """
        for how, form in (("direct", weight), ("transposed", weight.T)):
            if self.distance(form, stop=_HALF_A_STEP, in_half=in_half) <= _HALF_A_STEP:
                return how
        return None


def quantized_constants(
    model: ir.Model, constants: Mapping[str, ir.TensorProtocol]
) -> tuple[QuantizedConstant, ...]:
    """Return a graph's quantized constants, given all of its constants by name.

    A constant is quantized if it has a name as onnxruntime's quantizer gives it, or if a
    DequantizeLinear node reads it.
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
