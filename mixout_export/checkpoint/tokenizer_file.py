"""`tokenizer.json` for readers that take it as it is."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixout_export.files.json_files import read_json

_TOKENIZER, _CONFIG = "tokenizer.json", "tokenizer_config.json"

#: transformers' name of a tokenizer without a class of its own, since version 5 and before, which
#: all versions know.
_CLASS, _CLASS_BEFORE = "TokenizersBackend", "PreTrainedTokenizerFast"


def _rewrite(path: Path, data: Mapping[str, Any]) -> None:
    # the order of keys means something here: a vocabulary is listed by id
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def forget_machine_path(folder: Path) -> None:
    """Take the path that a tokenizer was once loaded from out of `tokenizer_config.json`.

    A name on the hub is kept.

    Args:
        folder: A folder that holds the file, or does not.
    """
    path = folder / _CONFIG
    data = read_json(path) if path.exists() else {}
    name = data.get("name_or_path")
    if isinstance(name, str) and (name.startswith(("/", "~", ".")) or "\\" in name):
        _rewrite(path, {key: value for key, value in data.items() if key != "name_or_path"})


def name_class_for_all(folder: Path) -> bool:
    """Let a folder's `tokenizer_config.json` name a class that transformers 4 has too.

    Optimum needs version 4, which refuses a class that it does not know.

    Args:
        folder: A folder that holds the file, or does not.

    Returns:
        Whether the file was changed.
    """
    path = folder / _CONFIG
    data = read_json(path) if path.exists() else {}
    if data.get("tokenizer_class") != _CLASS:
        return False
    _rewrite(path, {**data, "tokenizer_class": _CLASS_BEFORE})
    return True


def normalize_tokenizer(folder: Path, sequence_limit: int | None) -> bool:
    """Take a fixed padding and truncation out of a folder's `tokenizer.json`.

    Some checkpoints have "pad to 128, cut at 128" baked in. Python tokenizers override it at each
    call; others (JavaScript, Rust, servers) honour it: every text costs 128 tokens, and what comes
    after is lost. Padding becomes "to the longest of the batch", the cut the model's own limit.

    Args:
        folder: A folder that holds the file, or does not.
        sequence_limit: The model's longest sequence in tokens; None where there is no limit.

    Returns:
        Whether the file was changed.
    """
    path = folder / _TOKENIZER
    if not path.exists():
        return False
    data = read_json(path)
    changed = False
    padding, truncation = data.get("padding"), data.get("truncation")
    if isinstance(padding, dict) and padding.get("strategy") != "BatchLongest":
        padding["strategy"] = "BatchLongest"
        changed = True
    if isinstance(truncation, dict) and truncation.get("max_length") != sequence_limit:
        if sequence_limit is None:
            data["truncation"] = None
        else:
            truncation["max_length"] = sequence_limit
        changed = True
    if changed:
        _rewrite(path, data)
    return changed
