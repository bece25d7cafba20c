"""Triton and MLServer serve what `bundle` writes, and `verify` sees whether they do."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import mlserver_server
import pytest
import triton_server
from checkpoints import TinyCheckpoints
from processes import Served, needs
from stations import NAME, SENTENCES, Stations

from mixout_export.bundling.plan import BundleOptions
from mixout_export.parity.result import ParityResult
from mixout_export.served.options import Protocol, ServingOptions
from mixout_export.stages.bundle import bundle_onnx
from mixout_export.stages.onnx_export import export_onnx
from mixout_export.stages.verify import verify_checkpoints

pytestmark = [pytest.mark.servers, pytest.mark.real]

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

Start = Callable[[Path, Path], AbstractContextManager[Served]]

SERVERS: dict[str, tuple[Start, Path]] = {
    "triton": (triton_server.triton, triton_server.ENVIRONMENT),
    "mlserver": (mlserver_server.mlserver, mlserver_server.ENVIRONMENT),
}


def check(
    reference: Path,
    address: str,
    protocol: Protocol | None = None,
    *,
    requests: int = 8,
    name: str = NAME,
) -> ParityResult:
    options = ServingOptions(protocol=protocol, requests=requests)
    return verify_checkpoints(reference, f"{address}/v2/models/{name}", serving=options)


@pytest.fixture(scope="module", params=SERVERS)
def kind(request: pytest.FixtureRequest) -> str:
    needs(SERVERS[request.param][1])
    return str(request.param)


@pytest.fixture(scope="module")
def server(
    kind: str, stations: Stations, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    start, _ = SERVERS[kind]
    bundle = stations.bundle(kind)
    with start(bundle, tmp_path_factory.mktemp(kind)) as served:
        yield served


@pytest.fixture(scope="module")
def generator(
    kind: str, tiny: TinyCheckpoints, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, Served]]:
    """A language model on a server, with the folder that it comes from."""
    work = tmp_path_factory.mktemp(f"{kind}-generator")
    folder = tiny.folder("gpt2", "LMHeadModel")
    export_onnx(folder, work / "onnx", verify=False)
    bundle_onnx(work / "onnx", work / NAME, BundleOptions(kind, NAME))
    with SERVERS[kind][0](work / NAME, work) as served:
        yield folder, served


def test_the_trained_model_is_what_is_served(server: Served, stations: Stations) -> None:
    result = check(stations.collapsed, server.http)
    assert result.passed, result.reasons()
    assert result.max_abs <= 1e-5
    assert result.serving is not None
    assert result.serving.graph == "these weights"
    assert result.serving.versions == ("1",)


def test_the_graph_is_told_by_its_hash(server: Served, stations: Stations) -> None:
    result = check(stations.graph(), server.http)
    assert result.passed, result.reasons()
    assert result.serving is not None
    assert result.serving.graph == "this graph"


@pytest.mark.parametrize("protocol", ["json", "grpc"])
def test_each_protocol_gives_the_same_numbers(
    protocol: Protocol, server: Served, stations: Stations
) -> None:
    result = check(stations.collapsed, getattr(server, protocol, server.http), protocol)
    assert result.passed, result.reasons()
    assert result.max_abs <= 1e-5
    assert result.serving is not None
    assert result.serving.protocol == protocol


def test_16_clients_get_their_own_answers(server: Served, stations: Stations) -> None:
    result = check(stations.graph(), server.http, requests=200)
    assert result.serving is not None
    concurrency = result.serving.concurrency
    assert concurrency is not None
    assert (concurrency.clients, concurrency.requests) == (16, 3200)
    assert (concurrency.own, concurrency.mixed_up, concurrency.changed, concurrency.lost) == (
        3200,
        0,
        0,
        0,
    )
    assert concurrency.too_alike == 0


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_precisions_are_served_side_by_side(
    precision: str, server: Served, stations: Stations
) -> None:
    for reference in (stations.collapsed, stations.graph(precision)):
        result = check(reference, server.http, name=f"{NAME}_{precision}", requests=50)
        assert result.passed, result.reasons()
        assert result.precision == precision
    assert result.max_abs == 0.0  # the very graph


@pytest.mark.parametrize("protocol", [None, "json", "grpc"])
def test_a_language_model_generates_through_its_cache(
    protocol: Protocol | None,
    generator: tuple[Path, Served],
) -> None:
    reference, served = generator
    address = served.grpc if protocol == "grpc" else served.http
    for name in (NAME, f"{NAME}_with_past"):
        result = check(reference, address, protocol, name=name)
        assert result.passed, result.reasons()
        assert result.max_abs <= 1e-5
    assert result.generation is not None
    assert result.generation.with_cache is not None
    assert result.generation.with_cache.flips == 0


def test_an_older_version_is_named(kind: str, stations: Stations, tmp_path: Path) -> None:
    start, _ = SERVERS[kind]
    with start(stations.bundle(kind, older=True), tmp_path) as served:
        result = check(stations.collapsed, served.http)
    assert not result.passed
    assert result.serving is not None
    assert result.serving.graph == "another version"
    assert "version" in " ".join(result.reasons())


def test_the_example_asks_triton(stations: Stations, tmp_path: Path) -> None:
    needs(triton_server.ENVIRONMENT)
    repository = stations.bundle("triton")
    with triton_server.triton(repository, tmp_path) as served:
        command = [
            triton_server.ENVIRONMENT / "bin" / "python",
            EXAMPLES / "serve_with_triton.py",
            repository / NAME,
            f"--url={served.http.removeprefix('http://')}",
            *SENTENCES[:3],
        ]
        done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for line, answer in zip(done.stdout.splitlines(), stations.answers(), strict=False):
        label, score, _ = line.split("  ", 2)
        assert label == answer.label
        assert float(score) == pytest.approx(answer.score, abs=1e-5)
    assert done.stdout.count("\n") == 3
