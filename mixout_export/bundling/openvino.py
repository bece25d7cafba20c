"""Lay out a folder for OpenVINO Model Server: one folder per model, with one per version in it."""

import json
from collections.abc import Sequence
from pathlib import PurePosixPath

from mixout_export.bundling.plan import BundleOptions, Model, Plan, served_graphs
from mixout_export.bundling.source import OnnxFolder
from mixout_export.errors import ArgumentError

#: Path of the bundle in the model server's container.
MOUNTED = "/models"


def plan_openvino(folders: Sequence[OnnxFolder], options: BundleOptions) -> Plan:
    """Lay out a folder for OpenVINO Model Server.

    Args:
        folders: One ONNX folder per precision. The first gets the model's name without a suffix.
        options: The model's name and version.

    Raises:
        ArgumentError: A graph uses operators that only onnxruntime has.
    """
    plan, models = Plan(), []
    for name, (folder, graph) in served_graphs(folders, options).items():
        if not graph.standard:
            raise ArgumentError(
                f"{graph.path}: the graph uses operators that only onnxruntime has, and OpenVINO "
                "cannot run them; export it again without --optimize"
            )
        root = PurePosixPath(name)
        plan.add_graph(Model(name, folder, graph, root / str(options.version) / "model.onnx"))
        plan.add_tokenizer(root / "tokenizer", folder)
        models.append({"config": {"name": name, "base_path": f"{MOUNTED}/{name}"}})
    plan.texts[PurePosixPath("config.json")] = (
        json.dumps({"model_config_list": models}, indent=2) + "\n"
    )
    return plan
