"""Convert a captured fp32 graph to fp16 or int8, and optimize it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime
from onnx_ir.passes.common import RemoveUnusedOpsetsPass

from mixout_export.errors import ArgumentError
from mixout_export.export.graph import ExportedGraph
from mixout_export.export.half import to_half
from mixout_export.export.quantization import OPERATORS, quantize_weights
from mixout_export.export.temporary_file import is_large, temporary_file
from mixout_export.files.graph_metadata import PRECISIONS
from mixout_export.runners.onnx_runner import open_session

_LEVELS = {
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
}

Batches = Sequence[Mapping[str, npt.NDArray[Any]]]


@dataclass(frozen=True)
class Conversion:
    """How to convert a captured graph.

    Attributes:
        precision: One of `PRECISIONS`.
        optimize: Whether to apply onnxruntime's graph optimizations.
        reduce_range: Whether int8 weights use 7 bits, for x86 processors without VNNI.
    """

    precision: str = "fp32"
    optimize: bool = False
    reduce_range: bool = False

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ArgumentError(
                f"precision: got {self.precision!r}, expected one of {', '.join(PRECISIONS)}"
            )
        if self.reduce_range and self.precision != "int8":
            raise ArgumentError(
                f"reduce-range: applies only to int8, got precision {self.precision}; give "
                "--precision int8"
            )

    @property
    def keeps_graph(self) -> bool:
        """Whether the captured graph needs no conversion."""
        return self.precision == "fp32" and not self.optimize


def optimize(model: onnx.ModelProto, level: Literal["basic", "extended"]) -> onnx.ModelProto:
    """Return a graph that onnxruntime has optimized, so that it need not do so at each load.

    The result runs on any CPU. "basic" uses only standard ONNX operators. "extended" also fuses
    some nodes into operators that only onnxruntime has.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = _LEVELS[level]
    if is_large(model):
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", "optimized.data"
        )
    with temporary_file(model) as source:
        target = source.with_name("optimized.onnx")
        options.optimized_model_filepath = str(target)
        open_session(source, options)
        return onnx.load(target)


def _add_cache_inputs(
    model: onnx.ModelProto, batch: Mapping[str, npt.NDArray[Any]]
) -> dict[str, Any]:
    """Return a batch with the inputs of a graph with a cache: positions and an empty cache."""
    first = next(iter(batch.values()))
    positions = np.broadcast_to(np.arange(first.shape[-1]), first.shape).copy()
    arrays = {"position_ids": positions, **batch}
    for value in model.graph.input:
        if value.name not in arrays:
            shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            arrays[value.name] = np.zeros((len(first), *shape[1:]), dtype=np.float32)
    return {value.name: arrays[value.name] for value in model.graph.input}


def _to_int8(
    model: onnx.ModelProto, conversion: Conversion, calibration: Batches | None
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    batches = (
        None if calibration is None else [_add_cache_inputs(model, batch) for batch in calibration]
    )
    record: dict[str, Any] = {
        "method": "dynamic" if batches is None else "static",
        "operators": sorted(OPERATORS),
        "per_channel": True,
        "weight_bits": 7 if conversion.reduce_range else 8,
    }
    if batches is not None:
        record["calibration_rows"] = sum(len(next(iter(batch.values()))) for batch in batches)
    converted = quantize_weights(model, batches, reduce_range=conversion.reduce_range)
    return converted, record


def _convert(
    model: onnx.ModelProto,
    conversion: Conversion,
    *,
    samples: Batches,
    calibration: Batches | None,
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Return the converted graph and a record of how it was converted."""
    record: dict[str, Any] = {"onnxruntime": onnxruntime.__version__}
    if conversion.precision == "fp16":
        if conversion.optimize:  # in fp32, because onnxruntime has few fp16 operators on a CPU
            model = optimize(model, "basic")
            model = onnx.shape_inference.infer_shapes(model)
            record["optimized"] = "basic"
        model, kept = to_half(model, [_add_cache_inputs(model, batch) for batch in samples])
        return model, record | {"fp32_nodes": list(kept), "outputs": "float32"}
    if conversion.precision == "int8":
        model, made = _to_int8(model, conversion, calibration)
        record |= made
    if conversion.optimize:
        # after quantization, because fused operators are not quantized
        model = optimize(model, "extended")
        record["optimized"] = "extended"
    return model, record


def convert_graph(
    graph: ExportedGraph,
    conversion: Conversion,
    *,
    samples: Batches = (),
    calibration: Batches | None = None,
) -> tuple[ExportedGraph, dict[str, Any]]:
    """Convert a captured graph to another precision, and optimize it if asked to.

    Args:
        graph: A graph as it was captured, with the types of its values. It is not changed.
        conversion: How to convert it.
        samples: Batches of inputs, each input name → array. For fp16, the graph runs on them to
            find values that are too large.
        calibration: Batches of inputs, each input name → array. For int8, they fix the range of
            the activations (static quantization). With None, each batch is measured when it
            arrives (dynamic quantization).

    Returns:
        The graph, and a record of the conversion as JSON values; {} if nothing was converted.

    Raises:
        ExportError: The graph cannot be converted.
    """
    if conversion.keeps_graph:
        return graph, {}
    proto, record = _convert(
        ir.to_proto(graph.model), conversion, samples=samples, calibration=calibration
    )
    model = ir.from_proto(proto)
    RemoveUnusedOpsetsPass()(model)  # onnxruntime lists all operator sets that it knows
    model.graph.sort()  # the converter appends casts at the end
    return replace(graph, model=model), record
