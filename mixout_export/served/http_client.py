"""Speak the protocol over HTTP, with tensors as JSON or as bytes."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, Self

from mixout_export.errors import ParityError, ServerError
from mixout_export.served.address import Address
from mixout_export.served.metadata import (
    ModelFacts,
    ServerFacts,
    batch_limit,
    label_files,
    read_model,
    read_parameters,
    read_server,
)
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


def check_identity(question: Question, answer: Answer, where: str) -> None:
    """Check that an answer has the id of its request, if the server returns ids.

    Raises:
        ParityError: The answer belongs to another request.
    """
    if answer.identity not in ("", question.identity):
        raise ParityError(
            f"{where}: answered request {question.identity!r} with the answer to "
            f"{answer.identity!r}; the server mixes up answers"
        )


class HttpClient:
    """Client of one served model, as an asynchronous context manager."""

    def __init__(
        self, address: Address, transport: Transport, *, encoding: Literal["json", "binary"]
    ) -> None:
        """Create a client. Closing it closes the transport.

        Args:
            address: Address of the model.
            transport: Connections to the server.
            encoding: How to send tensors: as JSON or as bytes.
        """
        self._address = address
        self._transport = transport
        self._encode = encode_binary if encoding == "binary" else encode_json

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._transport.__aexit__()

    @property
    def retried(self) -> int:
        """Number of requests that were sent again."""
        return self._transport.retried

    async def server(self) -> ServerFacts:
        """Return the server's metadata, with empty fields if the server offers none.

        Raises:
            ServerError: The server cannot be reached.
        """
        response = await self._transport.send("GET", self._address.server_path)
        if response.status != 200:
            return read_server({})
        return read_server(self._object(response, self._address.server_path))

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
        return await self._with_configuration(facts)

    async def _with_configuration(self, facts: ModelFacts) -> ModelFacts:
        """Add facts from the model's configuration, which only Triton offers."""
        path = f"{self._address.model_path}/config"
        response = await self._transport.send("GET", path)
        if response.status != 200:
            return facts
        try:
            config = self._object(response, path)
        except ServerError:
            return facts  # another server uses this path for something else
        return replace(
            facts,
            parameters={**facts.parameters, **read_parameters(config.get("parameters"))},
            batch_limit=batch_limit(config) or facts.batch_limit,
            label_files=label_files(config),
        )

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
        check_identity(question, answer, where)
        return answer

    async def labels(self, question: Question, output: str, count: int) -> tuple[str, ...] | None:
        """Return the class names from the server's label file; None if the server has none.

        Triton's classification extension returns "value:class:label", the largest value first.

        Args:
            question: A request with one row.
            output: Name of the output whose classes have labels.
            count: Number of classes.

        Raises:
            ServerError: The server cannot be reached.
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
