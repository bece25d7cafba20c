"""Tables and encodings for tests of the tasks' datasets."""

from typing import Any

from checkpoints import POSITIONS, make_tokenizer

from mixout_export.checkpoint.interface import ModelInterface
from mixout_export.data.columns import ColumnNames
from mixout_export.data.reader import reader_of
from mixout_export.data.tables import Table
from mixout_export.data.texts import TextEncoding
from mixout_export.tasks import TASKS

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def table(*rows: dict[str, Any]) -> Table:
    """Return rows as a table whose rows stand on lines 2, 3, …"""
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    return Table("data.jsonl", columns, len(rows), list(range(2, len(rows) + 2)))


def encoding(
    *labels: str, max_length: int = POSITIONS, tokenizer: Any = None, **options: Any
) -> TextEncoding:
    made = tokenizer if tokenizer is not None else make_tokenizer()
    ids = 256  # as many as any tokenizer of these tests has
    interface = ModelInterface(INPUTS, ("logits",), ids, POSITIONS, 2, 0)
    return TextEncoding(made, interface, max_length, labels=labels, **options)


def read(
    task: str, data: Table, made: TextEncoding | None = None, *, labeled: bool = True, **named: str
) -> Any:
    """Find a task's columns and read them."""
    made = made if made is not None else encoding()
    reader = reader_of(TASKS[task])
    assert reader is not None
    columns = reader.find(data, ColumnNames.named(**named), made.labels, labeled=labeled)
    return reader.read(data, columns, made)
