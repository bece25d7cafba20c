"""Speak the protocol over gRPC. Its library, grpcio, is part of the extra `servers`."""

from typing import Any, Self

import anyio
from google.protobuf.message import DecodeError

from mixout_export.errors import ServerError
from mixout_export.printable import one_line
from mixout_export.served.address import Address
from mixout_export.served.grpc_messages import MESSAGES, SERVICE
from mixout_export.served.metadata import ModelFacts, ServerFacts, read_model, read_server
from mixout_export.served.tensors import Array, datatype_of, from_bytes, from_numbers, to_bytes
from mixout_export.served.transport import CONNECT_TIMEOUT, LARGEST_ANSWER
from mixout_export.served.wire import Answer, Question, ordered

try:
    import grpc
except ImportError as missing:
    raise ServerError(
        "grpc: the library grpcio is not installed; run pip install 'mixout-export[servers]', or "
        "give the server's http:// address"
    ) from missing

#: Datatype → field of `InferTensorContents` that holds the values if a server sends no raw bytes.
_CONTENTS = {
    "BOOL": "bool_contents",
    "INT64": "int64_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
}


class GrpcClient:
    """Client of one served model, as an asynchronous context manager.

    gRPC itself retries a connection that fails, until the deadline.

    Attributes:
        retried: Always 0, because gRPC does not report retries.
    """

    retried = 0

    def __init__(self, address: Address, *, timeout: float) -> None:
        """Create a client without connecting. The time limit of a request is in seconds."""
        self._address = address
        self._timeout = timeout

    async def __aenter__(self) -> Self:
        options = [
            ("grpc.max_receive_message_length", LARGEST_ANSWER),
            ("grpc.max_send_message_length", LARGEST_ANSWER),
            ("grpc.enable_http_proxy", 0),
        ]
        self._channel = grpc.aio.insecure_channel(self._address.host, options=options)
        patience = min(CONNECT_TIMEOUT, self._timeout)
        try:
            with anyio.fail_after(patience):
                await self._channel.channel_ready()
        except TimeoutError as error:
            await self._channel.close()
            raise ServerError(
                f"{self._address}: cannot be reached, no connection within {patience:g} s; check "
                "that a gRPC server is running at this address"
            ) from error
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()

    async def _call(self, method: str, request: Any, reply: str) -> Any:
        call = self._channel.unary_unary(
            f"/{SERVICE}/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=MESSAGES[reply].FromString,
        )
        try:
            return await call(request, timeout=self._timeout, wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            code = error.code()
            if code == grpc.StatusCode.DEADLINE_EXCEEDED:
                raise ServerError(
                    f"{self._address}: did not answer within {self._timeout:g} s; check the "
                    "server, or give a longer --timeout"
                ) from error
            details = one_line(error.details() or "")
            raise ServerError(f"{self._address}: answered gRPC {code.name} ({details})") from error

    def _model_request(self, message: str) -> Any:
        """Return a request message that names the model and its version."""
        version = self._address.version or ""
        return MESSAGES[message](name=self._address.model, version=version)

    async def server(self) -> ServerFacts:
        """Return the server's metadata."""
        reply = await self._call(
            "ServerMetadata", MESSAGES["ServerMetadataRequest"](), "ServerMetadataResponse"
        )
        return read_server(
            {"name": reply.name, "version": reply.version, "extensions": list(reply.extensions)}
        )

    async def model(self) -> ModelFacts:
        """Return the model's metadata.

        Raises:
            ServerError: The model does not exist or is not ready, or its metadata cannot be read.
        """
        reply = await self._call(
            "ModelMetadata", self._model_request("ModelMetadataRequest"), "ModelMetadataResponse"
        )
        ready = await self._call(
            "ModelReady", self._model_request("ModelReadyRequest"), "ModelReadyResponse"
        )
        if not ready.ready:
            raise ServerError(
                f"{self._address}: the model is not ready; try again when the server has loaded it"
            )
        content = {
            "inputs": [_described(tensor) for tensor in reply.inputs],
            "outputs": [_described(tensor) for tensor in reply.outputs],
            "platform": reply.platform,
            "versions": list(reply.versions),
            "parameters": {name: _text(value) for name, value in reply.parameters.items()},
        }
        facts = read_model(content, str(self._address))
        try:
            reply = await self._call(
                "ModelConfig", self._model_request("ModelConfigRequest"), "ModelConfigResponse"
            )
        except ServerError:
            return facts
        texts = {name: value.string_value for name, value in reply.config.parameters.items()}
        return facts.with_configuration(
            {"parameters": texts, "max_batch_size": reply.config.max_batch_size}
        )

    async def ask(self, question: Question) -> Answer:
        """Send a request and return the model's answer.

        Raises:
            ParityError: The answer belongs to another request.
            ServerError: No answer came, or it does not follow the protocol.
        """
        request = MESSAGES["ModelInferRequest"](
            model_name=self._address.model,
            model_version=self._address.version or "",
            id=question.identity,
            outputs=[{"name": name} for name in question.outputs],
        )
        for name, array in question.inputs.items():
            request.inputs.add(name=name, datatype=datatype_of(array), shape=array.shape)
            request.raw_input_contents.append(to_bytes(array))
        reply = await self._call("ModelInfer", request, "ModelInferResponse")
        answer = Answer(reply.id, reply.model_version, self._outputs(reply, question))
        return answer.check(question, str(self._address))

    def _outputs(self, reply: Any, question: Question) -> dict[str, Array]:
        raw = list(reply.raw_output_contents)
        if raw and len(raw) != len(reply.outputs):
            raise ServerError(
                f"{self._address}: the answer has {len(reply.outputs)} outputs but data for "
                f"{len(raw)}"
            )
        found = {}
        for number, tensor in enumerate(reply.outputs):
            if tensor.name not in question.outputs:
                continue
            where, shape = f"{self._address}: output {tensor.name!r}", list(tensor.shape)
            if raw:
                piece = memoryview(raw[number])
                found[tensor.name] = from_bytes(piece, tensor.datatype, shape, where)
            else:
                contents = getattr(tensor.contents, _CONTENTS.get(tensor.datatype, ""), ())
                found[tensor.name] = from_numbers(list(contents), tensor.datatype, shape, where)
        names = [tensor.name for tensor in reply.outputs]
        return ordered(found, question.outputs, names, str(self._address))


def _text(value: bytes) -> str:
    """Return a parameter's text. Some servers wrap it in a message."""
    try:
        wrapped = MESSAGES["InferParameter"].FromString(value)
    except DecodeError:
        return value.decode("utf-8", "replace")
    number = str(wrapped.int64_param) if wrapped.int64_param else ""
    return wrapped.string_param or number or value.decode("utf-8", "replace")


def _described(tensor: Any) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
