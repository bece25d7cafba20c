"""Encode requests and decode answers for HTTP: as JSON, or as JSON followed by tensors' bytes.

The second form is the protocol's binary tensor data extension. A header holds the length of the
JSON, and the tensors follow it in order.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mixout_export.errors import ParityError, ServerError
from mixout_export.printable import one_line
from mixout_export.served.tensors import Array, datatype_of, from_bytes, from_numbers, to_bytes
from mixout_export.served.texts import parse_uint

HEADER_LENGTH = "Inference-Header-Content-Length"


@dataclass(frozen=True)
class Question:
    """A request to a model.

    Attributes:
        identity: Id of the request. Some servers return it with the answer.
        inputs: Input name → tensor, in the type that the server takes.
        outputs: Names of the outputs to return.
    """

    identity: str
    inputs: Mapping[str, Array]
    outputs: Sequence[str]


@dataclass(frozen=True)
class Answer:
    """A model's answer.

    Attributes:
        identity: Id of the request; "" if the server does not return it.
        version: Version of the model that answered; "" if the server does not return it.
        outputs: Output name → tensor.
    """

    identity: str
    version: str
    outputs: Mapping[str, Array]

    def check(self, question: Question, where: str) -> "Answer":
        """Return it, if it has the id of the question or the server does not return ids.

        Raises:
            ParityError: The answer belongs to another request.
        """
        if self.identity not in ("", question.identity):
            raise ParityError(
                f"{where}: answered request {question.identity!r} with the answer to "
                f"{self.identity!r}; the server mixes up answers"
            )
        return self


@dataclass(frozen=True)
class Message:
    """The body of an HTTP request and its headers."""

    body: bytes
    headers: Mapping[str, str]


def _json_part(question: Question, inputs: list[dict[str, Any]], **parameters: bool) -> bytes:
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
    """Encode a request with its tensors as JSON."""
    inputs = [
        {**_described(name, array), "data": array.ravel().tolist()}
        for name, array in question.inputs.items()
    ]
    return Message(_json_part(question, inputs), {"Content-Type": "application/json"})


def encode_binary(question: Question) -> Message:
    """Encode a request with its tensors as bytes, and ask for bytes in the answer."""
    pieces = [to_bytes(array) for array in question.inputs.values()]
    inputs = [
        {**_described(name, array), "parameters": {"binary_data_size": len(piece)}}
        for (name, array), piece in zip(question.inputs.items(), pieces, strict=True)
    ]
    head = _json_part(question, inputs, binary_data_output=True)
    headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(head))}
    return Message(b"".join([head, *pieces]), headers)


def read_json(body: bytes | memoryview, where: str) -> dict[str, Any]:
    """Read a JSON object from the body of an answer."""
    try:
        content = json.loads(bytes(body))
    except (ValueError, RecursionError) as error:
        raise ServerError(f"{where}: the answer is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise ServerError(
            f"{where}: the answer is a JSON {type(content).__name__}, expected an object"
        )
    return content


def _json_length(header: str | None, body: bytes, where: str) -> int:
    if header is None:
        return len(body)
    length = parse_uint(header)
    if length is None or length > len(body):
        raise ServerError(
            f"{where}: the answer was cut off: its {HEADER_LENGTH} is {header!r}, but it has only "
            f"{len(body)} bytes"
        )
    return length


def _tensors(
    outputs: Sequence[Mapping[str, Any]], rest: memoryview, wanted: Sequence[str], where: str
) -> dict[str, Array]:
    """Read the wanted outputs, in any order, from the JSON and the bytes that follow it."""
    found = {}
    for output in outputs:
        name = str(output.get("name"))
        place = f"{where}: output {name!r}"
        given = output.get("parameters")
        parameters = given if isinstance(given, dict) else {}
        raw = None
        if "binary_data_size" in parameters:
            size = parameters["binary_data_size"]
            if type(size) is not int or not 0 <= size <= len(rest):
                raise ServerError(
                    f"{place} should have {one_line(repr(size))} bytes, but the answer was cut off "
                    f"with {len(rest)} bytes left"
                )
            raw, rest = rest[:size], rest[size:]
        if name not in wanted:
            continue
        datatype, shape = output.get("datatype"), output.get("shape")
        if raw is not None:
            found[name] = from_bytes(raw, datatype, shape, place)
        elif "data" in output:
            found[name] = from_numbers(output["data"], datatype, shape, place)
        else:
            raise ServerError(f"{place} has no data")
    if rest:
        raise ServerError(f"{where}: the answer has {len(rest)} bytes after its last output")
    return found


def ordered(
    found: Mapping[str, Array], wanted: Sequence[str], names: Sequence[str], where: str
) -> dict[str, Array]:
    """Return the wanted outputs in their order; `names` are those of all outputs, for the error."""
    missing = [name for name in wanted if name not in found]
    if missing:
        raise ServerError(
            f"{where}: the answer lacks output {missing[0]!r}, it has "
            f"{one_line(', '.join(names) or 'none')}"
        )
    return {name: found[name] for name in wanted}


def decode(body: bytes, header_length: str | None, wanted: Sequence[str], where: str) -> Answer:
    """Decode an answer of either form. The server chooses the form, whatever was asked for.

    Args:
        body: The complete body.
        header_length: The header with the length of the JSON; None if the answer has none.
        wanted: Outputs that the answer must hold. Others are ignored.
        where: Beginning of error messages.

    Raises:
        ServerError: The answer does not follow the protocol.
    """
    length = _json_length(header_length, body, where)
    content = read_json(memoryview(body)[:length], where)
    outputs = content.get("outputs")
    if not isinstance(outputs, list) or not all(isinstance(output, dict) for output in outputs):
        error = f" ({one_line(content['error'])})" if content.get("error") else ""
        raise ServerError(f"{where}: the answer has no list of outputs{error}")
    found = _tensors(outputs, memoryview(body)[length:], wanted, where)
    return Answer(
        identity=one_line(content.get("id") or ""),
        version=one_line(content.get("model_version") or ""),
        outputs=ordered(found, wanted, [str(output.get("name")) for output in outputs], where),
    )
