"""Requests and answers as they go over HTTP: JSON, or JSON followed by the tensors' bytes.

The second is the binary tensor data extension: a header says how long the JSON is, and what
follows it are the tensors in their order.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mixout_export.errors import ServerError
from mixout_export.printable import one_line
from mixout_export.served.tensors import (
    Array,
    datatype_of,
    from_bytes,
    from_numbers,
    to_bytes,
)
from mixout_export.served.texts import parse_uint

HEADER_LENGTH = "Inference-Header-Content-Length"


@dataclass(frozen=True)
class Question:
    """What a model is asked.

    Attributes:
        identity: Comes back with the answer, if the server is of the kind that returns it.
        inputs: Tensors by name, in the types that the server takes.
        outputs: Names of the tensors to return.
    """

    identity: str
    inputs: Mapping[str, Array]
    outputs: Sequence[str]


@dataclass(frozen=True)
class Answer:
    """What a model answered.

    Attributes:
        identity: Of the question; "" where the server does not say.
        version: Version of the model that answered; "" where the server does not say.
        outputs: Tensors by name.
    """

    identity: str
    version: str
    outputs: Mapping[str, Array]


@dataclass(frozen=True)
class Message:
    """A body and the headers that belong to it."""

    body: bytes
    headers: Mapping[str, str]


def _head(question: Question, inputs: list[dict[str, Any]], **parameters: bool) -> bytes:
    content: dict[str, Any] = {
        "id": question.identity,
        "inputs": inputs,
        "outputs": [{"name": name} for name in question.outputs],
    }
    if parameters:
        content["parameters"] = parameters
    return json.dumps(content, separators=(",", ":")).encode()


def _described(name: str, array: Array) -> dict[str, Any]:
    return {"name": name, "shape": list(array.shape), "datatype": datatype_of(array)}


def encode_json(question: Question) -> Message:
    """Write a question with its numbers as JSON."""
    inputs = [
        {**_described(name, array), "data": array.ravel().tolist()}
        for name, array in question.inputs.items()
    ]
    return Message(_head(question, inputs), {"Content-Type": "application/json"})


def encode_binary(question: Question) -> Message:
    """Write a question with its numbers as bytes, and ask for bytes in return."""
    pieces = [to_bytes(array) for array in question.inputs.values()]
    inputs = [
        {**_described(name, array), "parameters": {"binary_data_size": len(piece)}}
        for (name, array), piece in zip(question.inputs.items(), pieces, strict=True)
    ]
    head = _head(question, inputs, binary_data_output=True)
    headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(head))}
    return Message(b"".join([head, *pieces]), headers)


def read_json(body: bytes | memoryview, where: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ServerError: It is none.
    """
    try:
        content = json.loads(bytes(body))
    except (ValueError, RecursionError) as error:
        raise ServerError(f"{where}: the answer is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise ServerError(
            f"{where}: the answer is a JSON {type(content).__name__}, expected an object"
        )
    return content


def _head_length(given: str | None, body: bytes, where: str) -> int:
    if given is None:
        return len(body)
    length = parse_uint(given)
    if length is None or length > len(body):
        raise ServerError(
            f"{where}: the answer's {HEADER_LENGTH} is {given!r}, and the answer has {len(body)} "
            "bytes; it was cut off"
        )
    return length


class _Bytes:
    """The bytes after an answer's JSON, taken from front to end."""

    def __init__(self, rest: memoryview) -> None:
        self._rest = rest

    def take(self, size: object, where: str) -> memoryview:
        if type(size) is not int or not 0 <= size <= len(self._rest):
            raise ServerError(
                f"{where} is said to take {one_line(repr(size))} bytes, and {len(self._rest)} are "
                "left; the answer was cut off"
            )
        piece, self._rest = self._rest[:size], self._rest[size:]
        return piece

    def finish(self, where: str) -> None:
        if self._rest:
            raise ServerError(
                f"{where}: the answer has {len(self._rest)} bytes that belong to none"
            )


def _tensors(
    outputs: Sequence[Mapping[str, Any]], rest: _Bytes, wanted: Sequence[str], where: str
) -> dict[str, Array]:
    """Read the outputs that are wanted, in whichever order they came."""
    found = {}
    for output in outputs:
        name = str(output.get("name"))
        place = f"{where}: output {name!r}"
        given = output.get("parameters")
        parameters = given if isinstance(given, dict) else {}
        binary = "binary_data_size" in parameters
        raw = rest.take(parameters["binary_data_size"], place) if binary else None
        if name not in wanted:
            continue
        datatype, shape = output.get("datatype"), output.get("shape")
        if raw is not None:
            found[name] = from_bytes(raw, datatype, shape, place)
        elif "data" in output:
            found[name] = from_numbers(output["data"], datatype, shape, place)
        else:
            raise ServerError(f"{place} came without data")
    rest.finish(where)
    return found


def decode(body: bytes, header_length: str | None, wanted: Sequence[str], where: str) -> Answer:
    """Read an answer of either kind; the server chooses, whatever was asked for.

    Args:
        body: All of it.
        header_length: The header that says how long its JSON is; None where there is none.
        wanted: Outputs that it has to hold; others are ignored.
        where: Begins the sentence of an error.

    Raises:
        ServerError: It does not keep to the protocol.
    """
    length = _head_length(header_length, body, where)
    content = read_json(memoryview(body)[:length], where)
    outputs = content.get("outputs")
    if not isinstance(outputs, list) or not all(isinstance(output, dict) for output in outputs):
        said = f" ({one_line(content['error'])})" if content.get("error") else ""
        raise ServerError(f"{where}: the answer has no list of outputs{said}")
    found = _tensors(outputs, _Bytes(memoryview(body)[length:]), wanted, where)
    missing = [name for name in wanted if name not in found]
    if missing:
        names = ", ".join(str(output.get("name")) for output in outputs) or "none"
        raise ServerError(
            f"{where}: the answer lacks output {missing[0]!r}, it has {one_line(names)}"
        )
    return Answer(
        identity=one_line(content.get("id") or ""),
        version=one_line(content.get("model_version") or ""),
        outputs={name: found[name] for name in wanted},
    )
