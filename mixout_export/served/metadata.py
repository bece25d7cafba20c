"""Read the metadata of a server and of its models."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mixout_export.errors import ServerError
from mixout_export.files.graph_metadata import LABELS, PRECISION
from mixout_export.printable import one_line
from mixout_export.served.texts import parse_uint

#: Largest size of a tensor's axis.
_LARGEST_SIZE = (1 << 31) - 1

_BINARY_EXTENSION = "binary_tensor_data"

#: Servers that support the extension without listing it.
_TAKE_BINARY = ("kserve",)


@dataclass(frozen=True)
class TensorSpec:
    """An input or an output as a server describes it.

    Attributes:
        name: Name of the tensor.
        datatype: The protocol's name of its type.
        shape: Its sizes, the batch first; -1 means any size.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ServerFacts:
    """The metadata of a server.

    Attributes:
        name: Name of the server; "" if unknown.
        version: Version of the server; "" if unknown.
        extensions: Extensions of the protocol that it supports.
    """

    name: str
    version: str
    extensions: tuple[str, ...]

    @property
    def takes_binary(self) -> bool:
        """Whether the server supports the binary tensor data extension."""
        return _BINARY_EXTENSION in self.extensions or self.name.lower() in _TAKE_BINARY

    def __str__(self) -> str:
        return " ".join(part for part in (self.name, self.version) if part) or "a server"


@dataclass(frozen=True)
class ModelFacts:
    """The metadata of a model on a server.

    Attributes:
        inputs: The inputs; empty if unknown.
        outputs: The outputs; empty if unknown.
        platform: Runtime of the model; "" if unknown.
        versions: Versions that are loaded; empty if unknown.
        parameters: Other entries of the metadata.
        batch_limit: Largest number of rows in a request; None if there is no known limit.
        label_files: Names of outputs that have a label file on the server.
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
        """Precision according to the parameters or the outputs' types; "" if unknown."""
        halves = {"FP16": "fp16", "BF16": "bf16"}
        found = (halves[spec.datatype] for spec in self.outputs if spec.datatype in halves)
        return self.parameters.get(PRECISION) or next(found, "")

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Label names from the parameters; None if unknown."""
        try:
            names = json.loads(self.parameters.get(LABELS, ""))
        except ValueError:
            return None
        return tuple(map(str, names)) if isinstance(names, list) and names else None

    def with_configuration(self, config: Mapping[str, Any]) -> "ModelFacts":
        """Return these facts with those of the model's configuration, which only Triton offers."""
        limit, outputs = config.get("max_batch_size"), config.get("output")
        return replace(
            self,
            parameters={**self.parameters, **_parameters(config.get("parameters"))},
            batch_limit=limit if type(limit) is int and limit > 0 else self.batch_limit,
            label_files=tuple(
                str(output.get("name"))
                for output in (outputs if isinstance(outputs, list) else ())
                if isinstance(output, dict) and output.get("label_filename")
            ),
        )


def read_server(content: Mapping[str, Any]) -> ServerFacts:
    """Read a server's metadata. Missing entries are unknown."""
    extensions = content.get("extensions")
    return ServerFacts(
        name=one_line(content.get("name") or ""),
        version=one_line(content.get("version") or ""),
        extensions=tuple(map(str, extensions)) if isinstance(extensions, list) else (),
    )


def _size(value: object) -> int | None:
    """Return a size, -1 for any size; None if the value is not a size.

    Some servers write 64-bit integers as text.
    """
    text = str(value) if type(value) is int or isinstance(value, str) else ""
    number = -1 if text.startswith("-") else parse_uint(text)
    return number if number is not None and number <= _LARGEST_SIZE else None


def _spec(tensor: object, where: str) -> TensorSpec:
    if not isinstance(tensor, dict):
        raise ServerError(
            f"{where}: the metadata describes a tensor as {one_line(tensor)}, expected an object"
        )
    name, datatype, shape = (tensor.get(key) for key in ("name", "datatype", "shape"))
    if not isinstance(name, str) or not isinstance(datatype, str):
        raise ServerError(
            f"{where}: the metadata has a tensor without a name or datatype: {one_line(tensor)}"
        )
    sizes = [_size(size) for size in shape] if isinstance(shape, list) else [None]
    if None in sizes:
        raise ServerError(
            f"{where}: according to the metadata, {one_line(name)!r} has shape "
            f"{one_line(repr(shape))}, expected a list of sizes"
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


def _parameters(content: object) -> dict[str, str]:
    """Read parameters, which may be texts, lists, or the objects that Triton and gRPC use."""
    found = {}
    for name, value in content.items() if isinstance(content, dict) else ():
        if isinstance(value, dict):
            value = value.get("string_value", value.get("stringParam"))
        if isinstance(value, list):
            value = json.dumps(value)
        if isinstance(value, str | int | float):
            found[str(name)] = str(value)
    return found


def read_model(content: Mapping[str, Any], where: str) -> ModelFacts:
    """Read a model's metadata.

    Raises:
        ServerError: The metadata does not follow the protocol.
    """
    versions, parameters = content.get("versions"), _parameters(content.get("parameters"))
    return ModelFacts(
        inputs=_specs(content.get("inputs"), where),
        outputs=_specs(content.get("outputs"), where),
        platform=one_line(content.get("platform") or ""),
        versions=tuple(map(one_line, versions)) if isinstance(versions, list) else (),
        parameters=parameters,
        batch_limit=parse_uint(parameters.get("max_batch_size", "")) or None,
    )
