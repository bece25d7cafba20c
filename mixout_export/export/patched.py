"""Capture a model with the patches that transformers has for its own exporter."""

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor
from transformers import PreTrainedModel

from mixout_export.quiet import quiet_libraries


def capture_patched(
    model: PreTrainedModel,
    inputs: Mapping[str, Tensor],
    axes: Mapping[int, Any],
    *,
    outputs: Sequence[str],
    opset: int,
) -> ir.Model | None:
    """Capture a model by transformers' own exporter, for what cannot be captured without it.

    It knows another way for complex rotations, splits of symbolic size and the like. It calls
    itself experimental, so it is not what is tried first.

    Args:
        model: A plain model in evaluation mode.
        inputs: An example by name.
        axes: The dynamic axes that all inputs share.
        outputs: Names of the outputs to keep.
        opset: ONNX operator set version.

    Returns:
        The graph, its weights named as the model names them; None where this transformers has no
        such exporter, or where it fails too.
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
        except Exception:  # whatever it raises, the reason to give is why the plain way failed
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
