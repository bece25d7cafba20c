"""`inspect`: describe a folder, its history, and how far its layers have moved."""

import math
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import singledispatch
from pathlib import Path
from typing import Any

from mixout_export.artifacts.onnx_model import Bundle, OnnxModel
from mixout_export.artifacts.opening import open_artifact
from mixout_export.checkpoint.artifact import LocalArtifact
from mixout_export.checkpoint.plain import PlainCheckpoint
from mixout_export.errors import ArgumentError, CheckpointError, OutputError
from mixout_export.files.arithmetic import squares
from mixout_export.files.graph_metadata import SOURCE_SHA256, TOOL_VERSION, GraphMetadata
from mixout_export.files.input_files import InputFiles
from mixout_export.files.layout import TRAINED_MAX_LENGTH
from mixout_export.provenance.links import Link
from mixout_export.provenance.manifest import damage_explained

#: Metadata of a graph that say what it was trained on, and where it comes from.
_ORIGIN = (TRAINED_MAX_LENGTH, SOURCE_SHA256, TOOL_VERSION)


@dataclass(frozen=True)
class LayerDistance:
    """How far a mixed layer is from its pretrained weight.

    Attributes:
        name: The module.
        shape: Shape of its weight.
        distance: ‖w - u‖, the Frobenius norm.
        relative: ‖w - u‖ / ‖u‖; infinite where u is zero and w is not.
    """

    name: str
    shape: tuple[int, ...]
    distance: float
    relative: float


@dataclass(frozen=True)
class Inspection:
    """The description of a path.

    Attributes:
        path: The path.
        kind: "huggingface", "mixout", "onnx" or "bundle".
        architecture: Class name of the model; None if unknown.
        task: Name of the task; None for a headless model.
        labels: Label names; None if the task has none.
        tensors: Number of tensors, without anchors.
        parameters: Total number of their elements.
        dtypes: Dtype → number of tensors.
        files: File name → bytes.
        provenance: The entries of `mixout_config.json` except the modules, the origin in a graph's
            metadata, or the options of a bundle.
        layers: Distances of the mixed layers; empty unless `kind` is "mixout".
        distance: ‖w - u‖ over all mixed layers; None unless `kind` is "mixout".
        chain: The steps that led to the folder, starting with the base; empty without a manifest.
        broken: Differences from the manifest, as sentences; empty if it matches.
        unlisted: Files that the manifest does not list. They are allowed.
    """

    path: Path
    kind: str
    architecture: str | None = None
    task: str | None = None
    labels: tuple[str, ...] | None = None
    tensors: int = 0
    parameters: int = 0
    dtypes: dict[str, int] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    layers: tuple[LayerDistance, ...] = ()
    distance: float | None = None
    chain: tuple[Link, ...] = ()
    broken: tuple[str, ...] = ()
    unlisted: tuple[str, ...] = ()


def _distances(folder: PlainCheckpoint) -> tuple[tuple[LayerDistance, ...], float | None]:
    if folder.metadata is None:
        return (), None
    layers, total = [], 0.0
    seen: set[str] = set()
    for module in folder.metadata.modules:
        if module.weight_key in seen:
            continue  # merged on disk with an earlier module, and counted with it
        seen.add(module.weight_key)
        entry = folder.tensors.get(module.weight_key)
        anchor = folder.anchors.get(module.pretrained_key)
        if entry is None or anchor is None:
            missing = module.weight_key if entry is None else module.pretrained_key
            raise CheckpointError(f"{folder.path}: the tensor {missing!r} is missing; restore it")
        moved, norm = squares(entry, anchor)
        distance, size = math.sqrt(moved), math.sqrt(norm)
        relative = distance / size if size else math.inf if distance else 0.0
        layers.append(LayerDistance(module.name, entry.shape, distance, relative))
        total += moved
    return tuple(layers), math.sqrt(total)


def _files(path: Path) -> dict[str, int]:
    files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    return {file.name: file.stat().st_size for file in files}


@singledispatch
def _inspect(artifact: LocalArtifact) -> Inspection:
    raise TypeError(f"no inspection of {type(artifact).__name__}")


@_inspect.register
def _inspect_graph(model: OnnxModel) -> Inspection:
    from onnx import TensorProto  # onnx only where it is needed

    proto = model.proto()
    entries = {entry.key: entry.value for entry in proto.metadata_props}
    metadata = GraphMetadata(entries, model.graph)
    tensors = proto.graph.initializer
    dtypes = Counter(TensorProto.DataType.Name(tensor.data_type) for tensor in tensors)
    opsets = [opset.version for opset in proto.opset_import if opset.domain in ("", "ai.onnx")]
    provenance = {
        "opset": max(opsets, default=0),
        "inputs": tuple(value.name for value in proto.graph.input),
        "outputs": tuple(value.name for value in proto.graph.output),
    }
    return Inspection(
        path=model.path,
        kind=model.kind,
        architecture=model.architecture,
        task=metadata.task or None,
        labels=metadata.labels or None,
        tensors=len(tensors),
        parameters=sum(math.prod(tensor.dims) for tensor in tensors),
        dtypes=dict(sorted(dtypes.items())),
        files=_files(model.path),
        provenance=provenance | {key: entries[key] for key in _ORIGIN if key in entries},
    )


def inspect_path(path: Path) -> Inspection:
    """Describe a path, and check its manifest.

    Args:
        path: A mixout checkpoint, a Hugging Face folder, an ONNX folder, an `.onnx` file or a
            bundle.

    Raises:
        CheckpointError: The path cannot be read as any of these.
        ParityError: It cannot be read because a file was changed, according to its manifest.
    """
    files = InputFiles(path)
    with damage_explained(files):
        artifact = open_artifact(files)
        inspection = _inspect(artifact)
        found = artifact.manifest_check
    return replace(
        inspection,
        chain=() if found.manifest is None else found.manifest.whole_chain,
        broken=(*inspection.broken, *found.problems),
        unlisted=found.unlisted,
    )


@_inspect.register
def _inspect_bundle(bundle: Bundle) -> Inspection:
    """Return the files and options of a bundle, without opening its graphs."""
    manifest = bundle.manifest
    options = dict(manifest.link.options)
    also = options.pop("also", ())  # complete steps, of which the hash is enough here
    if also:
        options["also"] = [step.get("weights_sha256") for step in also if isinstance(step, dict)]
    return Inspection(
        path=bundle.path,
        kind=bundle.kind,
        files={name: file.bytes for name, file in manifest.files.items()},
        provenance=options,
    )


@_inspect.register
def _inspect_checkpoint(folder: PlainCheckpoint) -> Inspection:
    folder.require_weights()
    entries = folder.tensors.values()
    layers, distance = _distances(folder)
    provenance: dict[str, Any] = {}
    if folder.metadata is not None:
        provenance = folder.metadata.to_dict()
        provenance.pop("modules")
    dtypes = Counter(entry.dtype for entry in entries)
    return Inspection(
        path=folder.path,
        kind=folder.kind,
        architecture=folder.architecture,
        task=folder.task_name,
        labels=folder.labels,
        tensors=len(entries),
        parameters=sum(math.prod(entry.shape) for entry in entries),
        dtypes=dict(sorted(dtypes.items())),
        files=_files(folder.path),
        provenance=provenance,
        layers=layers,
        distance=distance,
        broken=folder.damage(),
    )


def _title(inspection: Inspection) -> str:
    """Return the title of a plot: the model's base, task and folder."""
    base = inspection.provenance.get("base") or {}
    name = base.get("name") or inspection.architecture or "model"
    task = f" for {inspection.task}" if inspection.task else ""
    return f"{name}{task} ({inspection.path.resolve().name})"


def plot_distances(inspection: Inspection, path: Path) -> None:
    """Plot how far each mixed layer is from its pretrained weight.

    Args:
        inspection: The inspection of a mixout checkpoint.
        path: The image to write. Its suffix is the format: png, svg or pdf.

    Raises:
        ArgumentError: The folder has no mixed layers, or the suffix is not an image format.
        OutputError: The image cannot be written.
    """
    from mixout_export.stages.pictures import draw_distances  # matplotlib only where it is needed

    if not inspection.layers:
        raise ArgumentError(
            f"plot: {inspection.path} is not a mixout checkpoint, so there are no distances to plot"
        )
    try:
        draw_distances(inspection.layers, path, title=_title(inspection))
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from error
