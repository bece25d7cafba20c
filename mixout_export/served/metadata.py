"""What a server says of itself and of a model."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mixout_export.errors import ServerError
from mixout_export.files.graph_metadata import LABELS, PRECISION
from mixout_export.printable import one_line
from mixout_export.served.texts import parse_uint

#: Largest size that a tensor's axis may have.
_LARGEST_SIZE = (1 << 31) - 1

_BINARY_EXTENSION = "binary_tensor_data"

#: Servers that take the extension without listing it.
_TAKE_BINARY = ("kserve",)


@dataclass(frozen=True)
class TensorSpec:
    """An input or an output as a server describes it.

    Attributes:
        name: Its name.
        datatype: Its type, as the protocol names it.
        shape: Its sizes, the batch's first; -1 where any will do.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ServerFacts:
    """What a server says of itself.

    Attributes:
        name: Its name; "" if it does not say.
        version: Its version; "" likewise.
        extensions: What it does beyond the protocol.
    """

    name: str
    version: str
    extensions: tuple[str, ...]

    @property
    def takes_binary(self) -> bool:
        """Whether it offers the binary tensor data extension."""
        return _BINARY_EXTENSION in self.extensions or self.name.lower() in _TAKE_BINARY

    def __str__(self) -> str:
        return " ".join(part for part in (self.name, self.version) if part) or "a server"


@dataclass(frozen=True)
class ModelFacts:
    """What a server says of a model.

    Attributes:
        inputs: What it takes; empty where the server does not say.
        outputs: What it gives; likewise.
        platform: What runs it; "" if unknown.
        versions: Versions that are loaded; empty where the server does not say.
        parameters: What else was written of it.
        batch_limit: Rows of a request at most; None where there is no limit that is known.
        label_files: Outputs that have a file of labels on the server.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    platform: str = ""
    versions: tuple[str, ...] = ()
    parameters: Mapping[str, str] = field(default_factory=dict)
    batch_limit: int | None = None
    label_files: tuple[str, ...] = ()

    @property
    def precision(self) -> str:
        """What the parameters, or else the outputs' types, say of the precision; "" if nothing."""
        halves = {"FP16": "fp16", "BF16": "bf16"}
        found = (halves[spec.datatype] for spec in self.outputs if spec.datatype in halves)
        return self.parameters.get(PRECISION) or next(found, "")

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Names of the labels, where the parameters have them; None if unknown."""
        try:
            names = json.loads(self.parameters.get(LABELS, ""))
        except ValueError:
            return None
        return tuple(map(str, names)) if isinstance(names, list) and names else None


def read_server(content: Mapping[str, Any]) -> ServerFacts:
    """Read a server's metadata; what is not there is unknown."""
    extensions = content.get("extensions")
    return ServerFacts(
        name=one_line(content.get("name") or ""),
        version=one_line(content.get("version") or ""),
        extensions=tuple(map(str, extensions)) if isinstance(extensions, list) else (),
    )


def _size(value: object) -> int | None:
    """Return a size, -1 for any; None if it is none.

    Numbers as texts come from servers that print 64-bit integers so.
    """
    text = str(value) if type(value) is int or isinstance(value, str) else ""
    number = -1 if text.startswith("-") else parse_uint(text)
    return number if number is not None and number <= _LARGEST_SIZE else None


def _spec(tensor: object, where: str) -> TensorSpec:
    if not isinstance(tensor, dict):
        raise ServerError(f"{where}: the metadata describes a tensor by {one_line(tensor)}")
    name, datatype, shape = (tensor.get(key) for key in ("name", "datatype", "shape"))
    if not isinstance(name, str) or not isinstance(datatype, str):
        raise ServerError(
            f"{where}: the metadata has a tensor without its name or datatype: {one_line(tensor)}"
        )
    sizes = [_size(size) for size in shape] if isinstance(shape, list) else [None]
    if None in sizes:
        raise ServerError(
            f"{where}: the metadata says that {one_line(name)!r} has shape "
            f"{one_line(repr(shape))}, expected sizes"
        )
    known = tuple(size for size in sizes if size is not None)
    return TensorSpec(one_line(name), one_line(datatype), known)


def _specs(tensors: object, where: str) -> tuple[TensorSpec, ...]:
    if tensors is None:
        return ()
    if not isinstance(tensors, list):
        raise ServerError(
            f"{where}: the metadata's tensors are {one_line(repr(tensors))}, expected a list"
        )
    return tuple(_spec(tensor, where) for tensor in tensors)


def read_parameters(content: object) -> dict[str, str]:
    """Read parameters: texts, lists as JSON, or what Triton and gRPC wrap them in."""
    found = {}
    for name, value in content.items() if isinstance(content, dict) else ():
        if isinstance(value, dict):
            value = value.get("string_value", value.get("stringParam"))
        if isinstance(value, list):
            value = json.dumps(value)
        if isinstance(value, str | int | float):
            found[str(name)] = str(value)
    return found


def _limit(parameters: Mapping[str, str]) -> int | None:
    return parse_uint(parameters.get("max_batch_size", "")) or None


def read_model(content: Mapping[str, Any], where: str) -> ModelFacts:
    """Read a model's metadata.

    Raises:
        ServerError: It is not what the protocol says.
    """
    versions, parameters = content.get("versions"), read_parameters(content.get("parameters"))
    return ModelFacts(
        inputs=_specs(content.get("inputs"), where),
        outputs=_specs(content.get("outputs"), where),
        platform=one_line(content.get("platform") or ""),
        versions=tuple(map(one_line, versions)) if isinstance(versions, list) else (),
        parameters=parameters,
        batch_limit=_limit(parameters),
    )


def label_files(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the outputs that have a file of labels, by Triton's configuration."""
    outputs = config.get("output")
    described: Sequence[Any] = outputs if isinstance(outputs, list) else ()
    return tuple(
        str(output.get("name"))
        for output in described
        if isinstance(output, dict) and output.get("label_filename")
    )


def batch_limit(config: Mapping[str, Any]) -> int | None:
    """Return the most rows of a request, by Triton's configuration; None without a limit."""
    limit = config.get("max_batch_size")
    return limit if type(limit) is int and limit > 0 else None
