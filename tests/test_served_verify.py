"""`verify` against a server, which computes with onnxruntime and can be told to misbehave."""

import asyncio
import hashlib
import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from checkpoints import TinyCheckpoints
from cli_runs import Program, content
from onnx import numpy_helper
from safetensors.torch import load_file, save_file
from served_models import Handler, OipServer, served

from mixout_export.errors import ArgumentError, ParityError, ServerError
from mixout_export.export.precision import Conversion
from mixout_export.parity.result import ParityResult
from mixout_export.served import transport
from mixout_export.served.options import ServingOptions
from mixout_export.stages.onnx_export import export_onnx
from mixout_export.stages.prepare import prepare_checkpoint
from mixout_export.stages.verify import verify_checkpoints

#: Ids of `input_ids` and its like as metadata has them.
NAMES = ("input_ids", "attention_mask", "token_type_ids")


@pytest.fixture(scope="module")
def folder(tiny: TinyCheckpoints) -> Path:
    return tiny.classifier()


@pytest.fixture(scope="module")
def graph(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_onnx(folder, tmp_path_factory.mktemp("graph") / "onnx", verify=False).path


@pytest.fixture(scope="module")
def model(graph: Path) -> Path:
    return graph / "model.onnx"


@pytest.fixture
def program(capfd: pytest.CaptureFixture[str]) -> Program:
    return Program(capfd)


def verify(
    reference: Path, server: OipServer | str, *, options: dict[str, Any] | None = None, **more: Any
) -> ParityResult:
    address = server if isinstance(server, str) else server.address
    serving = ServingOptions(**{"concurrency": 4, "requests": 3, **(options or {})})
    return verify_checkpoints(reference, address, serving=serving, **more)


def reasons(result: ParityResult, *parts: str) -> str:
    """Check that parity does not hold, and that one sentence has all parts; return it."""
    assert not result.holds
    found = [text for text in result.reasons() if all(part in text for part in parts)]
    assert found, result.reasons()
    return found[0]


def tensors(names: tuple[str, ...], datatype: str, shape: list[int]) -> list[dict[str, Any]]:
    return [{"name": name, "datatype": datatype, "shape": shape} for name in names]


def older(model: Path, out: Path, change: float = 1e-3) -> Path:
    """Write a graph whose head has other weights."""
    document = onnx.load(model)
    weight = max(document.graph.initializer, key=lambda tensor: len(tensor.dims) == 1)
    values = numpy_helper.to_array(weight) + np.float32(change)
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(document, out)
    return out


class Crowded:
    """Tells whether requests of several clients are in work."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._busy = 0

    def __call__(self) -> bool:
        with self._lock:
            self._busy += 1
        time.sleep(0.02)  # long enough for another client to come
        with self._lock:
            self._busy -= 1
            return self._busy > 0


def answers_before() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return what gives each of several clients at once the answer to the question before."""
    crowded, lock, last = Crowded(), threading.Lock(), {}

    def answer(outputs: dict[str, Any]) -> dict[str, Any]:
        is_crowded = crowded()
        with lock:
            before, last["it"] = last.get("it", outputs), outputs
        return before if is_crowded else outputs

    return answer


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# What holds


@pytest.mark.parametrize("binary", [True, False])
def test_a_server_of_the_same_graph_is_at_parity(graph: Path, model: Path, binary: bool) -> None:
    with served(model, binary=binary) as server:
        result = verify(graph, server)
        paths = {path for path, _ in server.requests}
    assert result.holds, result.reasons()
    assert result.max_abs == 0.0
    assert result.weights is None
    assert result.serving is not None
    assert result.serving.protocol == ("binary" if binary else "json")
    assert (result.serving.server, result.serving.versions) == ("small 0.1", ("1",))
    assert result.serving.graph == "not shown"
    concurrency = result.serving.concurrency
    assert concurrency is not None
    assert (concurrency.clients, concurrency.requests, concurrency.own) == (4, 12, 12)
    assert (concurrency.mixed_up, concurrency.changed, concurrency.lost, concurrency.retried) == (
        0,
        0,
        0,
        0,
    )
    assert concurrency.latency is not None
    assert 0 < concurrency.latency.p50 <= concurrency.latency.p99 <= concurrency.latency.longest
    assert result.coverage is not None
    assert result.coverage.vocabulary == result.coverage.vocabulary_size
    assert all(path.startswith("/v2") for path in paths)


def test_a_folder_is_compared_with_its_graph_on_a_server(folder: Path, model: Path) -> None:
    with served(model) as server:
        result = verify(folder, server)
    assert result.holds, result.reasons()
    assert result.outputs[0].elements > 0
    assert result.max_abs < 1e-5
    assert result.outputs[0].agreement == 1.0


def test_a_version_may_be_asked_for(graph: Path, model: Path) -> None:
    with served(model, version="4") as server:
        assert verify(graph, f"{server.address}/versions/4").holds
        with pytest.raises(ServerError, match="answered HTTP 404"):
            verify(graph, f"{server.address}/versions/3")


def test_the_users_own_data_gives_metrics_on_both_sides(
    graph: Path, folder: Path, model: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data.tsv"
    rows = "".join(f"a good word number {n}\t{n % 3}\n" for n in range(9))
    data.write_text("sentence\tlabel\n" + rows)
    with served(model) as server:
        result = verify(folder, server, data=data)
    assert result.holds, result.reasons()
    assert result.metrics is not None
    assert result.outputs[0].on_data
    for ours, theirs in result.metrics.values():
        assert ours == theirs


def test_batches_are_split_where_the_server_takes_a_few_rows_only(graph: Path, model: Path) -> None:
    most = 0

    def feed(inputs: dict[str, Any]) -> dict[str, Any]:
        nonlocal most
        most = max(most, *(len(value) for value in inputs.values()))
        return inputs

    with served(model, config={"max_batch_size": 3}, feed=feed) as server:
        result = verify(graph, server)
    assert result.holds, result.reasons()
    assert most == 3
    assert result.serving is not None
    assert any("at most 3 rows" in note for note in result.serving.notes)


@pytest.mark.parametrize("binary", [True, False])
def test_ids_are_sent_as_int32_where_the_server_takes_those(
    graph: Path, model: Path, binary: bool
) -> None:
    seen: set[str] = set()

    def feed(inputs: dict[str, Any]) -> dict[str, Any]:
        seen.update(str(value.dtype) for value in inputs.values())
        return inputs

    inputs = tensors(NAMES, "INT32", [-1, -1])
    with served(model, inputs=inputs, feed=feed, binary=binary) as server:
        result = verify(graph, server)
    assert result.holds, result.reasons()
    assert seen == {"int32"}


def test_a_server_that_says_nothing_of_its_tensors_is_tried(graph: Path, model: Path) -> None:
    with served(model, inputs=[], outputs=[]) as server:
        result = verify(graph, server)
    assert result.holds, result.reasons()
    assert result.serving is not None
    assert any("does not describe the model's inputs" in note for note in result.serving.notes)


def test_outputs_in_half_precision_are_judged_as_such(graph: Path, model: Path) -> None:
    def halve(outputs: dict[str, Any]) -> dict[str, Any]:
        return {name: value.astype(np.float16) for name, value in outputs.items()}

    said = tensors(("logits",), "FP16", [-1, 3])
    with served(model, answer=halve, outputs=said) as server:
        result = verify(graph, server)
    assert result.holds, result.reasons()
    assert result.precision == "fp16"
    assert 1e-5 < result.max_abs < 5e-3


def test_a_connection_that_is_cut_now_and_then_is_made_again(graph: Path, model: Path) -> None:
    count = 0

    def respond(handler: Handler) -> bool:
        nonlocal count
        count += 1
        if count % 7 == 0:
            handler.close_connection = True
            handler.connection.close()
            return True
        return False

    with served(model, respond=respond) as server:
        result = verify(graph, server)
    assert result.holds, result.reasons()
    assert result.serving is not None
    assert result.serving.concurrency is not None
    assert result.serving.concurrency.retried > 0


# What a server says of itself


def test_the_hash_that_a_server_shows_is_compared(graph: Path, folder: Path, model: Path) -> None:
    source = onnx.load(model).metadata_props
    recorded = next(entry.value for entry in source if entry.key == "source_sha256")
    shown = {"model_sha256": sha256(model), "source_sha256": recorded}
    with served(model, parameters=shown) as server:
        for reference, found in ((graph, "this graph"), (folder, "these weights")):
            result = verify(reference, server)
            assert result.holds, result.reasons()
            assert result.serving is not None
            assert result.serving.graph == found
    other = {**shown, "model_sha256": "0" * 64}
    with served(model, parameters=other) as server:
        result = verify(graph, server)
    assert result.holds, result.reasons()
    assert result.serving is not None
    assert result.serving.graph == "another graph of these weights"


@pytest.mark.parametrize("where", ["metadata", "configuration"])
def test_an_older_version_is_named_by_its_hash_even_if_its_numbers_pass(
    graph: Path, model: Path, tmp_path: Path, where: str
) -> None:
    old = older(model, tmp_path / "old.onnx", 1e-7)
    shown = {"model_sha256": sha256(old)}
    config = {"parameters": {name: {"string_value": value} for name, value in shown.items()}}
    said: dict[str, Any] = {"parameters": shown} if where == "metadata" else {"config": config}
    with served(old, **said) as server:
        result = verify(graph, server)
    assert all(output.holds for output in result.outputs)
    sentence = reasons(result, "serves another version of the model (its graph has SHA-256")
    assert f"{sha256(old)}, expected {sha256(model)}" in sentence


def test_an_older_version_of_the_weights_is_named(folder: Path, model: Path) -> None:
    with served(model, parameters={"source_sha256": "1" * 64}) as server:
        result = verify(folder, server)
    reasons(result, "serves another version", "it was made from weights with SHA-256 1111")


def test_without_a_hash_numbers_tell_and_the_sentence_says_so(
    graph: Path, model: Path, tmp_path: Path
) -> None:
    with served(older(model, tmp_path / "old.onnx", 0.01)) as server:
        result = verify(graph, server)
    reasons(result, "output 'logits' differs by")
    reasons(result, "does not show which graph it serves; it may be another version")


def test_a_server_that_shows_the_right_hash_and_computes_another_graph_is_named(
    graph: Path, model: Path, tmp_path: Path
) -> None:
    old = older(model, tmp_path / "old.onnx", 0.01)
    with served(old, parameters={"model_sha256": sha256(model)}) as server:
        result = verify(graph, server)
    reasons(result, "shows the hash of the right graph but computes something else")


def test_a_mixout_checkpoint_has_no_hash_that_a_server_could_show(
    folder: Path, model: Path, tmp_path: Path
) -> None:
    prepare_checkpoint(str(folder), tmp_path / "prepared")
    with served(model, parameters={"source_sha256": "1" * 64}) as server:
        result = verify(tmp_path / "prepared", server)
    assert result.holds, result.reasons()
    assert result.serving is not None
    assert result.serving.graph == "not comparable"


def test_a_missing_input_is_named(graph: Path, model: Path) -> None:
    """A server that makes the segments up is a common mistake, and right for single texts."""

    def feed(inputs: dict[str, Any]) -> dict[str, Any]:
        return {**inputs, "token_type_ids": np.zeros_like(inputs["input_ids"])}

    with served(model, inputs=tensors(NAMES[:2], "INT64", [-1, -1]), feed=feed) as server:
        result = verify(graph, server)
    reasons(result, "input 'token_type_ids'", server.address, "does not take it")
    reasons(result, "output 'logits' differs by")


@pytest.mark.parametrize(
    ("metadata", "parts"),
    [
        ({"outputs": tensors(("scores",), "FP32", [-1, 3])}, ("gives scores, expected logits",)),
        ({"outputs": tensors(("logits",), "INT64", [-1, 3])}, ("'logits'", "is INT64, expected")),
        ({"outputs": tensors(("logits",), "FP32", [-1, 2])}, ("[any, 2], expected [any, 3]",)),
        (
            {"outputs": tensors(("logits",), "FP32", [-1, 3, 1])},
            ("with an additional axis of size 1",),
        ),
        ({"outputs": tensors(("logits",), "FP32", [-1])}, ("[any], expected 2 axes",)),
        ({"inputs": tensors(NAMES, "FP32", [-1, -1])}, ("'input_ids'", "is FP32, expected INT32")),
        ({"inputs": tensors(NAMES, "BYTES", [-1])}, ("'input_ids'", "is BYTES, expected INT32")),
        ({"inputs": tensors(NAMES, "INT64", [-1])}, ("has shape [any], expected 2 axes",)),
        ({"inputs": tensors(("INPUT__0",), "INT64", [-1, -1])}, ("'input_ids'", "not take it")),
        ({"parameters": {"labels": '["a", "b", "c"]'}}, ("labels: got a, b, c, expected LABEL_0",)),
        ({"parameters": {"labels": ["a", "b"]}}, ("labels: got a, b, expected LABEL_0",)),
        ({"parameters": {"labels": ["a\n\x1b[31m", "b"]}}, ("labels: got a ⟨U+001B⟩[31m, b, exp",)),
        ({"parameters": {"labels": ["x" * 999] * 3000}}, ("labels: got 3000 labels, expected 3",)),
        ({"inputs": tensors(NAMES, "INT64", [10**9, 16])}, ("batches of 1000000000 only",)),
        ({"inputs": tensors(NAMES, "INT64", [-1, 10**6])}, ("sequences of 1000000 tokens only",)),
        (
            {"inputs": tensors(tuple(f"i{n}" for n in range(20_000)), "INT64", [-1, -1])},
            ("takes 19992 more that the reference does not",),
        ),
        ({"inputs": tensors(("a\n" + "x" * 3000,), "INT64", [-1, -1])}, ("input 'a xxx", "xx…'")),
    ],
)
def test_names_types_and_shapes_are_compared(
    graph: Path, model: Path, metadata: dict[str, Any], parts: tuple[str, ...]
) -> None:
    with served(model, **metadata) as server:
        result = verify(graph, server)
    reasons(result, *parts)


@pytest.mark.parametrize("size", ["9" * 40, 1 << 31, 1.5, None, "many"])
def test_a_size_that_is_none_is_named(graph: Path, model: Path, size: object) -> None:
    shape: Any = [size, -1]
    with (
        served(model, inputs=tensors(NAMES, "INT64", shape)) as server,
        pytest.raises(ServerError, match=r"'input_ids' has shape .* expected a list of sizes"),
    ):
        verify(graph, server)


def test_a_page_where_a_configuration_would_be_is_passed_over(graph: Path, model: Path) -> None:
    def respond(handler: Handler) -> bool:
        if handler.path.endswith("/config"):
            handler.send(200, b"<html>not found</html>")
        return handler.path.endswith("/config")

    with served(model, respond=respond) as server:
        assert verify(graph, server).holds


def test_numbers_that_come_as_texts_are_refused(graph: Path, model: Path) -> None:
    def body(header: str | None, whole: bytes) -> tuple[str | None, bytes]:
        said = json.loads(whole)
        said["outputs"][0]["data"] = [str(value) for value in said["outputs"][0]["data"]]
        return None, json.dumps(said).encode()

    with (
        served(model, binary=False, body=body) as server,
        pytest.raises(ServerError, match=r"holds texts, expected numbers of type FP32"),
    ):
        verify(graph, server)


def test_a_server_of_one_shape_is_asked_in_it_and_named(graph: Path, model: Path) -> None:
    shapes = set()

    def feed(inputs: dict[str, Any]) -> dict[str, Any]:
        shapes.update(value.shape for value in inputs.values())
        return inputs

    with served(model, inputs=tensors(NAMES, "INT64", [4, 16]), feed=feed) as server:
        result = verify(graph, server)
    assert shapes == {(4, 16)}
    assert all(output.holds for output in result.outputs)
    reasons(result, "'input_ids'", "takes batches of 4 only")
    with served(model, inputs=tensors(NAMES, "INT64", [-1, 16])) as server:
        result = verify(graph, server)
    reasons(result, "'token_type_ids'", "takes sequences of 16 tokens only")


def test_labels_of_a_file_on_the_server_are_compared(graph: Path, model: Path) -> None:
    """Triton's classification extension returns "value:class:label"."""
    names = ["LABEL_2", "LABEL_1", "LABEL_0"]

    def respond(handler: Handler) -> bool:
        if b'"classification": 3' not in handler.body:
            return False
        data = [f"0.{9 - index}:{index}:{name}" for index, name in enumerate(names)]
        output = {"name": "logits", "datatype": "BYTES", "shape": [1, 3], "data": data}
        handler.send(200, {"outputs": [output]})
        return True

    config = {"output": [{"name": "logits", "label_filename": "labels.txt"}]}
    with served(model, config=config, respond=respond) as server:
        result = verify(graph, server)
        reasons(result, "labels: in the file of", "got LABEL_2, LABEL_1, LABEL_0, expected LABEL_0")
        names.reverse()
        assert verify(graph, server).holds


# Answers that are not right


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda value: value + np.float32(1e-3), ("differs by up to 0.001",)),
        (lambda value: value[:, ::-1].copy(), ("differs by",)),
        (lambda value: value[..., None], ("has shape", "1), expected")),
        (lambda value: value[:, :2].copy(), ("has shape", "2), expected")),
        (lambda value: np.full_like(value, np.nan), ("NaN values",)),
    ],
)
def test_wrong_numbers_and_shapes_are_no_parity(
    graph: Path, model: Path, change: Callable[[Any], Any], parts: tuple[str, ...]
) -> None:
    def answer(outputs: dict[str, Any]) -> dict[str, Any]:
        return {name: change(value) for name, value in outputs.items()}

    with served(model, answer=answer) as server:
        reasons(verify(graph, server), "output 'logits'", *parts)


def test_answers_that_are_mixed_up_between_clients_are_caught(graph: Path, model: Path) -> None:
    with served(model, answer=answers_before()) as server:
        result = verify(graph, server, options={"requests": 6})
    assert result.serving is not None
    assert result.serving.concurrency is not None
    assert result.serving.concurrency.mixed_up > 0
    assert result.serving.concurrency.own + result.serving.concurrency.mixed_up == 24
    assert all(output.holds for output in result.outputs)
    reasons(result, "of 24 requests by 4 clients at once got an answer to other inputs")


def test_an_answer_with_anothers_identity_is_caught(graph: Path, model: Path) -> None:
    def body(header: str | None, whole: bytes) -> tuple[str | None, bytes]:
        said = json.loads(whole)
        return None, json.dumps({**said, "id": "another"}).encode()

    with served(model, binary=False, body=body) as server, pytest.raises(ParityError) as raised:
        verify(graph, server)
    assert "with the answer to 'another'" in str(raised.value)


def test_answers_that_are_off_only_in_a_crowd_are_caught(graph: Path, model: Path) -> None:
    crowded = Crowded()

    def answer(outputs: dict[str, Any]) -> dict[str, Any]:
        off = np.float32(2e-3 if crowded() else 0)
        return {name: value + off for name, value in outputs.items()}

    with served(model, answer=answer) as server:
        result = verify(graph, server)
    reasons(result, "got another answer than the same inputs alone")


@pytest.fixture(scope="module")
def int8(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("graph") / "int8"
    return export_onnx(folder, out, conversion=Conversion("int8"), verify=False).path


def test_int8_requests_that_a_server_joins_are_no_fault(folder: Path, tmp_path: Path) -> None:
    """The rows of a batch share a scale, which moves answers that lie close together."""
    alike = Path(shutil.copytree(folder, tmp_path / "alike"))
    tensors = load_file(alike / "model.safetensors")
    tensors["bert.embeddings.word_embeddings.weight"] *= 0.02
    save_file(tensors, alike / "model.safetensors", metadata={"format": "pt"})
    conversion = Conversion("int8")
    graph = export_onnx(alike, tmp_path / "onnx", conversion=conversion, verify=False).path
    with served(graph / "model.onnx", joins=True) as server:
        result = verify(graph, server, options={"concurrency": 16, "requests": 8})
    assert result.holds, result.reasons()
    assert result.serving is not None
    assert result.serving.concurrency is not None
    assert result.serving.concurrency.own == 128
    assert result.serving.concurrency.too_alike > 0


def test_answers_of_int8_that_are_mixed_up_are_caught(int8: Path) -> None:
    with served(int8 / "model.onnx", answer=answers_before()) as server:
        result = verify(int8, server, options={"concurrency": 16, "requests": 8})
    reasons(result, "got an answer to other inputs")


def test_answers_that_are_lost_in_a_crowd_are_counted(graph: Path, model: Path) -> None:
    crowded = Crowded()

    def respond(handler: Handler) -> bool:
        is_refused = handler.command == "POST" and crowded()
        if is_refused:
            handler.send(503, {"error": "too many"})
        return is_refused

    with served(model, respond=respond) as server:
        result = verify(graph, server)
    sentence = reasons(result, "of 12 requests by 4 clients at once got no answer")
    assert "answered HTTP 503" in sentence
    assert "too many" in sentence


def test_a_server_that_dies_in_a_crowd_is_given_up_soon(
    graph: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "FIRST_WAIT", 0.001)
    dead = threading.Event()

    def respond(handler: Handler) -> bool:
        if dead.is_set():
            handler.close_connection = True
            handler.connection.close()
        return dead.is_set()

    def answer(outputs: dict[str, Any]) -> dict[str, Any]:
        if dead_after is not None and server.asked() >= dead_after:
            dead.set()
        return outputs

    dead_after = None
    with served(model, respond=respond, answer=answer) as server:
        verify(graph, server)
        dead_after = 2 * server.asked() - 6  # within the second run's crowd, of 12
        result = verify(graph, server, options={"requests": 1000})
        asked = server.asked()
    assert result.serving is not None
    concurrency = result.serving.concurrency
    assert concurrency is not None
    assert 0 < concurrency.own < 20
    assert concurrency.own + concurrency.lost == 4000
    assert asked < 2 * dead_after
    assert "cannot be reached" in reasons(result, "of 4000 requests by 4 clients at once got no")


def test_a_server_that_changes_its_version_meanwhile_is_named(graph: Path, model: Path) -> None:
    with served(model) as server:

        def answer(outputs: dict[str, Any]) -> dict[str, Any]:
            server.behavior.version = "1" if server.asked() < 5 else "2"
            return outputs

        server.behavior.answer = answer
        result = verify(graph, server)
    reasons(result, "answers came from several versions of the model: 1, 2")


# What could not be done


def broken(*, body: Any = None, status: int = 200) -> Callable[[Handler], bool]:
    """Return a response to every question."""

    def respond(handler: Handler) -> bool:
        if handler.command == "GET":
            return False
        handler.send(status, body)
        return True

    return respond


def cut(header: str | None, whole: bytes) -> tuple[str | None, bytes]:
    return header, whole[:-3]


def mistyped(outputs: dict[str, Any]) -> dict[str, Any]:
    return {name: value.astype(np.int32) for name, value in outputs.items()}


@pytest.mark.parametrize(
    ("behavior", "code", "parts"),
    [
        ({"respond": broken(status=500, body={"error": "no memory"})}, 1, ("500", "no memory")),
        ({"respond": broken(body=b"<html>")}, 1, ("is not JSON",)),
        ({"respond": broken(body={"outputs": []})}, 1, ("lacks output 'logits'",)),
        ({"body": cut}, 1, ("was cut off",)),
        ({"inputs": "many"}, 1, ("the metadata's tensors are 'many'",)),
        ({"inputs": [{"name": "input_ids"}]}, 1, ("without a name or datatype",)),
        ({"inputs": tensors(NAMES, "INT64", "x")}, 1, ("has shape 'x'",)),  # type: ignore[arg-type]
        ({"answer": mistyped}, 1, ("output 'logits'", "INT32")),
    ],
)
def test_what_the_protocol_does_not_allow_ends_in_one_sentence(
    graph: Path,
    model: Path,
    program: Program,
    behavior: dict[str, Any],
    code: int,
    parts: tuple[str, ...],
) -> None:
    with served(model, **behavior) as server:
        program("verify", graph, server.address).failed(code, "/v2/models/tiny", *parts)


def test_a_slow_server_ends_in_one_sentence(graph: Path, model: Path, program: Program) -> None:
    stop = threading.Event()

    def respond(handler: Handler) -> bool:
        return handler.command == "POST" and stop.wait(20) is None

    with served(model, respond=respond) as server:
        run = program("verify", graph, server.address, "--timeout", 0.3)
        stop.set()
    run.failed(1, "did not answer within 0.3 s")


def test_a_model_that_is_not_there_or_not_ready(graph: Path, model: Path, program: Program) -> None:
    def respond(handler: Handler) -> bool:
        if handler.path.endswith("/ready"):
            handler.send(400, b"")
            return True
        return False

    with served(model, respond=respond) as server:
        program("verify", graph, f"{server.host}/v2/models/none").failed(1, "404", "unknown")
        program("verify", graph, server.address).failed(1, "is not ready")


def test_a_redirect_to_another_host_is_refused_and_never_followed(
    graph: Path, model: Path, program: Program
) -> None:
    with served(model) as other:

        def respond(handler: Handler) -> bool:
            handler.send_response(302)
            handler.send_header("Location", f"{other.host}{handler.path}")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return True

        with served(model, respond=respond) as server:
            program("verify", graph, server.address).failed(1, f"redirects to {other.host}/v2")
        assert other.requests == []


# The program


def test_the_program_reports_in_text_json_and_a_page(
    graph: Path, model: Path, program: Program, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    few = ("--concurrency", 3, "--requests", 2)
    with served(model, parameters={"model_sha256": sha256(model)}) as server:
        text = program("verify", graph, server.address, *few, "--report", page).done().out
        said = program("verify", graph, server.address, *few, "--json").done().json
    assert "not compared, because a server does not show them" in text
    assert "small 0.1, onnxruntime_onnx, model version 1, over binary" in text
    assert "the server reports the SHA-256 of the reference's graph" in text
    assert "6 of 6 got their own answer, 0 got a wrong answer, 0 got no answer" in text
    assert "p50" in text
    assert "answers per second" in text
    assert (said["holds"], said["weights"], said["candidate"]) == (True, None, server.address)
    concurrency = said["serving"]["crowd"]
    assert (concurrency["clients"], concurrency["own"], concurrency["lost"]) == (3, 6, 0)
    assert set(concurrency["latency"]) == {"p50", "p90", "p99", "longest"}
    shown = page.read_text("utf-8")
    assert '<h2 id="serving">Serving</h2>' in shown
    assert "99th percentile" in shown
    assert "weights found" not in shown


def test_a_failure_is_reported_with_exit_code_3(
    graph: Path, model: Path, program: Program, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    behavior = {"parameters": {"model_sha256": "0" * 64}}
    with served(older(model, tmp_path / "old.onnx", 0.1), **behavior) as server:
        run = program("verify", graph, server.address, "--report", page)
    assert (run.code, run.err) == (3, "")
    assert "parity does NOT hold" in run.out
    assert "serves another version of the model" in run.out
    assert "serves another version of the model" in page.read_text("utf-8")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--self-test",), ("--self-test: puts faults into copies",)),
        (("--drift",), ("--drift: compares every module",)),
        (("--timeout", "0"), ("--timeout: got 0.0",)),
        (("--concurrency", "0"), ("--concurrency: got 0",)),
        (("--requests", "-1"), ("--requests: got -1",)),
        (("--protocol", "grpc"), ("--protocol: got grpc", "with the gRPC port")),
    ],
)
def test_options_that_do_not_go_with_a_server_are_refused_before_it_is_asked(
    graph: Path, model: Path, program: Program, arguments: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    with served(model) as server:
        program("verify", graph, server.address, *arguments).failed(2, *parts)
        assert server.requests == []


def test_a_servers_options_are_refused_without_one(graph: Path, program: Program) -> None:
    program("verify", graph, graph, "--timeout", 3).failed(2, "is not a server's address")


def test_a_server_is_no_reference(graph: Path, model: Path) -> None:
    with pytest.raises(ArgumentError, match="can only be the CANDIDATE"):
        verify_checkpoints("http://127.0.0.1:1/v2/models/m", graph)


def test_a_server_is_compared_in_a_notebook_too(graph: Path, model: Path) -> None:
    """There an event loop is running already."""

    async def cell() -> ParityResult:
        return verify(graph, server)

    with served(model) as server:
        assert asyncio.run(cell()).holds


def test_nothing_is_written_into_the_reference(graph: Path, model: Path) -> None:
    before = content(graph)
    with served(model) as server:
        verify(graph, server)
    assert content(graph) == before
