"""Find out what a base is called, which its folder's name often does not say."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixout_export.files.layout import LAYOUT

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_HEADING = re.compile(r"^# +(\S+) *$", re.MULTILINE)

#: Folder names that do not say which model is inside.
_GENERIC = re.compile(
    r"(model|base|checkpoint(-\d+)?|out(put)?|best|final|last|pretrained|[0-9a-f]{40})",
    re.IGNORECASE,
)


def _snapshot_name(path: Path) -> str | None:
    """Return "org/name" for a folder `models--org--name/snapshots/COMMIT` of the hub's cache."""
    owner = path.parent.parent.name
    if path.parent.name != "snapshots" or not owner.startswith("models--"):
        return None
    return owner.removeprefix("models--").replace("--", "/")


def _card_title(path: Path) -> str | None:
    """Return the first heading of the base's card if it is the name of a model."""
    try:
        text = (path / LAYOUT.card).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    found = _HEADING.search(text)
    is_name = found is not None and _NAME.fullmatch(found[1]) and re.search(r"[-/\d]", found[1])
    return found[1] if found is not None and is_name else None


def base_name(folder: Path, config: Mapping[str, Any]) -> str:
    """Return the name of the model in a folder, never a path of this machine.

    The hub's cache and the title of the model's card are trusted first. The folder's own name comes
    next, unless it could be anybody's, such as `model`. The last resort is the name in
    `config.json`, which may be that of the model from which this one was finetuned.
    """
    path = folder.resolve()
    own = None if _GENERIC.fullmatch(path.name) else path.name
    configured = config.get("_name_or_path")
    if not (isinstance(configured, str) and _NAME.fullmatch(configured)):
        configured = None
    return _snapshot_name(path) or _card_title(path) or own or configured or path.name or "model"
