"""`collapse`: a mixout checkpoint becomes a plain Hugging Face folder, tensor by tensor."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from mixout_export.artifacts.opening import open_artifact
from mixout_export.card.document import read_card, write_card
from mixout_export.card.facts import CollapseFacts
from mixout_export.card.steps import collapsed_card
from mixout_export.checkpoint.keys import weight_key
from mixout_export.checkpoint.mixed import MixoutCheckpoint
from mixout_export.errors import ArgumentError, CheckpointError
from mixout_export.files.json_files import write_json
from mixout_export.files.layout import LAYOUT
from mixout_export.files.output import output_folder
from mixout_export.files.sidecar_files import copy_sidecar_files
from mixout_export.files.streams import in_background
from mixout_export.files.tensors import (
    FLOATING,
    TensorEntry,
    TensorSource,
    same_rows,
    write_tensors,
)
from mixout_export.files.writing import TensorFile, write_index
from mixout_export.provenance.manifest import write_manifest


@dataclass(frozen=True)
class CollapseResult:
    """The result of `collapse`.

    Attributes:
        out: The plain folder.
        interpolate: α.
        dtype: Dtype that the weights were converted to; None if it was kept.
        tensors: Number of tensors written.
        interpolated: Number of tensors that were interpolated with their pretrained value.
        bytes: Size of all tensors.
        sha256: File name → SHA-256 of each weight file.
    """

    out: Path
    interpolate: float
    dtype: str | None
    tensors: int
    interpolated: int
    bytes: int
    sha256: dict[str, str]


def _open_mixout(source: Path) -> MixoutCheckpoint:
    checkpoint = open_artifact(source)
    if not isinstance(checkpoint, MixoutCheckpoint):
        what = "an ONNX export" if checkpoint.graph else "a plain checkpoint without mixout"
        raise CheckpointError(
            f"{source}: is {what}, so there is nothing to collapse; expected a mixout checkpoint"
        )
    checkpoint.require_weights()
    checkpoint.tensors  # noqa: B018 (reads the headers, so that damage is reported now)
    if not checkpoint.native:
        from mixout_export.checkpoint.loading import refuse_other_names  # PyTorch only if needed

        refuse_other_names(checkpoint)
    return checkpoint


def _pretrained_entries(folder: MixoutCheckpoint, alpha: float) -> dict[str, TensorEntry]:
    """Return, by weight key, the pretrained values to interpolate with."""
    if alpha == 1.0:
        return {}
    if not folder.pretrained_paths or _only_mixed(folder):
        raise CheckpointError(
            f"{folder.path}: holds the pretrained values of its mixed layers only, but "
            "interpolation needs those of all parameters; give a folder that prepare or train wrote"
        )
    by_key = {weight_key(key): entry for key, entry in folder.anchors.items()}
    for key, entry in by_key.items():
        fresh = key in folder.metadata.fresh_keys or key not in folder.tensors
        if not fresh and not same_rows(folder.tensors[key].shape, entry.shape):
            raise CheckpointError(
                f"{entry.file}: {entry.key!r} has shape {entry.shape}, expected the weight's "
                f"{folder.tensors[key].shape}"
            )
    return {key: entry for key, entry in by_key.items() if key not in folder.metadata.fresh_keys}


def _only_mixed(folder: MixoutCheckpoint) -> bool:
    """Return whether only the mixed weights have a pretrained value, though there are others."""
    metadata = folder.metadata
    known = {weight_key(key) for key in folder.anchors}
    others = {key for key, entry in folder.tensors.items() if entry.dtype in FLOATING} - known
    mixed = {module.weight_key for module in metadata.modules}
    return known <= mixed and bool(others - metadata.fresh_keys)


def _source_of(
    entry: TensorEntry, pretrained: TensorEntry | None, alpha: float, dtype: str | None
) -> TensorSource:
    floating = entry.dtype in FLOATING
    target = dtype if dtype is not None and floating else entry.dtype
    if pretrained is not None and alpha == 0.0 and pretrained.shape == entry.shape:
        entry = replace(pretrained, key=entry.key)  # the sum would lose the sign of a zero
        pretrained = None
    if (pretrained is None or not floating) and target == entry.dtype:
        return entry
    from mixout_export.files.arithmetic import Converted, Interpolated  # numpy only if needed

    if pretrained is not None and floating:
        return Interpolated(entry, target, pretrained, alpha)
    return Converted(entry, target)


def collapse_checkpoint(
    source: Path,
    out: Path,
    *,
    interpolate: float = 1.0,
    dtype: str | None = None,
    overwrite: bool = False,
) -> CollapseResult:
    """Write a plain checkpoint that computes what a mixout checkpoint computes in evaluation mode.

    The tensors go from file to file, so the whole model is never in memory.

    Args:
        source: A mixout checkpoint.
        out: The folder to write, which appears complete or not at all.
        interpolate: α in [0, 1]: every parameter that came from the base becomes
            (1 - α)·pretrained + α·trained.
        dtype: "float32", "float16", "bfloat16" or "float64"; None keeps each tensor's own.
        overwrite: Whether a non-empty `out` may be replaced.

    Raises:
        ArgumentError: α or the dtype is outside its domain.
        CheckpointError: The source is not a mixout checkpoint, or is damaged.
        OutputError: `out` cannot be written.
    """
    if not 0.0 <= interpolate <= 1.0:
        raise ArgumentError(f"interpolate: got {interpolate}, expected a number in [0, 1]")
    code = None
    if dtype is not None:
        from mixout_export.files.arithmetic import dtype_code  # numpy only where it is needed

        code = dtype_code(dtype)
    folder = _open_mixout(source)
    pretrained = _pretrained_entries(folder, interpolate)
    with output_folder(out, [source], overwrite=overwrite) as target:
        read = in_background(folder.weights_sha256)
        check = in_background(partial(folder.check_anchors, quickly=interpolate == 1.0))
        digests: dict[str, str] = {}
        files: list[TensorFile] = []
        for file in folder.weight_paths:
            entries = [e for e in folder.tensors.values() if e.file == file]
            if not entries:
                continue  # a shard that held nothing but anchors
            tensors = [_source_of(e, pretrained.get(e.key), interpolate, code) for e in entries]
            digests[file.name] = write_tensors(target.partial / file.name, tensors)
            files.append(TensorFile(target.partial / file.name, tuple(tensors)))
        if folder.weights.index is not None:
            write_index(target.partial / folder.weights.index.name, files)
        config = folder.collapsed_config()
        if dtype is not None:
            config.pop("torch_dtype", None)
            config["dtype"] = dtype
        write_json(target.partial / LAYOUT.config, config)
        copy_sidecar_files(folder.path, target.partial)
        written = [tensor for file in files for tensor in file.tensors]
        interpolated = sum(tensor.key in pretrained for tensor in written)
        facts = CollapseFacts(len(written), interpolated, interpolate, dtype)
        card = collapsed_card(folder.metadata, facts, read_card(folder.path / LAYOUT.card))
        write_card(card, target.partial / LAYOUT.card)
        check.result()  # raises if the checkpoint is damaged
        write_manifest(
            target.partial,
            step="collapse",
            source=folder.files,
            input_sha256=read.result(),
            weights=tuple(digests),
            options={"interpolate": interpolate, "dtype": dtype},
            known=digests,
        )
    return CollapseResult(
        out=out,
        interpolate=interpolate,
        dtype=dtype,
        tensors=len(written),
        interpolated=interpolated,
        bytes=sum(tensor.nbytes for tensor in written),
        sha256=digests,
    )
