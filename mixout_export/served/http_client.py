"""Speak the protocol over HTTP, with tensors as JSON or as bytes."""

import json
from collections.abc import Mapping
from typing import Any, Self

from mixout_export.errors import ServerError
from mixout_export.served.address import Address
from mixout_export.served.metadata import ModelFacts, ServerFacts, read_model, read_server
from mixout_export.served.options import ServingOptions
from mixout_export.served.texts import parse_uint
from mixout_export.served.transport import Response, Transport, refused
from mixout_export.served.wire import (
    HEADER_LENGTH,
    Answer,
    Question,
    decode,
    encode_binary,
    encode_json,
    read_json,
)

_NOT_OFFERED = (404, 405, 501)


class HttpClient:
    """Client of one served model, as an asynchronous context manager."""

    def __init__(self, address: Address, options: ServingOptions, *, binary: bool) -> None:
        """Create a client without connecting. It sends tensors as bytes or as JSON."""
        self._address = address
        self._transport = Transport(
            address, timeout=options.timeout, connections=options.concurrency
        )
        self._encode = encode_binary if binary else encode_json

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._transport.__aexit__()

    @property
    def retried(self) -> int:
        """Number of requests that were sent again."""
        return self._transport.retried

    async def server(self) -> ServerFacts:
        """Return the server's metadata, with empty fields if the server offers none."""
        path = self._address.server_path
        response = await self._transport.send("GET", path)
        return read_server(self._object(response, path) if response.status == 200 else {})

    async def model(self) -> ModelFacts:
        """Return the model's metadata.

        Raises:
            ServerError: The model does not exist or is not ready, or its metadata cannot be read.
        """
        path = self._address.model_path
        response = await self._transport.send("GET", path)
        if response.status != 200:
            raise refused(response, f"{self._address}")
        facts = read_model(self._object(response, path), str(self._address))
        ready = await self._transport.send("GET", f"{path}/ready")
        if ready.status not in (200, *_NOT_OFFERED):
            raise ServerError(
                f"{self._address}: the model is not ready (HTTP {ready.status}); try again when "
                "the server has loaded it"
            )
        response = await self._transport.send("GET", f"{path}/config")
        if response.status != 200:
            return facts
        try:
            return facts.with_configuration(self._object(response, f"{path}/config"))
        except ServerError:
            return facts  # this server uses the path of Triton's configuration for something else

    async def ask(self, question: Question) -> Answer:
        """Send a request and return the model's answer.

        Raises:
            ParityError: The answer belongs to another request.
            ServerError: No answer came, or it does not follow the protocol.
        """
        path = f"{self._address.model_path}/infer"
        message = self._encode(question)
        response = await self._transport.send(
            "POST", path, body=message.body, headers=message.headers
        )
        where = str(self._address)
        if response.status != 200:
            shape = list(next(iter(question.inputs.values())).shape)
            raise refused(response, where, f" to inputs of shape {shape}")
        answer = decode(response.body, response.headers.get(HEADER_LENGTH), question.outputs, where)
        return answer.check(question, where)

    async def labels(self, question: Question, output: str, count: int) -> tuple[str, ...] | None:
        """Return the class names from the server's label file; None if the server has none.

        Triton's classification extension returns "value:class:label", the largest value first.

        Args:
            question: A request with one row.
            output: Name of the output whose classes have labels.
            count: Number of classes.
        """
        content: dict[str, Any] = json.loads(encode_json(question).body)
        content["outputs"] = [{"name": output, "parameters": {"classification": count}}]
        response = await self._transport.send(
            "POST",
            f"{self._address.model_path}/infer",
            body=json.dumps(content).encode(),
            headers={"Content-Type": "application/json"},
        )
        if response.status != 200:
            return None
        return _labels(read_json(response.body, str(self._address)), count)

    def _object(self, response: Response, path: str) -> Mapping[str, Any]:
        return read_json(response.body, f"{self._address.scheme}://{self._address.host}{path}")


def _labels(content: Mapping[str, Any], count: int) -> tuple[str, ...] | None:
    """Return the labels in the order of their classes; None if any is missing."""
    outputs = content.get("outputs")
    first = outputs[0] if isinstance(outputs, list) and outputs else None
    data = first.get("data") if isinstance(first, dict) else None
    parts = [str(text).split(":", 2) for text in data] if isinstance(data, list) else []
    named = {parse_uint(part[1]): part[2] for part in parts if len(part) == 3}
    complete = all(index in named for index in range(count))
    return tuple(named[index] for index in range(count)) if complete else None
