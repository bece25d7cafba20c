"""The user's own texts as batches."""

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from mixout_export.checkpoint.interface import ModelInterface
from mixout_export.errors import ArgumentError, DataError
from mixout_export.parity.battery import UNBOUNDED_SEQUENCE, Batch

#: Rows in a batch of texts.
ROWS = 32


def text_batches(
    tokenizer: PreTrainedTokenizerBase,
    interface: ModelInterface,
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
) -> tuple[Batch, ...]:
    """Tokenise texts into batches padded to their longest row.

    Without a padding id, each text is a batch of its own.

    Args:
        tokenizer: The model's tokenizer.
        interface: The inputs to make; longer texts are cut to its sequence limit.
        texts: First texts.
        pairs: Second texts, as many; None if there are none.

    Raises:
        ArgumentError: The model takes choices, which a list of texts does not give.
        DataError: There are no texts.
    """
    if interface.choices:
        raise ArgumentError("data: a multiple-choice model cannot be run on a table of texts")
    if not texts:
        raise DataError("data: holds no rows, expected at least one text")
    rows = ROWS if interface.pad_token_id is not None else 1
    limit = min(interface.sequence_limit or UNBOUNDED_SEQUENCE, UNBOUNDED_SEQUENCE)
    batches = []
    for start in range(0, len(texts), rows):
        chosen = slice(start, start + rows)
        encoded = tokenizer(
            list(texts[chosen]),
            None if pairs is None else list(pairs[chosen]),
            truncation=True,
            max_length=limit,
            padding=False,
        )
        batches.append(_padded(encoded["input_ids"], encoded.get("token_type_ids"), interface))
    return tuple(batches)


def _padded(
    ids: Sequence[Sequence[int]],
    segments: Sequence[Sequence[int]] | None,
    interface: ModelInterface,
) -> Batch:
    """Pad rows on the right to int64 `(rows, longest)`."""
    lengths = [len(row) for row in ids]
    shape = (len(ids), max(1, *lengths))
    made = {
        "input_ids": np.full(shape, interface.pad_token_id or 0, dtype=np.int64),
        "attention_mask": np.zeros(shape, dtype=np.int64),
        "token_type_ids": np.zeros(shape, dtype=np.int64),
        "position_ids": np.broadcast_to(np.arange(shape[1]), shape).copy(),
    }
    for index, length in enumerate(lengths):
        made["input_ids"][index, :length] = ids[index]
        made["attention_mask"][index, :length] = 1
        if segments is not None:
            made["token_type_ids"][index, :length] = segments[index]
    return Batch("data", {name: made[name] for name in interface.inputs})
