"""A small server of the Open Inference Protocol, in a thread, which can be told to misbehave.

It computes with onnxruntime, so what a client gets is what a graph says.
"""

import json
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

HEADER = "Inference-Header-Content-Length"
TYPES = {"INT64": np.int64, "INT32": np.int32, "FP32": np.float32, "FP16": np.float16}
NAMES = {"tensor(int64)": "INT64", "tensor(float)": "FP32", "tensor(float16)": "FP16"}

Arrays = dict[str, Any]


@dataclass
class Behavior:
    """What a server says and does; each field may be changed while it runs.

    Attributes:
        name: The model's name.
        binary: Whether it offers tensors as bytes.
        parameters: What the model's metadata says beside its tensors.
        config: What the configuration endpoint says; None has it missing.
        inputs: Metadata of the inputs in place of the true; likewise `outputs`.
        feed: Changes the inputs of each request.
        answer: Changes the outputs of each request.
        respond: Handles a request in place of the server, and returns True if it did.
        body: Changes the header length and the body of each answer to a question.
        version: Of the model.
        joins: Whether requests of one shape that come at the same time are run as one batch.
    """

    name: str = "tiny"
    binary: bool = True
    parameters: Mapping[str, str] = field(default_factory=dict)
    config: dict[str, Any] | None = None
    inputs: Any = None
    outputs: Any = None
    feed: Callable[[Arrays], Arrays] = lambda inputs: inputs
    answer: Callable[[Arrays], Arrays] = lambda outputs: outputs
    respond: Callable[["Handler"], bool] = lambda handler: False
    body: Callable[[str | None, bytes], tuple[str | None, bytes]] = lambda *both: both
    version: str = "1"
    joins: bool = False


class Handler(BaseHTTPRequestHandler):
    """Answers one connection's requests."""

    protocol_version = "HTTP/1.1"
    server: "OipServer"
    body = b""

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def send(self, status: int, content: Any, *, length: str | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if length is not None:
            self.send_header(HEADER, length)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.server.requests.append((self.path, dict(self.headers)))
        it = self.server.behavior
        if it.respond(self):
            return
        model = f"/v2/models/{it.name}"
        said = {
            "/v2": self.server.description,
            model: self.server.metadata,
            f"{model}/versions/{it.version}": self.server.metadata,
            f"{model}/ready": {},
            f"{model}/versions/{it.version}/ready": {},
        }
        if it.config is not None:
            said[f"{model}/config"] = it.config
        if self.path in said:
            self.send(200, said[self.path])
        else:
            self.send(404, {"error": f"unknown: {self.path}"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.body = body
        self.server.requests.append((self.path, dict(self.headers)))
        if self.server.behavior.respond(self):
            return
        length = int(self.headers.get(HEADER, len(body)))
        request, rest = json.loads(body[:length]), body[length:]
        outputs = self.server.compute(_read(request, rest))
        binary = request.get("parameters", {}).get("binary_data_output", False)
        wanted = [output["name"] for output in request.get("outputs", [])]
        answered = {name: value for name, value in outputs.items() if name in wanted or not wanted}
        head, pieces = _written(answered, binary)
        head |= {"model_name": "tiny", "id": request.get("id", "")}
        head |= {"model_version": self.server.behavior.version}
        said = json.dumps(head).encode()
        shown, whole = self.server.behavior.body(
            str(len(said)) if binary else None, said + b"".join(pieces)
        )
        self.send(200, whole, length=shown)


def _read(request: dict[str, Any], rest: bytes) -> Arrays:
    inputs = {}
    for tensor in request["inputs"]:
        dtype = TYPES[tensor["datatype"]]
        size = tensor.get("parameters", {}).get("binary_data_size")
        if size is None:
            values = np.array(tensor["data"], dtype=dtype)
        else:
            values = np.frombuffer(rest[:size], dtype=dtype) if size else np.zeros(0, dtype=dtype)
            rest = rest[size:]
        inputs[tensor["name"]] = values.reshape(tensor["shape"])
    assert rest == b""
    return inputs


def _written(outputs: Arrays, binary: bool) -> tuple[dict[str, Any], list[bytes]]:
    tensors, pieces = [], []
    for name, value in outputs.items():
        kind = next(k for k, dtype in TYPES.items() if value.dtype == dtype)
        tensor = {"name": name, "datatype": kind, "shape": list(value.shape)}
        if binary:
            pieces.append(value.tobytes())
            tensor["parameters"] = {"binary_data_size": len(pieces[-1])}
        else:
            tensor["data"] = value.ravel().tolist()
        tensors.append(tensor)
    return {"outputs": tensors}, pieces


class _Joiner:
    """Runs what several threads ask for within a moment as one batch, as Triton does."""

    def __init__(self, run: Callable[[Arrays], Arrays]) -> None:
        self._run = run
        self._lock = threading.Lock()
        self._waiting: dict[object, list[tuple[Arrays, Future[Arrays]]]] = {}

    def __call__(self, inputs: Arrays) -> Arrays:
        key = tuple(value.shape[1:] for value in inputs.values())
        answer: Future[Arrays] = Future()
        with self._lock:
            queue = self._waiting.setdefault(key, [])
            queue.append((inputs, answer))
            is_first = len(queue) == 1
        if is_first:
            time.sleep(0.02)
            self._answer(key)
        return answer.result()

    def _answer(self, key: object) -> None:
        with self._lock:
            queue = self._waiting.pop(key)
        together = {
            name: np.concatenate([given[name] for given, _ in queue]) for name in queue[0][0]
        }
        outputs = self._run(together)
        first = 0
        for given, answer in queue:
            last = first + len(next(iter(given.values())))
            answer.set_result({name: value[first:last] for name, value in outputs.items()})
            first = last


class OipServer(ThreadingHTTPServer):
    """Serves one graph on a free port of this machine.

    Attributes:
        behavior: What it says and does.
        requests: Path and headers of each request.
    """

    daemon_threads = True

    def __init__(
        self, graph: Path, behavior: Behavior, secured: ssl.SSLContext | None = None
    ) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.scheme = "http"
        if secured is not None:
            self.scheme = "https"
            self.socket = secured.wrap_socket(self.socket, server_side=True)
        self.behavior = behavior
        self.requests: list[tuple[str, dict[str, str]]] = []
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(graph, options)
        self._run = _Joiner(self._run_graph) if behavior.joins else self._run_graph

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Pass over clients that have gone, as those that ran out of time."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    @property
    def host(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_address[1]}"

    @property
    def address(self) -> str:
        return f"{self.host}/v2/models/{self.behavior.name}"

    @property
    def description(self) -> dict[str, Any]:
        extensions = ["binary_tensor_data"] if self.behavior.binary else []
        return {"name": "small", "version": "0.1", "extensions": extensions}

    @property
    def metadata(self) -> dict[str, Any]:
        it = self.behavior
        return {
            "name": it.name,
            "versions": [it.version],
            "platform": "onnxruntime_onnx",
            "inputs": _described(self._session.get_inputs()) if it.inputs is None else it.inputs,
            "outputs": _described(self._session.get_outputs())
            if it.outputs is None
            else it.outputs,
            "parameters": dict(it.parameters),
        }

    def compute(self, inputs: Arrays) -> Arrays:
        fed = self.behavior.feed(inputs)
        kinds = {tensor.name: TYPES[NAMES[tensor.type]] for tensor in self._session.get_inputs()}
        given = {name: value.astype(kinds[name]) for name, value in fed.items()}
        return self.behavior.answer(self._run(given))

    def _run_graph(self, inputs: Arrays) -> Arrays:
        names = [output.name for output in self._session.get_outputs()]
        return dict(zip(names, self._session.run(names, inputs), strict=True))

    def asked(self) -> int:
        """Count the questions."""
        return sum(path.endswith("/infer") for path, _ in self.requests)


def _described(tensors: Any) -> list[dict[str, Any]]:
    return [
        {
            "name": tensor.name,
            "datatype": NAMES[tensor.type],
            "shape": [size if isinstance(size, int) else -1 for size in tensor.shape],
        }
        for tensor in tensors
    ]


@contextmanager
def served(
    graph: Path, *, secured: ssl.SSLContext | None = None, **behavior: Any
) -> Iterator[OipServer]:
    """Serve a graph while the block runs, over TLS where there is a context for it."""
    server = OipServer(graph, Behavior(**behavior), secured)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
