"""From a captured graph in fp32 to the graph that was asked for: fp16, int8, optimised."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime

from mixout_export.errors import ArgumentError
from mixout_export.export.graph import ExportedGraph
from mixout_export.export.half import to_half
from mixout_export.export.optimization import optimize
from mixout_export.export.quantization import OPERATORS, quantize_weights
from mixout_export.files.graph_metadata import PRECISIONS

Batches = Sequence[Mapping[str, npt.NDArray[Any]]]


@dataclass(frozen=True)
class Conversion:
    """What becomes of a captured graph.

    Attributes:
        precision: One of `PRECISIONS`.
        optimize: Apply onnxruntime's graph optimisations.
        reduce_range: int8 weights in 7 bits, for x86 processors without VNNI.
    """

    precision: str = "fp32"
    optimize: bool = False
    reduce_range: bool = False

    def __post_init__(self) -> None:
        """Check the arguments.

        Raises:
            ArgumentError: One is outside its domain, or they contradict each other.
        """
        if self.precision not in PRECISIONS:
            raise ArgumentError(
                f"precision: got {self.precision!r}, expected one of {', '.join(PRECISIONS)}"
            )
        if self.reduce_range and self.precision != "int8":
            raise ArgumentError("reduce-range: is about int8 weights; give --precision int8")

    @property
    def changes_nothing(self) -> bool:
        """Whether the graph stays as it was captured."""
        return self.precision == "fp32" and not self.optimize


def _complete(model: onnx.ModelProto, batch: Mapping[str, npt.NDArray[Any]]) -> dict[str, Any]:
    """Give a batch what a graph with a key/value cache takes besides: positions, an empty cache."""
    first = next(iter(batch.values()))
    positions = np.broadcast_to(np.arange(first.shape[-1]), first.shape).copy()
    made = {"position_ids": positions, **batch}
    for value in model.graph.input:
        if value.name not in made:
            shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            made[value.name] = np.zeros((len(first), *shape[1:]), dtype=np.float32)
    return {value.name: made[value.name] for value in model.graph.input}


def _to_int8(
    model: onnx.ModelProto, conversion: Conversion, calibration: Batches | None
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    batches = None if calibration is None else [_complete(model, batch) for batch in calibration]
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
    """Return the converted graph and how it was made."""
    record: dict[str, Any] = {"onnxruntime": onnxruntime.__version__}
    if conversion.precision == "fp16":
        if conversion.optimize:  # before, for onnxruntime has few fp16 operators on a CPU
            model = optimize(model, "basic")
            model = onnx.shape_inference.infer_shapes(model)
            record["optimized"] = "basic"
        model, kept = to_half(model, [_complete(model, batch) for batch in samples])
        return model, record | {"fp32_nodes": list(kept), "outputs": "float32"}
    if conversion.precision == "int8":
        model, made = _to_int8(model, conversion, calibration)
        record |= made
    if (
        conversion.optimize
    ):  # after, for it fuses what quantising leaves, and fused is not quantised
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
    """Turn a captured graph into the one that was asked for.

    Args:
        graph: A graph as it was captured, with the types of its values; it is left as it is.
        conversion: What to make of it.
        samples: Inputs by name that show, for fp16, which numbers grow too large.
        calibration: Inputs by name that show, for int8, how large activations are; None rounds
            activations by each batch's own range (dynamic quantisation).

    Returns:
        The graph, and how it was made as plain JSON values; {} if nothing was done.

    Raises:
        ExportError: The graph cannot be converted.
    """
    if conversion.changes_nothing:
        return graph, {}
    proto, record = _convert(
        ir.to_proto(graph.model), conversion, samples=samples, calibration=calibration
    )
    model = ir.from_proto(proto)
    model.graph.sort()  # casts are appended at the end
    return replace(graph, model=model), record
