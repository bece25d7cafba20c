"""What the tests do once, or leave out: it takes most of their time, and is tested on its own."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest
import xxhash
from transformers import PreTrainedModel

from mixout_export.checkpoint.interface import ModelInterface
from mixout_export.export.graph import ExportedGraph
from mixout_export.stages import onnx_export
from mixout_export.stages.train import run

#: A model with more parameters than this is captured each time, so that no large graph is kept.
_FEW_PARAMETERS = 1_000_000

Capture = Callable[..., ExportedGraph]

_write_curves = run.write_curves


def note_curves(
    records: Sequence[Any], path: Path, *, metric: str, chosen_step: int, title: str
) -> None:
    """Write what would be drawn: equal runs still give equal files, and other runs others."""
    path.write_text(json.dumps([list(records), metric, chosen_step]), encoding="utf-8")


@contextmanager
def real_curves() -> Iterator[None]:
    """Let runs draw their curves while inside."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "write_curves", _write_curves)
        yield


def _digest(model: PreTrainedModel, interface: ModelInterface, opset: int) -> str:
    """Return what tells models apart of which other graphs are captured."""
    digest = xxhash.xxh3_128()
    for name, value in model.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().contiguous().view(-1).float().numpy().tobytes())
    config = {key: value for key, value in vars(model.config).items() if key != "_name_or_path"}
    interface = replace(interface, left_padding=False)  # of which no graph knows
    said = (type(model).__qualname__, sorted(config.items()), interface, opset)
    digest.update(repr(said).encode())
    return digest.hexdigest()


def _write(graph: ExportedGraph, path: Path) -> None:
    """Write a graph for the other worker, whole or not at all."""
    model = ir.to_proto(graph.model).SerializeToString()
    said = json.dumps({"modules_by_node": graph.modules_by_node, "opset": graph.opset})
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_bytes(said.encode() + b"\n" + model)
    partial.rename(path)


def _read(path: Path) -> ExportedGraph:
    said, model = path.read_bytes().split(b"\n", 1)
    return ExportedGraph(ir.from_proto(onnx.load_from_string(model)), **json.loads(said))


class KnownGraphs:
    """Captures a model's graph when it is first asked for, and hands out copies from then on.

    Args:
        capture: What captures a graph.
        folder: Where workers leave graphs for one another.
    """

    def __init__(self, capture: Capture, folder: Path) -> None:
        self._capture = capture
        self._folder = folder

    def __call__(
        self, model: PreTrainedModel, interface: ModelInterface, *, opset: int = 20
    ) -> ExportedGraph:
        if model.num_parameters() > _FEW_PARAMETERS:
            return self._capture(model, interface, opset=opset)
        path = self._folder / _digest(model, interface, opset)
        if not path.exists():
            _write(self._capture(model, interface, opset=opset), path)
        return _read(path)


@contextmanager
def shortcuts(folder: Path) -> Iterator[None]:
    """Write no curves, and capture equal models once.

    Args:
        folder: A folder that all workers share.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "write_curves", note_curves)
        for name in ("export_graph", "export_cached_graph"):
            graphs = folder / name
            graphs.mkdir(exist_ok=True)
            patch.setattr(onnx_export, name, KnownGraphs(getattr(onnx_export, name), graphs))
        yield
