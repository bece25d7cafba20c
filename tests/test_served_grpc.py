"""`verify` over gRPC, against a server in threads that computes with onnxruntime."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime
import pytest
from checkpoints import TinyCheckpoints

from mixout_export.errors import ArgumentError, ServerError
from mixout_export.parity.result import ParityResult
from mixout_export.served.grpc_messages import MESSAGES, SERVICE
from mixout_export.served.options import ServingOptions
from mixout_export.stages.onnx_export import export_onnx
from mixout_export.stages.verify import verify_checkpoints

FEW = ServingOptions(concurrency=4, requests=3, timeout=10)


@pytest.fixture(scope="module")
def graph(tiny: TinyCheckpoints, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("graph") / "onnx"
    return export_onnx(tiny.classifier(), out, verify=False).path


class Model:
    """Answers the service's calls from a graph.

    Attributes:
        raw: Whether tensors come as bytes, or as lists of numbers.
        parameters: What the metadata says beside the tensors, as bytes of either kind.
        config: What Triton's configuration says; None where the server has none.
        wait: Is waited for before each answer.
    """

    def __init__(self, graph: Path) -> None:
        self.session = onnxruntime.InferenceSession(graph)
        self.raw = True
        self.parameters: dict[str, bytes] = {}
        self.config: dict[str, Any] | None = None
        self.largest = 0
        self.wait: threading.Event | None = None

    def server_metadata(self, _: Any, __: Any) -> Any:
        return MESSAGES["ServerMetadataResponse"](name="small", version="0.1")

    def model_metadata(self, request: Any, context: Any) -> Any:
        if request.name != "tiny":
            context.abort(grpc.StatusCode.NOT_FOUND, f"no model\n{request.name}")
        said = MESSAGES["ModelMetadataResponse"](name="tiny", versions=["1"], platform="test")
        for tensor in self.session.get_inputs():
            said.inputs.add(name=tensor.name, datatype="INT64", shape=[-1, -1])
        for tensor in self.session.get_outputs():
            said.outputs.add(name=tensor.name, datatype="FP32", shape=[-1, 3])
        for name, value in self.parameters.items():
            said.parameters[name] = value
        return said

    def model_ready(self, _: Any, __: Any) -> Any:
        return MESSAGES["ModelReadyResponse"](ready=True)

    def model_config(self, _: Any, context: Any) -> Any:
        if self.config is None:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "no such call")
        said = MESSAGES["ModelConfigResponse"]()
        said.config.max_batch_size = self.config["max_batch_size"]
        for name, value in self.config["parameters"].items():
            said.config.parameters[name].string_value = value
        return said

    def model_infer(self, request: Any, _: Any) -> Any:
        if self.wait is not None:
            self.wait.wait(20)
        inputs = {
            tensor.name: np.frombuffer(piece, "<i8").reshape(tensor.shape)
            for tensor, piece in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        self.largest = max(self.largest, len(inputs["input_ids"]))
        (logits,) = self.session.run([output.name for output in request.outputs], inputs)
        said = MESSAGES["ModelInferResponse"](model_name="tiny", model_version="1", id=request.id)
        tensor = said.outputs.add(name="logits", datatype="FP32", shape=logits.shape)
        if self.raw:
            said.raw_output_contents.append(logits.astype("<f4").tobytes())
        else:
            tensor.contents.fp32_contents.extend(logits.ravel().tolist())
        return said


#: Call → (the method that answers it, its request).
CALLS = {
    "ServerMetadata": (Model.server_metadata, "ServerMetadataRequest"),
    "ModelMetadata": (Model.model_metadata, "ModelMetadataRequest"),
    "ModelReady": (Model.model_ready, "ModelReadyRequest"),
    "ModelConfig": (Model.model_config, "ModelConfigRequest"),
    "ModelInfer": (Model.model_infer, "ModelInferRequest"),
}


@contextmanager
def served(model: Model) -> Iterator[str]:
    """Serve a model while the block runs; yield its address."""
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(
            answer.__get__(model),
            request_deserializer=MESSAGES[request].FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )
        for name, (answer, request) in CALLS.items()
    }
    server = grpc.server(ThreadPoolExecutor(8))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"grpc://127.0.0.1:{port}/v2/models/tiny"
    finally:
        server.stop(None).wait()


def verify(graph: Path, address: str, options: ServingOptions = FEW) -> ParityResult:
    return verify_checkpoints(graph, address, serving=options)


@pytest.mark.parametrize("raw", [True, False])
def test_a_server_of_the_same_graph_is_at_parity(graph: Path, raw: bool) -> None:
    model = Model(graph / "model.onnx")
    model.raw = raw
    with served(model) as address:
        result = verify(graph, address)
    assert result.holds, result.reasons()
    assert result.max_abs == 0.0
    assert result.serving is not None
    assert (result.serving.protocol, result.serving.server) == ("grpc", "small 0.1")
    assert result.serving.concurrency is not None
    assert result.serving.concurrency.own == 12
    assert model.largest > 4


@pytest.mark.parametrize(
    "written",
    [b"0" * 64, MESSAGES["InferParameter"](string_param="0" * 64).SerializeToString()],
    ids=["a text", "a message"],
)
def test_an_older_version_is_named_by_its_hash(graph: Path, written: bytes) -> None:
    model = Model(graph / "model.onnx")
    model.parameters = {"model_sha256": written}
    with served(model) as address:
        result = verify(graph, address)
    assert any("serves another version of the model" in text for text in result.reasons())


def test_tritons_configuration_limits_batches_and_shows_the_hash(graph: Path) -> None:
    model = Model(graph / "model.onnx")
    model.config = {"max_batch_size": 3, "parameters": {"source_sha256": "1" * 64}}
    with served(model) as address:
        result = verify(graph, address)
    assert model.largest == 3
    assert any("made from weights with SHA-256 1111" in text for text in result.reasons())


def test_a_number_among_the_parameters_is_read(graph: Path) -> None:
    model = Model(graph / "model.onnx")
    limit = MESSAGES["InferParameter"](int64_param=2)
    model.parameters = {"max_batch_size": limit.SerializeToString()}
    with served(model) as address:
        assert verify(graph, address).holds
    assert model.largest == 2


def test_what_goes_wrong_is_said_in_a_sentence(graph: Path) -> None:
    model = Model(graph / "model.onnx")
    model.wait = threading.Event()
    with served(model) as address:
        with pytest.raises(ServerError, match=r"gRPC NOT_FOUND \(no model other\)"):
            verify(graph, address.replace("tiny", "other"))
        with pytest.raises(ServerError, match=r"did not answer within 0\.5 s"):
            verify(graph, address, ServingOptions(timeout=0.5))
        model.wait.set()
    with pytest.raises(ServerError, match=r"cannot be reached, no connection within 0\.5 s"):
        verify(graph, address, ServingOptions(timeout=0.5))
    with pytest.raises(ArgumentError, match="does not speak it; for gRPC"):
        verify(graph, address, ServingOptions(protocol="json"))
