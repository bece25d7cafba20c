"""Copy the files that lie beside the weights and never change."""

import os
import shutil
from pathlib import Path

from mixout_export.files.layout import LAYOUT, PROCESSOR_FILES, is_tokenizer_file


def copy_sidecar_files(source: Path, destination: Path) -> tuple[str, ...]:
    """Copy tokenizer and processor files and the generation configuration; return their names.

    Files that the destination already has are left alone. If it has a tokenizer, no file of another
    one is added.
    """
    copied = []
    has_tokenizer = any(is_tokenizer_file(path.name) for path in destination.iterdir())
    extra = {LAYOUT.generation_config, *PROCESSOR_FILES}
    for path in sorted(source.iterdir()):
        of_tokenizer = is_tokenizer_file(path.name) and not has_tokenizer
        wanted = of_tokenizer or path.name in extra
        target = destination / path.name
        if wanted and path.is_file() and not target.exists():
            shutil.copyfile(path, target)
            copied.append(path.name)
    return tuple(copied)


def link_or_copy(source: Path, destination: Path) -> None:
    """Hard-link an immutable file, or copy it where links do not work."""
    try:
        os.link(source, destination)
    except (AttributeError, OSError):  # not every system has os.link
        shutil.copy(source, destination)  # with its mode, which keeps anchors read-only


def make_read_only(path: Path) -> None:
    """Make an immutable file read-only, except on Windows, which does not delete such files."""
    if os.name != "nt":
        path.chmod(0o444)
