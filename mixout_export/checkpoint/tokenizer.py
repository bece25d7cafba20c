"""Load the tokenizer that lies in a folder."""

import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from mixout_export.errors import CheckpointError
from mixout_export.files.layout import TRAINED_DOC_STRIDE, TRAINED_MAX_LENGTH, is_tokenizer_file
from mixout_export.printable import first_line
from mixout_export.quiet import quiet_libraries

#: The extra of this package that installs the readers of the formats below.
_EXTRA = "tokenizers"

#: How the names of the files end that transformers converts with another package, and that package.
_NEEDS = {
    "tiktoken.model": "tiktoken",
    ".tiktoken": "tiktoken",
    ".model": "sentencepiece",
    ".spm": "sentencepiece",
}

#: How errors of transformers name a package: "requires the SacreMoses library but it was not
#: found", "You need to install fugashi to use MecabTokenizer".
_NAMED = re.compile(
    r"pip install ([\w.-]*\w)|need to install ([\w.-]*\w)|requires the (\S+) library but it was not"
)


def tokenizer_files(folder: Path) -> list[Path]:
    """Return the tokenizer files of a folder, sorted by name."""
    files = (file for file in folder.iterdir() if is_tokenizer_file(file.name))
    return sorted(file for file in files if file.is_file())


def trained_max_length(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the longest sequence, in tokens, that its model was trained on; None if unknown."""
    length = tokenizer.init_kwargs.get(TRAINED_MAX_LENGTH)
    return length if type(length) is int and length > 0 else None


def trained_doc_stride(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return how many tokens neighboring windows shared in training; None if it is not recorded."""
    shared = tokenizer.init_kwargs.get(TRAINED_DOC_STRIDE)
    return shared if type(shared) is int and shared >= 0 else None


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase | None:
    """Load the tokenizer that lies in a folder, or return None if it has no tokenizer files.

    Raises:
        CheckpointError: The files are damaged or incomplete, or need a package that is not
            installed.
    """
    files = tokenizer_files(path)
    if not files:
        return None
    with quiet_libraries():
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                path, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # tokenizers raises bare Exception for malformed files
            raise CheckpointError(_explain(path, files, error)) from error
    _refuse_empty(path, files, tokenizer)
    return tokenizer


def _explain(path: Path, files: Sequence[Path], error: Exception) -> str:
    """Return why a tokenizer cannot be loaded, and what to do."""
    for file in files:
        ending = next((ending for ending in _NEEDS if file.name.endswith(ending)), None)
        if ending is None or (path / "tokenizer.json").is_file():
            continue
        package = _NEEDS[ending]
        if find_spec(package) is None:
            return (
                f"{file}: this tokenizer needs the package {package}, which is not installed; run "
                f"pip install 'mixout-export[{_EXTRA}]'"
            )
        reason = f"it is not a file of {package}" if "tiktoken" in str(error) else first_line(error)
        return (
            f"{file}: the tokenizer cannot be made from it ({reason}); copy all tokenizer files of "
            "the base again"
        )
    found = _NAMED.search(str(error))
    if isinstance(error, ImportError) and (error.name or found):
        package = error.name or next(filter(None, found.groups() if found else ()))
        return (
            f"{path}: the tokenizer needs the package {package.lower()}, which is not installed; "
            f"run pip install {package.lower()}"
        )
    names = ", ".join(file.name for file in files)
    return (
        f"{path}: the tokenizer cannot be loaded ({first_line(error)}) from {names}; copy all "
        "tokenizer files of the base again"
    )


def _refuse_empty(path: Path, files: Sequence[Path], tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer without a vocabulary, which transformers makes if the file is missing."""
    special = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab(), "▁"}
    if set(tokenizer.get_vocab()) <= special:
        raise CheckpointError(
            f"{path}: its tokenizer has no vocabulary: {', '.join(file.name for file in files)} "
            "alone cannot split a text; copy the vocabulary of the base into the folder, for "
            "example tokenizer.json, vocab.txt or spiece.model"
        )
