import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from checkpoints import TinyCheckpoints
from cli_runs import Program
from study_plans import lines, study, summary, write_plan
from training_runs import TrainingGround

from mixout_export.errors import EngineError
from mixout_export.files.output import partial_path
from mixout_export.stages.study import engines
from mixout_export.stages.study.engine import Job, Outcome
from mixout_export.stages.study.engines.ray import RayEngine
from mixout_export.stages.study.engines.ray_driver import Settings, Shares, Worker, shares
from mixout_export.stages.study.run import run_study
from mixout_export.study.records import CRASHED, DONE
from mixout_export.study.run_log import RunLog
from mixout_export.version import __version__

pytest.importorskip("ray")

#: Long enough that a worker can be killed in the middle of a run.
ARMS = """
[[arm]]
name = "plain"
prepare = { p = 0 }
train = { epochs = 12, save-every = 4 }

[[arm]]
name = "mixout 0.7"
train = { epochs = 12, save-every = 4 }
"""


@pytest.fixture(scope="module", autouse=True)
def _busy_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let Ray start on a machine that is busy with other tests.

    Each of its eight processes would import an optional module, which takes a second. Ray itself
    gives up if one of them has not started after 15 seconds.
    """
    folder = tmp_path_factory.mktemp("modules")
    (folder / "rfc3987_syntax.py").write_text("raise ImportError")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        patch.setattr(engines.ray, "CONNECT_TIMEOUT", 300.0)
        patch.setattr(engines.ray, "WORKER_TIMEOUT", 600.0)
        yield


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory, tiny: TinyCheckpoints) -> Path:
    folder = tmp_path_factory.mktemp("study-ray")
    return write_plan(folder, TrainingGround(folder, tiny), arms=ARMS)


def is_alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


class Killing:
    """A Ray engine with two workers, one of which is killed in the middle of a run."""

    def __init__(self, work: Path) -> None:
        self._engine = RayEngine(work=work, workers=2, threads=1, device="cpu")
        self.workers = self._engine.workers
        self._jobs: dict[str, Job] = {}
        self.processes: set[psutil.Process] = set()
        self.lost: list[str] = []

    def submit(self, job: Job) -> None:
        self._jobs[job.run.key] = job
        self._engine.submit(job)

    def wait(self, timeout: float) -> list[Outcome]:
        if not self.processes and any(self._has_checkpoint(job) for job in self._jobs.values()):
            self._kill_worker()
        outcomes = self._engine.wait(timeout)
        for outcome in outcomes:
            del self._jobs[outcome.job.run.key]
            self.lost += [outcome.error] if outcome.error is not None else []
        return outcomes

    def close(self) -> None:
        self.processes |= self._find_processes()
        self._engine.close()

    def _has_checkpoint(self, job: Job) -> bool:
        return (partial_path(job.folder) / "checkpoints").is_dir()

    def _find_processes(self) -> set[psutil.Process]:
        driver = psutil.Process(self._engine._process.pid)
        return {driver, *driver.children(recursive=True)}

    def _kill_worker(self) -> None:
        """Kill a process that is doing a job, as its title says."""
        found = self._find_processes()
        busy = [process for process in found if process.name().startswith("ray::Worker.do")]
        if busy:
            busy[0].kill()
            self.processes |= found


def results(out: Path) -> dict[str, Any]:
    """Return what counts of each run's last record."""
    kept = ("task", "arm", "seeds", "status", "metrics", "distance", "steps", "weights_sha256")
    records = RunLog(out / "runs.jsonl").latest()
    return {key: [getattr(record, name) for name in kept] for key, record in records.items()}


def test_a_killed_worker_changes_nothing(
    plan: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    engines: list[Killing] = []

    def start(_: object) -> Killing:
        engines.append(Killing(tmp_path / "ray" / "work"))
        return engines[0]

    capfd.readouterr()
    run_study(plan, tmp_path / "ray", engine=start, device="cpu")
    assert capfd.readouterr() == ("", "")
    (engine,) = engines
    (lost,) = engine.lost
    assert "the Ray worker was lost" in lost
    assert not [each for each in engine.processes if is_alive(each)]
    study(plan, tmp_path / "here")
    assert results(tmp_path / "ray") == results(tmp_path / "here")
    assert summary(tmp_path / "ray") == summary(tmp_path / "here")
    statuses = [record["status"] for record in lines(tmp_path / "ray")]
    assert sorted(statuses) == [CRASHED, *[DONE] * 4]


PROGRAM = """
import ray, sys
context = ray.init(address="local", num_cpus=1, include_dashboard=False,
    object_store_memory=100 * 1024**2, _temp_dir=sys.argv[1])
print(context.address_info["gcs_address"], flush=True)
sys.stdin.read()
"""


@contextmanager
def started_cluster() -> Iterator[str]:
    """Start a cluster in a process of its own; yield its address, or "" if it did not start."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # paths of sockets have to be short
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.communicate()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a Ray cluster on loopback."""
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # listen on loopback only
        patch.setenv("RAY_AUTH_MODE", "disabled")  # a token would be a file in the user's home
        addresses = (stack.enter_context(started_cluster()) for _ in range(3))
        yield next(address for address in addresses if address)


def test_an_existing_cluster_stays(cluster: str, tmp_path: Path) -> None:
    engine = RayEngine(work=tmp_path / "work", workers=None, threads=1, address=cluster)
    assert engine.workers == 1
    (worker,) = [each for each in psutil.process_iter() if each.name().startswith("ray::Worker")]
    engine.close()
    psutil.wait_procs([worker], timeout=10)
    assert not is_alive(worker)
    host, port = cluster.split(":")
    socket.create_connection((host, int(port))).close()
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["ray.log"]


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "there is no Ray cluster at 127.0.0.1:1 (Connection refused)"),
        ("ray://127.0.0.1:1", "'ray://127.0.0.1:1' is not HOST:PORT"),
        ("somewhere", "'somewhere' is not HOST:PORT"),
    ],
)
def test_a_wrong_address_is_refused(address: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(EngineError) as caught:
        RayEngine(work=tmp_path, workers=None, threads=1, address=address)
    assert message in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_server_that_is_no_cluster_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines.ray, "CONNECT_TIMEOUT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(EngineError, match=f"{address} has not answered for 0 seconds"):
            RayEngine(work=tmp_path, workers=None, threads=1, address=address)
    assert not multiprocessing.active_children()


def test_the_command_names_the_package_that_is_missing(
    plan: Path, tmp_path: Path, capfd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    run = Program(capfd)("study", plan, tmp_path / "out", "--engine", "ray")
    assert run.failed(1) == (
        "the Ray engine needs Ray, which is not installed; install it with "
        "pip install 'mixout-export[ray]'"
    )


def test_a_worker_has_to_see_the_folder_of_the_study(tmp_path: Path) -> None:
    seen = tmp_path / "seen.txt"
    seen.write_text("token")
    assert Worker().prepare(seen, "token", __version__) is None
    for path, token in ((seen, "another"), (tmp_path / "unseen.txt", "token")):
        problem = Worker().prepare(path, token, __version__)
        assert problem is not None
        assert problem.startswith(f"does not see {tmp_path}; choose an OUT")


def test_a_worker_has_to_have_the_same_version(tmp_path: Path) -> None:
    assert Worker().prepare(tmp_path, "", "0.0") == (
        f"has mixout-export {__version__}, expected 0.0"
    )


def settings(**values: Any) -> Settings:
    defaults = {"workers": None, "threads": 1, "device": None, "address": "host:1"}
    return Settings(work=Path(), temporary=Path(), **{**defaults, **values})


@pytest.mark.parametrize(
    ("nodes", "given", "workers", "gpus"),
    [
        ([{"CPU": 4.0}, {"CPU": 7.0}], {"threads": 2}, 5, 0.0),
        ([{"CPU": 4.0}], {"workers": 9}, 9, 0.0),
        ([{"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0}], {}, 2, 1.0),
        ([{"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0}], {"device": "cpu"}, 16, 0.0),
        ([{"CPU": 8.0, "GPU": 2.0}], {"workers": 5, "device": "cuda"}, 5, 1 / 3),
        ([{"CPU": 8.0, "GPU": 2.0}], {"workers": 1}, 1, 1.0),
        ([{"CPU": 1.0, "GPU": 4.0}], {}, 1, 1.0),
        ([{"CPU": 3.0}], {"address": None, "workers": 3, "threads": 8}, 3, 0.0),
    ],
)
def test_shares_of_a_cluster(
    nodes: list[dict[str, float]], given: dict[str, Any], workers: int, gpus: float
) -> None:
    assert shares(nodes, settings(**given)) == Shares(workers, gpus)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"device": "cuda"}, "the Ray cluster has no GPU"),
        (
            {"threads": 9},
            "each run needs 9 CPUs, .* has more than 8",
        ),
    ],
)
def test_a_cluster_without_room(given: dict[str, Any], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        shares([{"CPU": 8.0}, {"CPU": 2.0}], settings(**given))
