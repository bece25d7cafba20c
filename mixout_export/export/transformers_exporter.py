"""Export models that `torch.onnx` alone cannot export, with transformers' own exporter."""

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor
from transformers import PreTrainedModel

from mixout_export.quiet import quiet_libraries


def capture_with_transformers(
    model: PreTrainedModel,
    inputs: Mapping[str, Tensor],
    axes: Mapping[int, Any],
    *,
    outputs: Sequence[str],
    opset: int,
) -> ir.Model | None:
    """Capture a model with transformers' own exporter.

    It replaces operations such as complex rotations and splits of symbolic size, which ONNX does
    not have. Transformers calls it experimental, so we try it only after our own way has failed.

    `axes` are the dynamic axes that all inputs have. Only the named outputs are kept.

    Returns:
        The graph, with weights named as in the model. None if the installed transformers has no
        such exporter, or if it fails.
    """
    try:
        from transformers.exporters.configs import OnnxConfig
        from transformers.exporters.exporter_onnx import OnnxExporter
    except ImportError:
        return None
    config = OnnxConfig(
        dynamic=True,
        dynamic_shapes={name: dict(axes) for name in inputs},
        opset_version=opset,
        optimize=False,
        prefer_deferred_runtime_asserts_over_guards=True,
    )
    cached = getattr(model.config, "use_cache", None)
    with quiet_libraries(), torch.no_grad():
        try:
            if cached:
                model.config.use_cache = False
            exporter = OnnxExporter()  # type: ignore[no-untyped-call]
            program, _ = exporter.export_program(model, dict(inputs), config=config)
        except Exception:  # the caller reports why our own way failed
            return None
        finally:
            if cached:
                model.config.use_cache = cached
    graph = program.graph
    by_name = {value.name: value for value in graph.outputs}
    if not all(name in by_name for name in outputs):
        return None
    graph.outputs[:] = [by_name[name] for name in outputs]
    return program
