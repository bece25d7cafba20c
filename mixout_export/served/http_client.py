"""The protocol over HTTP, with tensors as JSON or as bytes."""

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
    """Check that an answer belongs to its question, where the server says to which it does.

    Raises:
        ParityError: It is another's.
    """
    if answer.identity not in ("", question.identity):
        raise ParityError(
            f"{where}: answered request {question.identity!r} with the answer to "
            f"{answer.identity!r}; answers are mixed up on the way"
        )


class HttpClient:
    """A model of one server; an asynchronous context manager."""

    def __init__(
        self, address: Address, transport: Transport, *, encoding: Literal["json", "binary"]
    ) -> None:
        """Take a transport, which is closed with the client.

        Args:
            address: The model.
            transport: Connections to its server.
            encoding: How to write tensors.
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
        """How many requests had to be sent again."""
        return self._transport.retried

    async def server(self) -> ServerFacts:
        """Return what the server says of itself; nothing, if it does not.

        Raises:
            ServerError: It cannot be reached.
        """
        response = await self._transport.send("GET", self._address.server_path)
        if response.status != 200:
            return read_server({})
        return read_server(self._object(response, self._address.server_path))

    async def model(self) -> ModelFacts:
        """Return what the server says of the model.

        Raises:
            ServerError: It has none such, or none that is ready, or says what cannot be read.
        """
        path = self._address.model_path
        response = await self._transport.send("GET", path)
        if response.status != 200:
            raise refused(response, f"{self._address}")
        facts = read_model(self._object(response, path), str(self._address))
        ready = await self._transport.send("GET", f"{path}/ready")
        if ready.status not in (200, *_NOT_OFFERED):
            raise ServerError(f"{self._address}: is not ready (HTTP {ready.status}); wait for it")
        return await self._with_configuration(facts)

    async def _with_configuration(self, facts: ModelFacts) -> ModelFacts:
        """Add what Triton's configuration endpoint says, which other servers have not."""
        path = f"{self._address.model_path}/config"
        response = await self._transport.send("GET", path)
        if response.status != 200:
            return facts
        try:
            config = self._object(response, path)
        except ServerError:
            return facts  # something else is at home there
        return replace(
            facts,
            parameters={**facts.parameters, **read_parameters(config.get("parameters"))},
            batch_limit=batch_limit(config) or facts.batch_limit,
            label_files=label_files(config),
        )

    async def ask(self, question: Question) -> Answer:
        """Return the model's answer.

        Raises:
            ParityError: It is the answer to another question.
            ServerError: None came, or one that does not keep to the protocol.
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
        """Return the names that the server gives to an output's classes, by its own file.

        Triton's classification extension returns "value:class:label", the largest value first.

        Args:
            question: One row.
            output: The output with the labels.
            count: How many classes it has.

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
    """Read labels in the order of their classes; None unless all are there."""
    outputs = content.get("outputs")
    first = outputs[0] if isinstance(outputs, list) and outputs else None
    data = first.get("data") if isinstance(first, dict) else None
    parts = [str(text).split(":", 2) for text in data] if isinstance(data, list) else []
    named = {parse_uint(part[1]): part[2] for part in parts if len(part) == 3}
    complete = all(index in named for index in range(count))
    return tuple(named[index] for index in range(count)) if complete else None
