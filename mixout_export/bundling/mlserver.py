"""Lay out a folder for MLServer.

MLServer has no runtime for ONNX, so each model gets a runtime class beside its settings.
"""

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import PurePosixPath
from typing import Any

from mixout_export.bundling.plan import BundleOptions, Model, Plan, served_graphs
from mixout_export.bundling.source import OnnxFolder, Value
from mixout_export.files.graph_metadata import LABELS
from mixout_export.files.json_files import json_text

_RUNTIME = "graph_runtime.py"


def _tensors(values: Sequence[Value]) -> list[dict[str, Any]]:
    return [
        {"name": value.name, "datatype": value.datatype, "shape": list(value.shape)}
        for value in values
    ]


def _settings(model: Model, options: BundleOptions) -> dict[str, Any]:
    return {
        "name": model.name,
        "implementation": "graph_runtime.GraphRuntime",
        "platform": "onnxruntime_onnx",
        "inputs": _tensors(model.graph.inputs),
        "outputs": _tensors(model.graph.outputs),
        "parameters": {
            "uri": f"./{model.path.name}",
            "version": str(options.version),
            "extra": {
                **{key: value for key, value in model.identity.items() if value},
                LABELS: json.dumps(model.folder.labels, ensure_ascii=False),
                "max_batch_size": options.max_batch_size,
            },
        },
    }


def plan_mlserver(folders: Sequence[OnnxFolder], options: BundleOptions) -> Plan:
    """Lay out a folder for `mlserver start`, with one subfolder per model.

    Args:
        folders: One ONNX folder per precision. The first gets the model's name without a suffix.
        options: The model's name, version and batch size.
    """
    plan = Plan()
    runtime = files("mixout_export.bundling").joinpath("files", _RUNTIME).read_text("utf-8")
    plan.texts[PurePosixPath("settings.json")] = json_text(
        {"host": "127.0.0.1", "http_port": 8080, "grpc_port": 8081, "parallel_workers": 0}
    )
    for name, (folder, graph) in served_graphs(folders, options).items():
        root = PurePosixPath(name)
        model = Model(name, folder, graph, root / "model.onnx")
        plan.add_graph(model)
        plan.texts[root / "model-settings.json"] = json_text(_settings(model, options))
        plan.texts[root / _RUNTIME] = runtime
        plan.add_tokenizer(root / "tokenizer", folder)
    return plan
