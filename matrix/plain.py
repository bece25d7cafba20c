"""Run and export a family's plain model, to compare this package with."""

from pathlib import Path
from typing import Any

import onnxruntime
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as onnxruntime_errors
from torch import Tensor, nn

from matrix.kinds import Kind
from mixout_export.quiet import quiet_libraries
from mixout_export.stages.onnx_export import export_onnx


class _Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: dict[str, Tensor]) -> Any:
        return self.model(**inputs).logits


def _accepts(graph: Path, batch: dict[str, Tensor]) -> bool:
    """Return whether a graph runs on a batch."""
    session = onnxruntime.InferenceSession(graph)
    try:
        session.run(None, {value.name: batch[value.name].numpy() for value in session.get_inputs()})
    except (onnxruntime_errors.InvalidArgument, onnxruntime_errors.Fail):
        return False
    return True


def exports_unmodified(folder: Path, kind: Kind, *, try_package: bool) -> bool:
    """Return whether the plain model can be exported, by PyTorch or by this package.

    If PyTorch cannot make an axis dynamic, it still writes a graph, with the sizes of the example
    fixed. Such a graph does not count as exported.

    Args:
        folder: The plain checkpoint.
        kind: What it reads.
        try_package: Whether to try this package if `torch.onnx.export` alone fails.
    """
    with quiet_libraries():
        model = kind.auto.from_pretrained(folder).eval()
        if hasattr(model.config, "use_cache"):
            model.config.use_cache = False
        batch = kind.inputs(model, kind.example, 0)
        axes = kind.axes(model)
        try:
            torch.onnx.export(
                _Logits(model),
                (batch,),
                graph := folder.parent / "plain.onnx",
                dynamo=True,
                opset_version=20,
                dynamic_shapes=(dict.fromkeys(batch, axes),),
                input_names=list(batch),
                verbose=False,
            )
            return _accepts(graph, kind.inputs(model, kind.other, 1))
        except Exception:  # the exporter's errors have no common base class
            pass
    if not try_package:
        return False
    try:
        export_onnx(folder, folder.parent / "unmodified", verify=False)
    except Exception:  # an internal error, too, means that it was not exported
        return False
    return True
