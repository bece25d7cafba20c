"""Data sets of the hub."""

from datasets import Dataset, load_dataset

from mixout_export.errors import DataError
from mixout_export.training.tables import Table


def _as_table(name: str, split: Dataset) -> Table:
    columns = {column: list(split[column]) for column in split.column_names}
    return Table(f"{name}[{split.split}]", columns, len(split))


def read_hub_dataset(name: str) -> tuple[Table, Table | None]:
    """Load a data set's training split, and its validation split if it has one.

    Args:
        name: Its name, with a configuration after a colon: "nyu-mll/glue:cola".

    Raises:
        DataError: The hub did not provide it, or it has no training split.
    """
    path, _, configuration = name.partition(":")
    try:
        splits = load_dataset(path, configuration or None)
    except Exception as error:  # the loader's errors share no base class with the network's
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{name}: the data set cannot be loaded ({first})") from error
    if "train" not in splits:
        raise DataError(f"{name}: has the splits {', '.join(splits)}, expected one named train")
    evaluation = next((splits[s] for s in ("validation", "dev") if s in splits), None)
    return (
        _as_table(name, splits["train"]),
        None if evaluation is None else _as_table(name, evaluation),
    )
