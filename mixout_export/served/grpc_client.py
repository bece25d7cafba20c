"""The protocol over gRPC; its library, grpcio, comes with the extra `servers`."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

import anyio
from google.protobuf.message import DecodeError

from mixout_export.errors import ServerError
from mixout_export.printable import one_line
from mixout_export.served.address import Address
from mixout_export.served.grpc_messages import MESSAGES, SERVICE
from mixout_export.served.http_client import check_identity
from mixout_export.served.metadata import ModelFacts, ServerFacts, read_model, read_server
from mixout_export.served.tensors import (
    Array,
    datatype_of,
    from_bytes,
    from_numbers,
    to_bytes,
)
from mixout_export.served.transport import CONNECT_TIMEOUT, LARGEST_ANSWER
from mixout_export.served.wire import Answer, Question

try:
    import grpc
except ImportError as missing:
    raise ServerError(
        "grpc: needs the library grpcio, which is not installed; pip install "
        "'mixout-export[servers]', or give the server's http:// address"
    ) from missing

#: Field of `InferTensorContents` that holds tensors of a type, where a server sends no raw bytes.
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
    """A model of one server; an asynchronous context manager.

    A connection that fails is made again by gRPC itself, within the deadline.

    Attributes:
        retried: Always 0, for gRPC does not say.
    """

    retried = 0

    def __init__(self, address: Address, *, timeout: float) -> None:
        """Prepare, without connecting.

        Args:
            address: The model.
            timeout: Seconds that a request may take.
        """
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
                f"{self._address}: cannot be reached, no connection within {patience:g} s; is a "
                "gRPC server running there?"
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
                    f"{self._address}: did not answer within {self._timeout:g} s; see whether the "
                    "server is well, or give it longer with --timeout"
                ) from error
            said = one_line(error.details() or "")
            raise ServerError(f"{self._address}: answered gRPC {code.name} ({said})") from error

    def _named(self, message: str) -> Any:
        version = self._address.version or ""
        return MESSAGES[message](name=self._address.model, version=version)

    async def server(self) -> ServerFacts:
        """Return what the server says of itself.

        Raises:
            ServerError: It cannot be reached.
        """
        said = await self._call(
            "ServerMetadata", MESSAGES["ServerMetadataRequest"](), "ServerMetadataResponse"
        )
        return read_server(
            {"name": said.name, "version": said.version, "extensions": list(said.extensions)}
        )

    async def model(self) -> ModelFacts:
        """Return what the server says of the model.

        Raises:
            ServerError: It has none such, or none that is ready, or says what cannot be read.
        """
        said = await self._call(
            "ModelMetadata", self._named("ModelMetadataRequest"), "ModelMetadataResponse"
        )
        ready = await self._call(
            "ModelReady", self._named("ModelReadyRequest"), "ModelReadyResponse"
        )
        if not ready.ready:
            raise ServerError(f"{self._address}: is not ready; wait for it")
        content = {
            "inputs": [_described(tensor) for tensor in said.inputs],
            "outputs": [_described(tensor) for tensor in said.outputs],
            "platform": said.platform,
            "versions": list(said.versions),
            "parameters": {name: _text(value) for name, value in said.parameters.items()},
        }
        return await self._with_configuration(read_model(content, str(self._address)))

    async def _with_configuration(self, facts: ModelFacts) -> ModelFacts:
        """Add what Triton's configuration says, which other servers have not."""
        try:
            said = await self._call(
                "ModelConfig", self._named("ModelConfigRequest"), "ModelConfigResponse"
            )
        except ServerError:
            return facts
        shown = {name: value.string_value for name, value in said.config.parameters.items()}
        limit = said.config.max_batch_size
        return replace(
            facts,
            parameters={**facts.parameters, **shown},
            batch_limit=limit if limit > 0 else facts.batch_limit,
        )

    async def ask(self, question: Question) -> Answer:
        """Return the model's answer.

        Raises:
            ParityError: It is the answer to another question.
            ServerError: None came, or one that does not keep to the protocol.
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
        said = await self._call("ModelInfer", request, "ModelInferResponse")
        answer = Answer(said.id, said.model_version, self._outputs(said, question))
        check_identity(question, answer, str(self._address))
        return answer

    async def labels(self, question: Question, output: str, count: int) -> None:
        """Return None: over gRPC no file of labels is read."""

    def _outputs(self, said: Any, question: Question) -> Mapping[str, Array]:
        raw = list(said.raw_output_contents)
        if raw and len(raw) != len(said.outputs):
            raise ServerError(
                f"{self._address}: the answer has {len(said.outputs)} outputs and the bytes of "
                f"{len(raw)}"
            )
        found = {}
        for number, tensor in enumerate(said.outputs):
            if tensor.name not in question.outputs:
                continue
            where, shape = f"{self._address}: output {tensor.name!r}", list(tensor.shape)
            if raw:
                piece = memoryview(raw[number])
                found[tensor.name] = from_bytes(piece, tensor.datatype, shape, where)
            else:
                contents = getattr(tensor.contents, _CONTENTS.get(tensor.datatype, ""), ())
                found[tensor.name] = from_numbers(list(contents), tensor.datatype, shape, where)
        missing = [name for name in question.outputs if name not in found]
        if missing:
            names = ", ".join(tensor.name for tensor in said.outputs) or "none"
            raise ServerError(
                f"{self._address}: the answer lacks output {missing[0]!r}, it has {one_line(names)}"
            )
        return found


def _text(value: bytes) -> str:
    """Return a parameter's text, which some servers wrap in a message and some do not."""
    try:
        wrapped = MESSAGES["InferParameter"].FromString(value)
    except DecodeError:
        return value.decode("utf-8", "replace")
    number = str(wrapped.int64_param) if wrapped.int64_param else ""
    return wrapped.string_param or number or value.decode("utf-8", "replace")


def _described(tensor: Any) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
