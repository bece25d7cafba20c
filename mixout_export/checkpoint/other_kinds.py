"""Say what a folder is that is not the checkpoint that was expected."""

from collections.abc import Sequence
from pathlib import Path

from mixout_export.errors import CheckpointError
from mixout_export.files.input_files import InputFiles
from mixout_export.files.layout import LAYOUT

#: The end of an error about a folder that lacks a file, if nothing else is known.
CHECK_PATH = "; check the path, or download the missing file"


def other_kind(files: InputFiles) -> str:
    """Say what a folder is that is not a checkpoint, as the end of a sentence; "" if unknown."""
    if (files.folder / LAYOUT.onnx).exists():
        return "; it is an ONNX folder, so give the checkpoint that it was exported from"
    if files.is_bundle:
        return "; it is a bundle, so give the folder that it was made from"
    inside = sorted(path.parent for path in files.folder.glob(f"*/{LAYOUT.config}"))
    if inside:
        return f"; a checkpoint is in {_newest(inside)}, so give that folder"
    return ""


def _newest(folders: Sequence[Path]) -> Path:
    """Return the folder with the highest number at its end, such as a Trainer's checkpoint-500."""

    def number(folder: Path) -> int:
        digits = folder.name.rpartition("-")[2]
        return int(digits) if digits.isdecimal() else -1

    return max(folders, key=number)


def refuse_adapter(folder: Path, has_weights: bool) -> None:
    """Raise `CheckpointError` if a folder holds an adapter of PEFT."""
    if not (folder / LAYOUT.adapter_config).exists():
        return
    if has_weights:
        raise CheckpointError(
            f"{folder}: holds a PEFT adapter ({LAYOUT.adapter_config}) beside its weights, so it "
            "is unclear whether they contain it; delete the adapter's files if they do, else run "
            "prepare with --merge-adapter"
        )
    raise CheckpointError(
        f"{folder}: holds a PEFT adapter ({LAYOUT.adapter_config}) and no weights; run prepare "
        "with --merge-adapter, which merges it into its base"
    )
