"""Open the checkpoint in a folder: a plain one, or one with mixout."""

from collections.abc import Set
from pathlib import Path

from mixout_export.checkpoint.mixed import MixoutCheckpoint
from mixout_export.checkpoint.mixout_metadata import MixoutMetadata, parse_metadata
from mixout_export.checkpoint.other_kinds import CHECK_PATH, other_kind, refuse_adapter
from mixout_export.checkpoint.plain import PlainCheckpoint
from mixout_export.checkpoint.saved_by_others import anchored_modules, metadata_of_config
from mixout_export.config import MixoutConfig
from mixout_export.errors import CheckpointError
from mixout_export.files.input_files import InputFiles
from mixout_export.files.layout import LAYOUT


def _module_with_mixout(files: InputFiles) -> str:
    """Say that a folder without a configuration is a saved module with mixout; "" if it is not."""
    try:
        modules = anchored_modules(PlainCheckpoint(files).tensors)
    except CheckpointError:
        modules = ()
    if not modules:
        return ""
    return (
        "; it has the state of a module with mixout, so load it into that module and write the "
        "folder with save_mixout"
    )


def is_onnx_folder(folder: Path) -> bool:
    """Tell whether a folder holds a graph, and no weights besides it."""
    has_weights = any((folder / n).exists() for n in (LAYOUT.weights, LAYOUT.weights_index))
    return (folder / LAYOUT.onnx).exists() and not has_weights


def checkpoint_in(files: InputFiles) -> PlainCheckpoint:
    """Open the checkpoint in a folder, which must have a `config.json`."""
    config_path = files.folder / LAYOUT.config
    if not config_path.exists():
        refuse_adapter(files.folder, has_weights=False)
        raise CheckpointError(
            f"{files.folder}: holds no {LAYOUT.config}, expected a Hugging Face checkpoint folder"
            f"{other_kind(files) or _module_with_mixout(files) or CHECK_PATH}"
        )
    metadata_path = files.folder / LAYOUT.mixout_config
    if metadata_path.exists():
        metadata = parse_metadata(files.read_json(LAYOUT.mixout_config), metadata_path)
        return MixoutCheckpoint(files, metadata, native=True)
    plain, record = PlainCheckpoint(files), files.config.get("mixout")
    try:
        keys: Set[str] = plain.tensors.keys()
    except CheckpointError:
        keys = frozenset()  # damaged, which is reported when the weights are used
    if isinstance(record, dict):
        metadata = metadata_of_config(record, keys, config_path)
        return MixoutCheckpoint(files, metadata, native=False)
    if modules := anchored_modules(keys):
        metadata = MixoutMetadata(MixoutConfig(), modules)
        return MixoutCheckpoint(files, metadata, native=False, recorded=False)
    return plain


def open_checkpoint(path: Path) -> PlainCheckpoint:
    """Open a plain or a mixout checkpoint. Its tensors' headers are read on first use."""
    if not path.exists():
        raise CheckpointError(f"{path}: no such folder; check the path")
    if path.suffix == ".onnx" or is_onnx_folder(path):
        raise CheckpointError(
            f"{path}: is an ONNX export, expected a Hugging Face folder or a mixout checkpoint"
        )
    if path.is_file():
        raise CheckpointError(f"{path}: is a file, expected a checkpoint folder or an .onnx file")
    return checkpoint_in(InputFiles(path))
