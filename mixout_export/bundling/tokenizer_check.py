"""Check that `tokenizer.json` alone gives the same tokens as the tokenizer's Python class.

Clients in JavaScript and Rust read only `tokenizer.json`. The Python class overrides some of its
settings. The check tokenizes texts in many scripts both ways, one by one and as a batch.
"""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerBase

from mixout_export.errors import ParityError
from mixout_export.quiet import quiet_libraries

_FILE = "tokenizer.json"
_REPEATS = 120


def check_texts() -> tuple[str, ...]:
    """Return texts in many scripts, with symbols and whitespace, an empty one and a long one."""
    text = files("mixout_export.bundling").joinpath("files", "sentences.txt").read_text("utf-8")
    lines = text.removesuffix("\n").split("\n")
    return (*lines, "", " ".join(lines[:8] * _REPEATS))


def _fields(encoding: Encoding) -> dict[str, list[int]]:
    return {
        "input_ids": encoding.ids,
        "attention_mask": encoding.attention_mask,
        "token_type_ids": encoding.type_ids,
    }


def _expected(
    original: PreTrainedTokenizerBase, bare: Tokenizer, texts: Sequence[str], *, batch: bool
) -> dict[str, Any]:
    """Tokenize texts with the Python class, with the truncation and padding of the bare one."""
    limit = bare.truncation["max_length"] if bare.truncation else None
    with quiet_libraries():  # transformers warns about the long text
        return dict(
            original(
                list(texts),
                truncation=limit is not None,
                max_length=limit,
                padding="longest" if batch and bare.padding else False,
            )
        )


def _compare(
    folder: Path,
    expected: dict[str, Any],
    found: Sequence[Encoding],
    texts: Sequence[str],
    names: Sequence[str],
) -> None:
    for row, (text, encoding) in enumerate(zip(texts, found, strict=True)):
        fields = _fields(encoding)
        for name in names:
            if fields[name] != expected[name][row]:
                shown = text if len(text) <= 60 else text[:57] + "..."
                raise ParityError(
                    f"{folder / _FILE}: gives {name} {fields[name][:8]} … ({len(fields[name])}) "
                    f"for the text {shown!r}, expected {expected[name][row][:8]} … "
                    f"({len(expected[name][row])}) as from the original tokenizer. A client that "
                    "reads only this file would send other tokens to the model"
                )


def check_tokenizer(folder: Path, original: PreTrainedTokenizerBase | None) -> int:
    """Compare the `tokenizer.json` of a folder with the original tokenizer.

    Returns:
        The number of texts that were compared; 0 if one of the two is missing.

    Raises:
        ParityError: A text gives other ids, another attention mask or other segments.
    """
    path = folder / _FILE
    if not path.is_file() or original is None:
        return 0
    bare = Tokenizer.from_file(str(path))
    texts = check_texts()
    names = [name for name in original.model_input_names if name in _fields(bare.encode(""))]
    single = [bare.encode(text) for text in texts]
    _compare(folder, _expected(original, bare, texts, batch=False), single, texts, names)
    batch = bare.encode_batch(list(texts))
    _compare(folder, _expected(original, bare, texts, batch=True), batch, texts, names)
    return len(texts)
