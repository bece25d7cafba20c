"""What a user should know about training and evaluation data before hours are spent on them."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from mixout_export.data.columns import ColumnNames
from mixout_export.data.examples import Examples
from mixout_export.data.reader import Reader
from mixout_export.data.table import Table

#: Labels that a note names.
_SHOWN = 10


def data_notes(
    reader: Reader[Any],
    train: Table,
    evaluation: Table | None,
    columns: ColumnNames,
    evaluated: ColumnNames | None,
) -> tuple[str, ...]:
    """Return a sentence if rows of the evaluation data are also in the training data."""
    if evaluation is None or evaluated is None:
        return ()
    known = set(reader.contents(train, columns))
    shared = sum(row in known for row in reader.contents(evaluation, evaluated))
    if not shared:
        return ()
    rows = "row is" if shared == 1 else "rows are"
    return (
        f"{shared:,} of {evaluation.rows:,} evaluation {rows} also in the training data, so the "
        f"metrics are too good; remove them from {evaluation.short_name}",
    )


def label_notes(
    train: Examples, evaluation: Examples | None, names: Sequence[str]
) -> tuple[str, ...]:
    """Return sentences on labels that the training or the evaluation data lack."""
    trained = label_counts(train)
    if trained is None or not names:
        return ()
    there = label_counts(evaluation) if evaluation is not None and evaluation.labeled else None
    missing = [place for place in range(len(names)) if not trained[place]]
    notes = []
    both = [place for place in missing if there is not None and there[place]]
    nowhere = [place for place in missing if place not in both]
    if both:
        notes.append(
            f"{_labels(both, names)} only in the evaluation data, so the model cannot learn "
            f"{'it' if len(both) == 1 else 'them'}; add training rows"
        )
    if nowhere:
        notes.append(f"{_labels(nowhere, names, never=True)} in the training data")
    if there is not None:
        alone = [place for place in range(len(names)) if trained[place] and not there[place]]
        if alone:
            notes.append(
                f"{_labels(alone, names)} only in the training data, so the metrics say nothing "
                f"about {'it' if len(alone) == 1 else 'them'}"
            )
    return tuple(notes)


def label_counts(examples: Examples) -> Counter[int] | None:
    """Return how often each label occurs, by the number of its output; None without labels."""
    values = examples.encoded.labels
    if not examples.labeled or (values is not None and values.ndim == 1 and values.dtype != int):
        return None
    if values is not None and values.ndim == 2:
        return Counter(dict(enumerate(values.sum(axis=0).astype(int).tolist())))
    try:
        ids = examples.class_ids()
    except NotImplementedError:
        return None
    return Counter(label for row in ids for label in row.tolist())


def _labels(places: Sequence[int], names: Sequence[str], *, never: bool = False) -> str:
    shown = ", ".join(repr(names[place]) for place in places[:_SHOWN])
    more = f" and {len(places) - _SHOWN} more" if len(places) > _SHOWN else ""
    one = len(places) == 1
    verb = ("does not occur" if one else "do not occur") if never else "occurs" if one else "occur"
    return f"the label{'' if one else 's'} {shown}{more} {verb}"
