"""The files of a folder that is read."""

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any

from mixout_export.errors import CheckpointError
from mixout_export.files.json_files import parse_object
from mixout_export.files.layout import LAYOUT
from mixout_export.files.streams import file_digest

#: Files that several parts of a command ask for: their bytes are read once and kept.
_KEPT = (LAYOUT.config, LAYOUT.mixout_config, LAYOUT.manifest)


class InputFiles:
    """The files of a folder that is read.

    `config.json`, `mixout_config.json` and `manifest.json` are read once. What is parsed and what
    is hashed are the same bytes, even if somebody changes a file meanwhile.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._kept: dict[Path, bytes] = {}

    def at(self, folder: Path) -> "InputFiles":
        """Return the files of another folder, which share what was read."""
        files = InputFiles(folder)
        files._kept = self._kept
        return files

    def read(self, name: str) -> bytes:
        """Return the bytes of one of the small files, which are read once."""
        return self._read(self.folder / name)

    def _read(self, path: Path) -> bytes:
        if path not in self._kept:
            self._kept[path] = path.read_bytes()
        return self._kept[path]

    def read_json(self, name: str) -> dict[str, Any]:
        """Return one of the small files, which holds a JSON object, or raise `CheckpointError`."""
        path = self.folder / name
        try:
            return parse_object(self.read(name), path)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error

    @cached_property
    def config(self) -> dict[str, Any]:
        """The content of `config.json`; empty if the file is missing."""
        return self.read_json(LAYOUT.config) if (self.folder / LAYOUT.config).exists() else {}

    @property
    def is_bundle(self) -> bool:
        """Whether the folder's manifest says that `bundle` wrote it."""
        if not (self.folder / LAYOUT.manifest).is_file():
            return False
        try:
            content = json.loads(self.read(LAYOUT.manifest))
        except (OSError, ValueError, RecursionError):
            return False
        return isinstance(content, dict) and content.get("step") == "bundle"

    def digest(self, path: Path) -> str:
        """Return the SHA-256 of a file, of the bytes that were read if it was read."""
        if path.name not in _KEPT:
            return file_digest(path)
        return hashlib.sha256(self._read(path)).hexdigest()
