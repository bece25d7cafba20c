"""What an ONNX graph records of itself, which is text: anybody may have written it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixout_export.errors import CheckpointError

#: Precisions that graphs are written in.
PRECISIONS = ("fp32", "fp16", "int8")


def _json(metadata: Mapping[str, str], name: str, graph: Path) -> Any:
    try:
        return json.loads(metadata[name])
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{graph}: the recorded {name} cannot be read ({error}); export it again"
        ) from error


def recorded_labels(metadata: Mapping[str, str], graph: Path) -> tuple[str, ...] | None:
    """Return the names of the labels; None where none are recorded.

    Args:
        metadata: The graph's.
        graph: Its file.

    Raises:
        CheckpointError: What is recorded is no list of texts.
    """
    if not metadata.get("labels"):
        return None
    labels = _json(metadata, "labels", graph)
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise CheckpointError(
            f"{graph}: the recorded labels are {metadata['labels'][:60]!r}, expected a list of "
            "texts; export it again"
        )
    return tuple(labels)


def recorded_object(metadata: Mapping[str, str], name: str, graph: Path) -> dict[str, Any] | None:
    """Return a JSON object that a graph records; None where it does not.

    Args:
        metadata: The graph's.
        name: The object's name, "interface" say.
        graph: The graph's file.

    Raises:
        CheckpointError: What is recorded is no object.
    """
    if not metadata.get(name):
        return None
    content = _json(metadata, name, graph)
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{graph}: the recorded {name} is {metadata[name][:60]!r}, expected an object; export "
            "it again"
        )
    return content


def recorded_lists(
    metadata: Mapping[str, str], name: str, graph: Path
) -> dict[str, list[str]] | None:
    """Return a JSON object of lists of texts that a graph records; None where it does not.

    Raises:
        CheckpointError: What is recorded is something else.
    """
    content = recorded_object(metadata, name, graph)
    for key, values in (content or {}).items():
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise CheckpointError(
                f"{graph}: the recorded {name} has no list of texts for {key[:60]!r}; export it "
                "again"
            )
    return content


def recorded_precision(metadata: Mapping[str, str], graph: Path) -> str:
    """Return one of `PRECISIONS`; "fp32" where none is recorded.

    Raises:
        CheckpointError: Another one is recorded.
    """
    precision = metadata.get("precision", "fp32")
    if precision not in PRECISIONS:
        raise CheckpointError(
            f"{graph}: the recorded precision is {precision[:60]!r}, expected one of "
            f"{', '.join(PRECISIONS)}; export it again"
        )
    return precision
