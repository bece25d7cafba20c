"""Encoded data that several runs in one process share."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

from mixout_export.checkpoint.interface import ModelInterface
from mixout_export.checkpoint.plain import PlainCheckpoint
from mixout_export.data.reader import Reader
from mixout_export.files.layout import is_preprocessor_file
from mixout_export.files.streams import data_digest, file_digest
from mixout_export.training.options import TrainOptions

if TYPE_CHECKING:
    from mixout_export.stages.train.data import DataOptions, TrainingData


class SharedData:
    """Keeps the encoded data of earlier runs for runs that read the same data in the same way.

    Such a run neither reads nor tokenizes the files again. Its result is the same, bit for bit.
    Use one object in one thread.

    Args:
        size: Number of data sets to keep. The one that was unused for longest is forgotten first.
    """

    def __init__(self, size: int = 8) -> None:
        self._size = size
        self._kept: OrderedDict[Hashable, TrainingData] = OrderedDict()

    def get(self, key: Hashable, read: Callable[[], "TrainingData"]) -> "TrainingData":
        """Return the data that are kept for a key. If there are none, read and keep them."""
        found = self._kept.pop(key, None)
        if found is None:
            found = read()
        self._kept[key] = found
        while len(self._kept) > self._size:
            self._kept.popitem(last=False)
        return found


def data_key(
    folder: PlainCheckpoint,
    reader: Reader[Any],
    preprocessor: Any,
    interface: ModelInterface,
    data: "DataOptions",
    options: TrainOptions,
) -> Hashable:
    """Return everything that a run's encoded data depend on, with the files' contents as SHA-256.

    A data set of the hub has no key of its own, so only files can be shared.
    """
    names = sorted(path.name for path in folder.path.iterdir() if is_preprocessor_file(path.name))
    read_with = tuple((name, file_digest(folder.path / name)) for name in names)
    return (
        tuple((str(file), data_digest(file)) for file in data.files()),
        (astuple(data.columns), len(data.train_files)),
        (data.delimiter, data.quoting, data.skip_bad_rows),
        type(reader),
        (folder.task_name, folder.labels, folder.config.get("model_type")),
        (read_with, reader.encoding.traits(preprocessor)),
        interface,
        (options.max_length, options.doc_stride, options.pack_sequences, options.augment),
        (options.examples, options.examples_seed),
        options.seed if reader.draws else None,
    )
