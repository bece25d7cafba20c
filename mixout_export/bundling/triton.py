"""Lay out a model repository for NVIDIA Triton Inference Server."""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from mixout_export.bundling.plan import BundleOptions, Model, Plan, served_graphs
from mixout_export.bundling.source import OnnxFolder, Value
from mixout_export.errors import CheckpointError
from mixout_export.tasks import known_task

_LABELS = "labels.txt"

#: How long Triton delays a request so that others can join its batch.
_QUEUE_DELAY_MICROSECONDS = 1000


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
    """Lay out a model repository: one folder per model, with one folder per version in it.

    Args:
        folders: One ONNX folder per precision. The first gets the model's name without a suffix.
        options: The model's name, version and batch size.

    Raises:
        CheckpointError: A label has a line break.
    """
    plan = Plan()
    for name, (folder, graph) in served_graphs(folders, options).items():
        root = PurePosixPath(name)
        # Triton's onnxruntime backend expects this file name
        model = Model(name, folder, graph, root / str(options.version) / "model.onnx")
        plan.add_graph(model)
        labels = _labels_file(folder)
        if labels:
            plan.texts[root / _LABELS] = labels
        plan.texts[root / "config.pbtxt"] = _config(model, options, _LABELS if labels else "")
        plan.add_tokenizer(root / "tokenizer", folder)
    return plan
