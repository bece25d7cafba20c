"""Write and change tokenizer files so that other libraries read them correctly."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import PreTrainedTokenizerBase

from mixout_export.files.json_files import json_text, read_json
from mixout_export.files.layout import TRAINED_DOC_STRIDE, TRAINED_MAX_LENGTH, is_tokenizer_file

_TOKENIZER, _CONFIG = "tokenizer.json", "tokenizer_config.json"

#: Class of a tokenizer without a class of its own: the name since transformers 5, and the name
#: before, which all versions know.
_CLASS, _CLASS_BEFORE = "TokenizersBackend", "PreTrainedTokenizerFast"

#: From here on, `model_max_length` means no limit, for which transformers writes 10^30.
_NO_LIMIT = 10**9


def _rewrite(path: Path, data: Mapping[str, Any]) -> None:
    # keys keep their order: a vocabulary is listed by id
    path.write_text(json_text(data), encoding="utf-8")


def forget_machine_path(folder: Path) -> None:
    """Remove the path that a tokenizer was once loaded from, if `tokenizer_config.json` has one.

    A name on the hub is kept.
    """
    path = folder / _CONFIG
    data = read_json(path) if path.exists() else {}
    name = data.get("name_or_path")
    if isinstance(name, str) and (name.startswith(("/", "~", ".")) or "\\" in name):
        _rewrite(path, {key: value for key, value in data.items() if key != "name_or_path"})


def name_class_for_all(folder: Path) -> bool:
    """Name a class that transformers 4 knows in `tokenizer_config.json`; return whether it changed.

    Optimum needs version 4, which refuses unknown classes.
    """
    path = folder / _CONFIG
    data = read_json(path) if path.exists() else {}
    if data.get("tokenizer_class") != _CLASS:
        return False
    _rewrite(path, {**data, "tokenizer_class": _CLASS_BEFORE})
    return True


def set_padding_side(folder: Path, side: str) -> None:
    """Name the side that rows are padded on ("left" or "right") in `tokenizer_config.json`."""
    path = folder / _CONFIG
    data = read_json(path) if path.exists() else {}
    if data.get("padding_side") != side:
        _rewrite(path, {**data, "padding_side": side})


def record_reading(
    folder: Path, max_length: int, *, doc_stride: int | None = None, limits_others: bool
) -> bool:
    """Record in `tokenizer_config.json` how a training read its texts.

    Args:
        folder: The folder of the tokenizer.
        max_length: Longest sequence in tokens.
        doc_stride: Tokens that neighboring windows of a long context shared; None if the user did
            not choose them.
        limits_others: Whether `max_length` also becomes `model_max_length`, where other programs
            cut texts.

    Returns:
        False if there is no tokenizer file, and so nothing to record it with.
    """
    if not any(is_tokenizer_file(path.name) for path in folder.iterdir()):
        return False
    path = folder / _CONFIG
    data = read_json(path) if path.exists() else {}
    limit = {"model_max_length": max_length} if limits_others else {}
    stride = {} if doc_stride is None else {TRAINED_DOC_STRIDE: doc_stride}
    _rewrite(path, {**data, **limit, TRAINED_MAX_LENGTH: max_length, **stride})
    return True


def write_tokenizer_json(folder: Path, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Write a missing `tokenizer.json`; return whether the folder has one now.

    Checkpoints that have only `vocab.txt`, `merges.txt` or a SentencePiece model get it from
    transformers. Its readers find the special tokens in `tokenizer_config.json`, so that is written
    too. There is no such file for tokenizers that are written in Python.
    """
    if (folder / _TOKENIZER).is_file():
        return True
    if not tokenizer.is_fast:
        return False
    with TemporaryDirectory() as made:
        tokenizer.save_pretrained(made)
        shutil.copyfile(Path(made) / _TOKENIZER, folder / _TOKENIZER)
        config = read_json(Path(made) / _CONFIG)
    # a class may have a side of its own, which its saved configuration leaves out
    _rewrite(folder / _CONFIG, {**config, "padding_side": tokenizer.padding_side})
    return True


def normalize_tokenizer(
    folder: Path, sequence_limit: int | None, *, padding_side: str | None = None
) -> bool:
    """Remove a fixed padding and truncation from `tokenizer.json`; return whether it was changed.

    Some checkpoints have "pad to 128, cut at 128" stored. Python tokenizers override it at each
    call. Others (JavaScript, Rust, servers) obey it: every text costs 128 tokens, and longer texts
    are cut. Padding becomes "to the longest of the batch", on `padding_side`, the
    side that Python pads on ("left" or "right"; None keeps the stored one). Truncation becomes that
    of Python: the model's limit, `sequence_limit` tokens, or `model_max_length` if that is lower.
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
    direction = None if padding_side is None else padding_side.title()
    if isinstance(padding, dict) and direction not in (None, padding.get("direction")):
        padding["direction"] = direction
        changed = True
    config = folder / _CONFIG
    own = read_json(config).get("model_max_length") if config.exists() else None
    limits = [sequence_limit, own if isinstance(own, int) and own < _NO_LIMIT else None]
    limit = min((each for each in limits if each is not None), default=None)
    if isinstance(truncation, dict) and truncation.get("max_length") != limit:
        if limit is None:
            data["truncation"] = None
        else:
            truncation["max_length"] = limit
        changed = True
    if changed:
        _rewrite(path, data)
    return changed
