"""Optimize a graph with onnxruntime once, instead of each time it loads the graph."""

from typing import Literal

import onnx
import onnxruntime

from mixout_export.export.temporary_file import is_large, temporary_file

#: "basic" uses only standard ONNX operators. "extended" also fuses some nodes into operators that
#: only onnxruntime has.
Level = Literal["basic", "extended"]

_LEVELS = {
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
}

_EXTERNAL_DATA = "optimized.data"


def optimize(model: onnx.ModelProto, level: Level) -> onnx.ModelProto:
    """Return a graph optimized by onnxruntime. The result runs on any CPU.

    Args:
        model: A graph. It is not changed.
        level: Which optimizations to apply.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = _LEVELS[level]
    if is_large(model):
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", _EXTERNAL_DATA
        )
    with temporary_file(model) as source:
        target = source.with_name("optimized.onnx")
        options.optimized_model_filepath = str(target)
        onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        optimized = onnx.load(target)
    _remove_unused_domains(optimized)
    return optimized


def _remove_unused_domains(model: onnx.ModelProto) -> None:
    """Remove the operator sets that onnxruntime lists although no node uses them, in place."""
    used = {node.domain for node in model.graph.node} | {""}
    kept = [opset for opset in model.opset_import if opset.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
