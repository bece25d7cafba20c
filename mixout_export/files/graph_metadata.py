"""What an ONNX graph records about itself: the names of the entries, their writer and reader.

All entries are text. Anybody may have written them, so they are read strictly.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixout_export.errors import CheckpointError
from mixout_export.files.layout import TRAINED_MAX_LENGTH
from mixout_export.files.runtimes import OldestRuntimes
from mixout_export.version import __version__

#: Precisions that graphs are written in.
PRECISIONS = ("fp32", "fp16", "int8")

TASK = "task"
LABELS = "labels"
SOURCE_SHA256 = "source_sha256"
TOOL_VERSION = "tool_version"
OPSET = "opset"
ONNXRUNTIME = "oldest_onnxruntime"
TRITON = "oldest_triton"
INTERFACE = "interface"
PRECISION = "precision"
CONVERSION = "conversion"
MODULE_VALUES = "module_values"

#: By what a server shows which graph it serves; a graph cannot hold its own hash.
MODEL_SHA256 = "model_sha256"


@dataclass(frozen=True)
class Provenance:
    """What the exporter records in a graph.

    Attributes:
        task: The task's name; "" for a model without a head.
        labels: Names of the labels, by index; empty where the task has none.
        source_sha256: SHA-256 of the weights that the graph was exported from.
        interface: Ranges of its inputs, as `ModelInterface.to_dict` gives them.
        trained_max_length: Longest sequence, in tokens, that the model was trained on; None if
            unknown.
        precision: "fp32", "fp16" or "int8".
        conversion: How the precision was made, as plain JSON values; {} for a graph as captured.
    """

    task: str
    labels: Sequence[str]
    source_sha256: str
    interface: dict[str, Any]
    trained_max_length: int | None = None
    precision: str = "fp32"
    conversion: Mapping[str, Any] = field(default_factory=dict)

    def to_metadata(
        self,
        *,
        opset: int,
        oldest: OldestRuntimes,
        module_values: Mapping[str, Sequence[str]] | None = None,
    ) -> dict[str, str]:
        """Return the entries. `module_values` maps modules to the values that leave them."""
        length = self.trained_max_length
        return {
            TASK: self.task,
            LABELS: json.dumps(list(self.labels), ensure_ascii=False),
            SOURCE_SHA256: self.source_sha256,
            TOOL_VERSION: __version__,
            OPSET: str(opset),
            ONNXRUNTIME: oldest.onnxruntime,
            TRITON: oldest.triton,
            INTERFACE: json.dumps(self.interface, sort_keys=True),
            **({} if length is None else {TRAINED_MAX_LENGTH: str(length)}),
            PRECISION: self.precision,
            CONVERSION: json.dumps(self.conversion, sort_keys=True),
            MODULE_VALUES: json.dumps(module_values or {}, separators=(",", ":")),
        }


@dataclass(frozen=True)
class GraphMetadata:
    """What a graph records about itself, as its `entries` have it.

    Reading an entry that is malformed raises a `CheckpointError`, which names the graph's file.
    """

    entries: Mapping[str, str]
    graph: Path

    @property
    def task(self) -> str:
        """Name of the task; "" where none is recorded."""
        return self.entries.get(TASK, "")

    @property
    def source_sha256(self) -> str:
        """SHA-256 of the weights that the graph was exported from; "" if not recorded."""
        return self.entries.get(SOURCE_SHA256, "")

    @property
    def recorded_precision(self) -> str:
        """The precision as it is recorded; "" where none is."""
        return self.entries.get(PRECISION, "")

    @property
    def precision(self) -> str:
        """One of `PRECISIONS`; "fp32" where none is recorded."""
        precision = self.entries.get(PRECISION, "fp32")
        if precision not in PRECISIONS:
            raise CheckpointError(
                f"{self.graph}: the recorded precision is {precision[:60]!r}, expected one of "
                f"{', '.join(PRECISIONS)}; export it again"
            )
        return precision

    @property
    def trained_max_length(self) -> int | None:
        """Longest sequence, in tokens, of the model's training; None where none is recorded."""
        recorded = self.entries.get(TRAINED_MAX_LENGTH, "")
        if not recorded:
            return None
        if not recorded.isdecimal():
            raise self._unexpected(TRAINED_MAX_LENGTH, "a number")
        return int(recorded)

    @property
    def oldest(self) -> OldestRuntimes | None:
        """The oldest runtimes that load the graph; None where none are recorded."""
        onnxruntime, triton = (self.entries.get(name, "") for name in (ONNXRUNTIME, TRITON))
        return OldestRuntimes(onnxruntime, triton) if onnxruntime else None

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Names of the labels; None where none are recorded."""
        if not self.entries.get(LABELS):
            return None
        labels = self._json(LABELS)
        if not _is_texts(labels):
            raise self._unexpected(LABELS, "a list of texts")
        return tuple(labels)

    @property
    def interface(self) -> dict[str, Any] | None:
        """The fields of the model's interface; None where none are recorded."""
        return self._object(INTERFACE)

    @property
    def knows_modules(self) -> bool:
        """Whether the graph records which of its values leave which module."""
        return MODULE_VALUES in self.entries

    @property
    def module_values(self) -> dict[str, list[str]]:
        """Module → names of the values that leave it; empty where nothing is recorded."""
        content = self._object(MODULE_VALUES) or {}
        for key, values in content.items():
            if not _is_texts(values):
                raise CheckpointError(
                    f"{self.graph}: the recorded {MODULE_VALUES} has no list of texts for "
                    f"{key[:60]!r}; export it again"
                )
        return content

    def _object(self, name: str) -> dict[str, Any] | None:
        if not self.entries.get(name):
            return None
        content = self._json(name)
        if not isinstance(content, dict):
            raise self._unexpected(name, "an object")
        return content

    def _json(self, name: str) -> Any:
        try:
            return json.loads(self.entries[name])
        except (ValueError, RecursionError) as error:
            raise CheckpointError(
                f"{self.graph}: the recorded {name} cannot be read ({error}); export it again"
            ) from error

    def _unexpected(self, name: str, expected: str) -> CheckpointError:
        return CheckpointError(
            f"{self.graph}: the recorded {name} is {self.entries[name][:60]!r}, expected "
            f"{expected}; export it again"
        )


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)
