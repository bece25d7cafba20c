"""A graph in a file for a while, for libraries that take no more than 2 GiB in memory."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
from onnx.external_data_helper import load_external_data_for_model

from mixout_export.export.document import SINGLE_FILE_LIMIT


def is_large(model: onnx.ModelProto) -> bool:
    """Tell whether a graph's weights leave no room for the rest in one protobuf message."""
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer) > SINGLE_FILE_LIMIT


@contextmanager
def saved(model: onnx.ModelProto) -> Iterator[Path]:
    """Write a graph to a temporary file, a large one's weights beside it; remove it afterwards."""
    large = is_large(model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, path, save_as_external_data=large, location="model.data")
        if large:  # saving took the weights out of it
            load_external_data_for_model(model, folder)
        yield path
