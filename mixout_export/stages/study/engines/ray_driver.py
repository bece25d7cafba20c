"""The process that uses Ray: it starts workers on a cluster and gives them jobs."""

import math
import os
import secrets
import shutil
import time
import traceback
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from mixout_export.errors import EngineError
from mixout_export.stages.study.engine import Job, Outcome
from mixout_export.stages.study.engines.processes import THREADS, end_with_parent
from mixout_export.version import __version__

#: Bytes of Ray's object store. Jobs and records are small.
_OBJECT_STORE = 100 * 1024**2

#: Workers that may fail to start one after the other.
_FAILED_STARTS = 3

#: Seconds for the driver to end.
CLOSE_TIMEOUT = 15.0

#: Seconds between two looks at the connection.
_TICK = 0.1

#: Seconds in which workers have to end.
_PATIENCE = 5.0

_LONGEST_REASON = 600

#: Name of the file to which Ray's output is written.
LOG = "ray.log"


@dataclass(frozen=True)
class Settings:
    """What the driver has to know; see `RayEngine`.

    `temporary` is a folder for files of a cluster that the engine starts, and `workers` is then not
    None.
    """

    work: Path
    workers: int | None
    threads: int
    device: str | None
    address: str | None
    temporary: Path

    @property
    def cpus(self) -> int:
        """CPUs of each worker, as Ray counts them. In our own cluster, there is one for each."""
        return 1 if self.address is None else self.threads


@dataclass(frozen=True)
class Connected:
    """The message that the cluster has answered.

    Attributes:
        workers: Number of workers that there will be.
    """

    workers: int


@dataclass(frozen=True)
class Ready:
    """The message that the first worker is ready."""


@dataclass(frozen=True)
class Failed:
    """The message that the engine cannot go on.

    Attributes:
        reason: A sentence for the user.
    """

    reason: str


class Worker:
    """Does jobs in a process of the cluster."""

    def pid(self) -> int:
        """Return the identifier of this process."""
        return os.getpid()

    def prepare(self, test_file: Path, content: str, version: str) -> str | None:
        """Import what jobs need, and return why this worker is of no use, or None."""
        import mixout_export.stages.study.worker  # noqa: F401  # takes seconds

        if __version__ != version:
            return f"has mixout-export {__version__}, expected {version}"
        try:
            is_same = test_file.read_text() == content
        except OSError:
            is_same = False
        if not is_same:
            return (
                f"does not see {test_file.parent}; choose an OUT on a file system that all "
                "machines of the cluster share"
            )
        return None

    def do(self, job: Job) -> Outcome:
        """Do a job."""
        from mixout_export.stages.study.worker import execute

        return Outcome(job, execute(job))


class Driver:
    """Keeps the workers of a cluster busy.

    Args:
        ray: The module, connected to a cluster.
        connection: The connection to the engine.
        settings: Settings of the engine.
    """

    def __init__(self, ray: Any, connection: Connection, settings: Settings) -> None:
        self._ray, self._connection, self._settings = ray, connection, settings
        share = shares([node["Resources"] for node in ray.nodes() if node["Alive"]], settings)
        self._workers = share.workers
        self._class = ray.remote(num_cpus=settings.cpus, num_gpus=share.gpus)(Worker)
        self._token = secrets.token_hex(16)
        self._test_file = settings.work / f"ray-{self._token}.txt"
        self._is_ready = False
        self._failed_starts = 0
        self._pids: dict[Any, int] = {}
        self._starting: dict[Any, Any] = {}
        self._busy: dict[Any, tuple[Any, Job]] = {}
        self._idle: list[Any] = []
        self._waiting: deque[Job] = deque()

    def run(self) -> None:
        """Do jobs until the engine closes the connection.

        Raises:
            EngineError: Workers cannot be started, or are of no use.
        """
        self._connection.send(Connected(self._workers))
        self._test_file.write_text(self._token)
        try:
            for _ in range(self._workers):
                self._start()
            while self._receive():
                self._assign()
                self._collect()
        finally:
            self._test_file.unlink(missing_ok=True)
            busy = [actor for actor, _ in self._busy.values()]
            for actor in [*self._starting.values(), *self._idle, *busy]:
                self._ray.kill(actor)
            self._wait_for_ends()

    def _start(self) -> None:
        actor = self._class.remote()
        ready = actor.prepare.remote(self._test_file, self._token, __version__)
        self._starting[ready] = actor

    def _receive(self) -> bool:
        """Take the jobs that have arrived. Return False once the engine wants no more."""
        try:
            while self._connection.poll():
                job = self._connection.recv()
                if job is None:
                    return False
                self._waiting.append(job)
        except (EOFError, OSError):
            return False
        return True

    def _assign(self) -> None:
        if self._waiting and self._waiting[0].stop_file.exists():
            for job in self._waiting:
                self._connection.send(Outcome(job, None))
            self._waiting.clear()
        while self._waiting and self._idle:
            actor, job = self._idle.pop(), self._waiting.popleft()
            self._busy[actor.do.remote(job)] = actor, job

    def _collect(self) -> None:
        """Wait for a moment, and handle what has ended."""
        known = [*self._starting, *self._busy]
        if not known:
            self._connection.poll(_TICK)
            return
        ended, _ = self._ray.wait(known, timeout=_TICK)
        for reference in ended:
            if reference in self._starting:
                self._started(reference, self._starting.pop(reference))
            else:
                self._connection.send(self._outcome(reference, *self._busy.pop(reference)))

    def _started(self, reference: Any, actor: Any) -> None:
        errors = self._ray.exceptions
        try:
            problem = self._ray.get(reference)
            self._pids[actor] = self._ray.get(actor.pid.remote())
        except errors.RayTaskError as error:
            problem = f"cannot do runs ({_short(error.cause)})"
        except errors.RayError as error:  # it has died
            self._failed_starts += 1
            if self._failed_starts >= _FAILED_STARTS:
                raise EngineError(f"Ray workers cannot be started: {_short(error)}") from error
            self._start()
            return
        if problem is not None:
            raise EngineError(f"a worker of the Ray cluster {problem}")
        self._failed_starts = 0
        self._idle.append(actor)
        if not self._is_ready:
            self._is_ready = True
            self._connection.send(Ready())

    def _outcome(self, reference: Any, actor: Any, job: Job) -> Outcome:
        errors = self._ray.exceptions
        try:
            outcome: Outcome = self._ray.get(reference)
        except errors.RayTaskError as error:  # the worker itself is well
            self._idle.append(actor)
            return Outcome(job, None, _short(error.cause))
        except errors.RayError as error:
            self._ray.kill(actor)  # it may be alive and only out of reach
            self._pids.pop(actor, None)
            self._start()
            return Outcome(job, None, f"the Ray worker was lost: {_short(error)}")
        self._idle.append(actor)
        return outcome

    def _wait_for_ends(self) -> None:
        """Wait until the workers of our own cluster have ended, so that they write nothing more.

        In an existing cluster they end soon, too, but may be on other machines.
        """
        deadline = time.monotonic() + _PATIENCE
        own = self._settings.address is None
        while own and any(map(_is_alive, self._pids.values())) and time.monotonic() < deadline:
            time.sleep(_TICK)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@dataclass(frozen=True)
class Shares:
    """How a cluster is divided.

    Attributes:
        workers: Number of workers.
        gpus: GPUs of each; a fraction if several share one.
    """

    workers: int
    gpus: float


def shares(nodes: Sequence[Mapping[str, float]], settings: Settings) -> Shares:
    """Divide a cluster among workers.

    Args:
        nodes: The resources of each machine, "CPU" and "GPU".
        settings: Settings of the engine.

    Raises:
        EngineError: No machine has what a worker needs.
    """
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    fitting = sum(int(node.get("CPU", 0)) // settings.cpus for node in nodes)
    if not fitting:
        most = max((int(node.get("CPU", 0)) for node in nodes), default=0)
        raise EngineError(
            f"threads: each run needs {settings.threads} CPUs, but no machine of the Ray cluster "
            f"has more than {most}; lower threads in the plan"
        )
    if settings.device == "cuda" and not gpus:
        raise EngineError("device: the Ray cluster has no GPU; leave --device out, or use cpu")
    if settings.device not in (None, "cuda") or not gpus:
        return Shares(settings.workers or fitting, 0.0)
    workers = settings.workers or min(gpus, fitting)
    return Shares(workers, 1 / max(1, math.ceil(workers / gpus)))


def drive(connection: Connection, settings: Settings) -> None:
    """Run jobs on a cluster until the other side of the connection wants no more.

    This is the main function of the driver's process.
    """
    end_with_parent(patience=CLOSE_TIMEOUT)  # in which the cluster is shut down
    if hasattr(os, "setsid"):  # Windows has none
        os.setsid()  # Ctrl-C in a terminal reaches neither this process nor a cluster started here
    settings.work.mkdir(parents=True, exist_ok=True)
    _write_output_to(settings.work / LOG)
    try:
        with _cluster(settings) as ray:
            Driver(ray, connection, settings).run()
    except EngineError as error:
        failure = Failed(str(error))
    except BaseException as error:  # Ray raises SystemExit if a cluster does not answer
        traceback.print_exc()
        failure = Failed(f"{named_cluster(settings.address)} cannot be used: {_short(error)}")
    else:
        return
    with suppress(OSError):
        connection.send(failure)


def named_cluster(address: str | None) -> str:
    """Return what messages call a cluster."""
    return "the Ray cluster" if address in (None, "auto") else f"the Ray cluster at {address}"


@contextmanager
def _cluster(settings: Settings) -> Iterator[Any]:
    """Connect to a cluster, or start one on this machine; yield the module `ray`."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    existing = _existing_cluster if settings.address is not None else _own_cluster
    with existing(settings) as options:
        import ray  # reads the environment

        try:
            _connect(ray, {"log_to_driver": False, "logging_level": "error", **options})
            yield ray
        finally:
            ray.shutdown()


def _connect(ray: Any, options: dict[str, Any]) -> None:
    """Call `ray.init`. A cluster that is started here gets a second chance.

    Ray gives each of its processes 15 seconds to start, which may be too few on a busy machine.
    """
    if options["address"] == "local":
        with suppress(Exception):
            ray.init(**options)
            return
        ray.shutdown()
    ray.init(**options)


@contextmanager
def _existing_cluster(settings: Settings) -> Iterator[dict[str, Any]]:
    """Yield the options of `ray.init` that connect to a cluster."""
    variables = dict.fromkeys(THREADS, str(settings.threads))
    yield {"address": settings.address, "runtime_env": {"env_vars": variables}}


@contextmanager
def _own_cluster(settings: Settings) -> Iterator[dict[str, Any]]:
    """Yield the options of `ray.init` that start a cluster, for this study only."""
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # on all systems: listen on loopback only
    os.environ["RAY_AUTH_MODE"] = "token"  # no other user of this machine can run code in it
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    try:
        yield {
            "address": "local",
            "num_cpus": settings.workers,
            "object_store_memory": _OBJECT_STORE,
            "include_dashboard": False,
            "_temp_dir": str(settings.temporary),
        }
    finally:  # the engine does that, too, unless it was killed
        shutil.rmtree(settings.temporary, ignore_errors=True)


def _write_output_to(path: Path) -> None:
    """Send what this process and its children write to a file. Ray prints at many places."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)


def _short(error: BaseException) -> str:
    """Return what went wrong on one line."""
    said = "" if str(error) == "None" else error  # Ray sometimes does not know yet
    text = " ".join(f"{type(error).__name__}: {said}".split()).removesuffix(":")
    return text if len(text) <= _LONGEST_REASON else text[: _LONGEST_REASON - 1] + "…"
