"""Quantize a graph's weights, and the matrix products with them, to int8."""

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx
import onnxruntime
from onnx import helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.onnx_model import ONNXModel

from mixout_export.errors import ExportError
from mixout_export.export.temporary_file import is_large

Array = npt.NDArray[Any]

#: The operators that are quantized, and the index of the weight among their inputs. MatMul is a
#: product with a weight; Gemm is split into MatMul and Add first. Gather is a lookup in an
#: embedding table, which is half of a small BERT. Quantizing other operators gains nothing, and
#: at opset 23 the file would not load.
_WEIGHT_INPUT = {"MatMul": 1, "Gather": 0}
OPERATORS = tuple(_WEIGHT_INPUT)

#: Metadata that tells onnxruntime that shapes are known. Without it, onnxruntime recommends a
#: preprocessing step that the graph does not need.
_PREPARED = {"onnx.quant.pre_process": "onnxruntime.quant"}

#: Severities of onnxruntime's own log. Its default is to show warnings.
_WARNING, _FATAL = 2, 4


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence onnxruntime's messages, which it logs to the root logger and to stderr."""
    root, handler = logging.getLogger(), logging.NullHandler()

    def drop(record: logging.LogRecord) -> bool:
        return False

    root.addFilter(drop)
    root.addHandler(handler)  # without a handler, the first message would add a permanent one
    onnxruntime.set_default_logger_severity(_FATAL)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(_WARNING)
        root.removeHandler(handler)
        root.removeFilter(drop)


class _Batches(CalibrationDataReader):  # type: ignore[misc]
    """Read calibration batches from memory."""

    def __init__(self, batches: Sequence[Mapping[str, Array]]) -> None:
        self._remaining = iter(batches)

    def get_next(self) -> dict[str, Array] | None:
        batch = next(self._remaining, None)
        return None if batch is None else dict(batch)


def _split_gemm(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replace each Gemm by a MatMul, which is quantized, and an Add of the bias, which is not."""
    wrapped = ONNXModel(model)
    wrapped.replace_gemm_with_matmul()
    wrapped.clean_initializers()
    wrapped.topological_sort()
    changed: onnx.ModelProto = wrapped.model
    _remove_weight_shapes(changed)
    return changed


def _remove_weight_shapes(model: onnx.ModelProto) -> None:
    """Remove the recorded shapes of weights, in place.

    Replacing a Gemm transposes its weight under the same name, so the recorded shape becomes wrong
    and onnx 1.19 refuses the graph. The weights themselves still hold the right shapes.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    kept = [value for value in model.graph.value_info if value.name not in weights]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)


def _nodes_with_weights(model: onnx.ModelProto) -> list[str]:
    """Return the names of the nodes that read a floating-point weight."""
    weights = {
        tensor.name
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    }
    return [
        node.name
        for node in model.graph.node
        if node.op_type in OPERATORS and node.input[_WEIGHT_INPUT[node.op_type]] in weights
    ]


def quantize_weights(
    model: onnx.ModelProto,
    batches: Sequence[Mapping[str, Array]] | None = None,
    *,
    reduce_range: bool = False,
) -> onnx.ModelProto:
    """Quantize weights to int8, with one quantization step per output channel.

    The graph needs the types of its values, and it is changed. The result uses only standard ONNX
    operators. `reduce_range` uses 7 of the 8 bits: x86 processors without VNNI add products in 16
    bits, which 8-bit weights may overflow. For `batches` see `precision.convert_graph`.

    Raises:
        ExportError: The graph has no weight to quantize.
    """
    model = _split_gemm(model)
    nodes = _nodes_with_weights(model)
    if not nodes:
        raise ExportError(
            f"int8: the graph has no {' or '.join(OPERATORS)} with a weight, so nothing can be "
            "quantized; give --precision fp32"
        )
    helper.set_model_props(model, _PREPARED)
    options: dict[str, Any] = {
        "op_types_to_quantize": list(OPERATORS),
        "per_channel": True,
        "reduce_range": reduce_range,
        "weight_type": QuantType.QInt8,
        "use_external_data_format": is_large(model),
    }
    with tempfile.TemporaryDirectory() as folder, _quiet():
        path = Path(folder) / "quantized.onnx"
        if batches is None:
            quantize_dynamic(model, path, **options)
        else:
            quantize_static(
                model,
                path,
                _Batches(batches),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                calibrate_method=CalibrationMethod.MinMax,
                nodes_to_quantize=nodes,
                # Quantizing the outputs of products too was no faster. It reduced the share of
                # unchanged decisions from 97.9 % to 95.4 % on a BERT with 22 M parameters.
                extra_options={"OpTypesToExcludeOutputQuantization": list(OPERATORS)},
                **options,
            )
        return onnx.load(path)
