"""Check that a bundle's tokenizer gives the same tokens as the tokenizer of the ONNX folder.

Clients in JavaScript and Rust read only `tokenizer.json`. The Python class overrides some of its
settings. The check tokenizes texts in many scripts both ways, one by one and as a batch. A
tokenizer that is written in Python has no `tokenizer.json`, so it is loaded from the bundle.
"""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerBase

from mixout_export.checkpoint.tokenizer import load_tokenizer
from mixout_export.errors import ParityError
from mixout_export.quiet import quiet_libraries

_FILE = "tokenizer.json"
_REPEATS = 120

#: Number of added tokens that are tried inside a text. Some tokenizers have thousands.
_ADDED_TOKENS = 32


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
    path: Path,
    expected: dict[str, Any],
    found: Sequence[dict[str, list[int]]],
    texts: Sequence[str],
    names: Sequence[str],
) -> None:
    for row, (text, fields) in enumerate(zip(texts, found, strict=True)):
        for name in names:
            if fields[name] != expected[name][row]:
                shown = text if len(text) <= 60 else text[:57] + "..."
                raise ParityError(
                    f"{path}: gives {name} {fields[name][:8]} … ({len(fields[name])}) "
                    f"for the text {shown!r}, expected {expected[name][row][:8]} … "
                    f"({len(expected[name][row])}) as from the original tokenizer. A client that "
                    "reads only this would send other tokens to the model"
                )


def check_tokenizer(folder: Path, original: PreTrainedTokenizerBase) -> int:
    """Compare the tokenizer of a folder with the original tokenizer.

    Returns:
        The number of texts that were compared.

    Raises:
        CheckpointError: The folder has no `tokenizer.json`, and its tokenizer cannot be loaded.
        ParityError: A text gives other ids, another attention mask or other segments.
    """
    path = folder / _FILE
    added = [f"The {token} sees{token}." for token in original.get_added_vocab()]
    texts = (*check_texts(), *added[:_ADDED_TOKENS])
    if not path.is_file():
        return _check_python(folder, original, texts)
    bare = Tokenizer.from_file(str(path))
    names = [name for name in original.model_input_names if name in _fields(bare.encode(""))]
    single = [_fields(bare.encode(text)) for text in texts]
    _compare(path, _expected(original, bare, texts, batch=False), single, texts, names)
    batch = [_fields(encoding) for encoding in bare.encode_batch(list(texts))]
    _compare(path, _expected(original, bare, texts, batch=True), batch, texts, names)
    return len(texts)


def _check_python(folder: Path, original: PreTrainedTokenizerBase, texts: Sequence[str]) -> int:
    """Compare the tokenizer that Python loads from a folder with the original one."""
    copied = load_tokenizer(folder)
    if copied is None:
        raise ParityError(f"{folder}: has no tokenizer files, expected those of the ONNX folder")
    with quiet_libraries():
        expected, found = (dict(each(list(texts))) for each in (original, copied))
    rows = [{name: found[name][row] for name in found} for row in range(len(texts))]
    _compare(folder, expected, rows, texts, list(expected))
    return len(texts)
