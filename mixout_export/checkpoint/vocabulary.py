"""Compare the ids that a tokenizer gives with the rows of a model's embedding."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from mixout_export.errors import CheckpointError
from mixout_export.files.layout import LAYOUT
from mixout_export.quiet import quiet_libraries

#: What to do about ids without a row.
RESIZE = "run prepare on the base with --resize-embeddings, which adds rows"


@dataclass(frozen=True)
class AddedRows:
    """Rows that an embedding, or an output layer, got besides those of the base.

    Attributes:
        before: Number of rows of the base.
        after: Number of rows now.
    """

    before: int
    after: int


def vocabulary_rows(model: PreTrainedModel) -> int | None:
    """Return the number of rows of the table of words; None for a model without one."""
    if getattr(model.config.get_text_config(), "vocab_size", None) is None:
        return None
    try:
        table = model.get_input_embeddings()
    except NotImplementedError:
        return None
    return table.num_embeddings if isinstance(table, nn.Embedding) else None


def highest_token(tokenizer: PreTrainedTokenizerBase) -> tuple[int, str] | None:
    """Return the highest id that a tokenizer gives, with its token; None if it does not say."""
    try:
        vocabulary = tokenizer.get_vocab()
    except NotImplementedError:
        return None
    if not vocabulary:
        return None
    return max((number, token) for token, number in vocabulary.items())


def require_rows(path: Path, tokenizer: PreTrainedTokenizerBase, rows: int | None) -> None:
    """Raise `CheckpointError` if a tokenizer gives ids that the model has no row for.

    Args:
        path: The folder of both.
        tokenizer: The tokenizer.
        rows: Number of rows of the model's embedding; None if it has none.
    """
    found = highest_token(tokenizer)
    if rows is None or found is None or found[0] < rows:
        return
    raise CheckpointError(
        f"{path}: the tokenizer gives {found[1]!r} the id {found[0]}, but the model's embedding "
        f"has {rows} rows, for the ids below {rows}; {RESIZE}"
    )


def pad_beyond_rows(config: PretrainedConfig) -> int | None:
    """Return the padding id if it lies outside the vocabulary.

    Some architectures cannot be built then.
    """
    text = config.get_text_config()
    pad, rows = getattr(text, "pad_token_id", None), getattr(text, "vocab_size", None)
    return pad if isinstance(pad, int) and isinstance(rows, int) and pad >= rows else None


def require_pad_row(path: Path, config: PretrainedConfig) -> None:
    """Raise `CheckpointError` if the padding id lies outside the vocabulary."""
    pad = pad_beyond_rows(config)
    if pad is not None:
        rows = config.get_text_config().vocab_size
        raise CheckpointError(
            f"{path / LAYOUT.config}: pad_token_id is {pad}, but vocab_size is {rows}; {RESIZE}"
        )


def add_rows(model: PreTrainedModel, count: int) -> dict[str, AddedRows]:
    """Enlarge a model's embedding and output layer to a number of rows, in place.

    transformers initializes the new rows. If there are enough rows, nothing changes.

    Returns:
        State-dict key → its rows before and now, for each tensor that was enlarged.
    """
    rows = vocabulary_rows(model)
    if rows is None or count <= rows:
        return {}
    before = {key: value.shape for key, value in model.state_dict().items()}
    with quiet_libraries():
        model.resize_token_embeddings(count)
    return {
        key: AddedRows(before[key][0], value.shape[0])
        for key, value in model.state_dict().items()
        if value.shape != before[key]
    }
