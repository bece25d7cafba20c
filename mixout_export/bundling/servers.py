"""Lay out folders for Triton, MLServer and OpenVINO Model Server.

These servers show every graph as a model of its own, so each graph gets a folder.
"""

import json
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import PurePosixPath
from typing import Any

from mixout_export.bundling.plan import BundleOptions, Model, Plan
from mixout_export.bundling.source import OnnxFolder, Value
from mixout_export.errors import ArgumentError, CheckpointError
from mixout_export.files.graph_metadata import LABELS
from mixout_export.files.json_files import json_text
from mixout_export.tasks import known_task

_LABELS_FILE = "labels.txt"

#: How long Triton delays a request so that others can join its batch.
_QUEUE_DELAY_MICROSECONDS = 1000

#: The runtime class beside each model's settings, because MLServer has no runtime for ONNX.
_RUNTIME = "graph_runtime.py"

#: Path of the bundle in OpenVINO Model Server's container.
_MOUNTED = "/models"


def _quoted(text: str) -> str:
    """Return a text as a string of protobuf's text format."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + re.sub(r"[\0-\x1f\x7f]", lambda found: f"\\{ord(found[0]):03o}", escaped) + '"'


def _tensor(kind: str, value: Value, labels: str) -> str:
    sizes = ", ".join(map(str, value.shape[1:]))
    lines = [
        f"  name: {_quoted(value.name)}",
        f"  data_type: TYPE_{value.datatype}",
        f"  dims: [ {sizes} ]",
        *([f"  label_filename: {_quoted(labels)}"] if labels else []),
    ]
    return f"{kind} {{\n" + "\n".join(lines) + "\n}"


def _batching(model: Model) -> str:
    """Return the setting that lets Triton join requests into one batch."""
    if model.graph.shares_scale:
        return (
            "# No dynamic_batching: the rows of an int8 batch share one scale, so a client's\n"
            "# answer would depend slightly on other clients' requests."
        )
    return f"dynamic_batching {{ max_queue_delay_microseconds: {_QUEUE_DELAY_MICROSECONDS} }}"


def _config(model: Model, options: BundleOptions, labels: str) -> str:
    """Return the text of `config.pbtxt`. Triton adds the batch axis to its shapes."""
    parameters = [
        f"parameters {{\n  key: {_quoted(key)}\n  value: {{ string_value: {_quoted(value)} }}\n}}"
        for key, value in model.identity.items()
        if value
    ]
    parts = [
        f"name: {_quoted(model.name)}",
        'backend: "onnxruntime"',
        f"max_batch_size: {options.max_batch_size}",
        *(_tensor("input", value, "") for value in model.graph.inputs),
        *(_tensor("output", value, labels) for value in model.graph.outputs),
        _batching(model),
        "version_policy { latest { num_versions: 1 } }",
        *parameters,
    ]
    return "\n".join(parts) + "\n"


def _labels_file(folder: OnnxFolder) -> str:
    """Return one label per line; "" if the task has no classes.

    Raises:
        CheckpointError: A label has a line break.
    """
    task = known_task(folder.task)
    if task is None or not task.classifies:
        return ""
    for label in folder.labels:
        if len(label.splitlines()) > 1:
            raise CheckpointError(
                f"{folder.path}: the label {label[:60]!r} has a line break, but Triton reads one "
                "label per line; rename it in config.json and export the checkpoint again"
            )
    return "".join(f"{label}\n" for label in folder.labels)


def plan_triton(folders: Sequence[OnnxFolder], options: BundleOptions) -> Plan:
    """Lay out a model repository for NVIDIA Triton, with a folder per version of each model.

    Raises:
        CheckpointError: A label has a line break.
    """
    plan = Plan()
    # Triton's onnxruntime backend expects this file name
    for model in plan.add_models(folders, options, f"{options.version}/model.onnx"):
        root = PurePosixPath(model.name)
        labels = _labels_file(model.folder)
        if labels:
            plan.texts[root / _LABELS_FILE] = labels
        config = _config(model, options, _LABELS_FILE if labels else "")
        plan.texts[root / "config.pbtxt"] = config
    return plan


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
    """Lay out a folder for `mlserver start`."""
    plan = Plan()
    runtime = files("mixout_export.bundling").joinpath("files", _RUNTIME).read_text("utf-8")
    plan.texts[PurePosixPath("settings.json")] = json_text(
        {"host": "127.0.0.1", "http_port": 8080, "grpc_port": 8081, "parallel_workers": 0}
    )
    for model in plan.add_models(folders, options, "model.onnx"):
        root = PurePosixPath(model.name)
        plan.texts[root / "model-settings.json"] = json_text(_settings(model, options))
        plan.texts[root / _RUNTIME] = runtime
    return plan


def plan_openvino(folders: Sequence[OnnxFolder], options: BundleOptions) -> Plan:
    """Lay out a folder for OpenVINO Model Server, with a folder per version of each model.

    Raises:
        ArgumentError: A graph uses operators that only onnxruntime has.
    """
    plan = Plan()
    models = plan.add_models(folders, options, f"{options.version}/model.onnx")
    for model in models:
        if not model.graph.standard:
            raise ArgumentError(
                f"{model.graph.path}: the graph uses operators that only onnxruntime has, and "
                "OpenVINO cannot run them; export it again without --optimize"
            )
    paths = [
        {"config": {"name": model.name, "base_path": f"{_MOUNTED}/{model.name}"}}
        for model in models
    ]
    plan.texts[PurePosixPath("config.json")] = json_text({"model_config_list": paths})
    return plan
