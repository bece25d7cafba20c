"""Let onnxruntime rewrite a graph once, rather than at every start."""

from typing import Literal

import onnx
import onnxruntime

from mixout_export.export.saving import is_large, saved

#: "basic" stays within the standard's operators, "extended" fuses some into onnxruntime's own.
Level = Literal["basic", "extended"]

_LEVELS = {
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
}

_EXTERNAL_DATA = "optimized.data"


def optimize(model: onnx.ModelProto, level: Level) -> onnx.ModelProto:
    """Return a graph as onnxruntime's optimiser leaves it, for any CPU.

    Args:
        model: A graph; it is left as it is.
        level: How far to go.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = _LEVELS[level]
    if is_large(model):
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", _EXTERNAL_DATA
        )
    with saved(model) as source:
        target = source.with_name("optimized.onnx")
        options.optimized_model_filepath = str(target)
        onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        optimized = onnx.load(target)
    _remove_unused_domains(optimized)
    return optimized


def _remove_unused_domains(model: onnx.ModelProto) -> None:
    """Take out the operator sets that onnxruntime lists though no node is of them."""
    used = {node.domain for node in model.graph.node} | {""}
    kept = [opset for opset in model.opset_import if opset.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
