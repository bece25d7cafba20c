"""The engine that runs jobs on the machines of a Ray cluster.

Ray is used in a process of its own, the driver (`ray_driver`). Ray would otherwise replace this
process's signal handlers, print to its output, and end it when the cluster is lost. The driver can
also be ended when Ray waits too long.
"""

import importlib.util
import multiprocessing
import shutil
import socket
import tempfile
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import wait
from pathlib import Path

from mixout_export.errors import EngineError
from mixout_export.stages.study.engine import Job, Outcome
from mixout_export.stages.study.engines.local import default_workers
from mixout_export.stages.study.engines.processes import environment, no_interrupts
from mixout_export.stages.study.engines.ray_driver import (
    CLOSE_TIMEOUT,
    LOG,
    Connected,
    Failed,
    Ready,
    Settings,
    drive,
    named_cluster,
)

#: Seconds in which a port has to answer, a cluster, and its first worker.
_PORT_TIMEOUT = 10.0
CONNECT_TIMEOUT = 120.0
WORKER_TIMEOUT = 180.0

#: Seconds in which a driver that is not connected has to end.
_PATIENCE = 2.0

#: Characters of the folder of temporary files. Ray adds about 70, and sockets allow 107 in all.
_LONGEST_FOLDER = 25

Message = Connected | Ready | Failed | Outcome


class RayEngine:
    """Runs jobs on a Ray cluster, in workers that are started once and do many jobs.

    Args:
        work: The folder in which runs work. All machines of the cluster have to see it.
        workers: Number of workers; None takes one per GPU, or as many as CPU cores allow.
        threads: CPU threads of each.
        device: Device of the runs; None takes a GPU if the cluster has one.
        address: Address of a cluster that is running, HOST:PORT or "auto"; None starts a cluster on
            this machine, which ends with the engine.

    Raises:
        EngineError: Ray is not installed, the cluster cannot be reached, or its workers cannot be
            started or do not see `work`.
    """

    def __init__(
        self,
        *,
        work: Path,
        workers: int | None,
        threads: int,
        device: str | None = None,
        address: str | None = None,
    ) -> None:
        if importlib.util.find_spec("ray") is None:
            raise EngineError(
                "the Ray engine needs Ray, which is not installed; install it with "
                "pip install 'mixout-export[ray]'"
            )
        if address is None:
            workers = workers or default_workers(threads=threads, device=device)
        else:
            _check_address(address)
        self._address = address
        self._log = work / LOG
        self._jobs: dict[tuple[str, int], Job] = {}
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._temporary = tempfile.mkdtemp(prefix="ray-", dir=_short_folder())
        settings = Settings(
            work.absolute(), workers, threads, device, address, Path(self._temporary)
        )
        self._process = context.Process(target=drive, args=(theirs, settings), daemon=True)
        with environment(threads), no_interrupts():
            self._process.start()
        theirs.close()  # so that reading from it ends when the driver ends
        self._is_connected = False
        try:
            self.workers = self._start()
        except BaseException:
            self.close()
            raise

    def submit(self, job: Job) -> None:
        """Start a job, or keep it until a worker has none."""
        self._jobs[job.run.key, job.attempt] = job
        self._send(replace(job, work=job.work.absolute()))

    def wait(self, timeout: float) -> list[Outcome]:
        """Return the jobs that have ended since the last call, after so many seconds at most.

        Raises:
            EngineError: The cluster is lost.
        """
        outcomes = []
        wait([self._connection, self._process.sentinel], timeout)
        while (message := self._receive(0)) is not None:
            if isinstance(message, Failed):
                raise EngineError(message.reason)
            if isinstance(message, Outcome):
                job = self._jobs.pop((message.job.run.key, message.job.attempt))
                outcomes.append(Outcome(job, message.record, message.error))
        return outcomes

    def close(self) -> None:
        """End the workers, and the cluster if it was started here. Jobs in flight are lost."""
        self._send(None)
        self._process.join(CLOSE_TIMEOUT if self._is_connected else _PATIENCE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._connection.close()
        shutil.rmtree(self._temporary, ignore_errors=True)

    def _start(self) -> int:
        """Wait until the first worker is ready, and return how many there will be."""
        named = named_cluster(self._address)
        connected = self._receive(CONNECT_TIMEOUT)
        if isinstance(connected, Failed):
            raise EngineError(connected.reason)
        if not isinstance(connected, Connected):
            raise EngineError(
                f"{named} has not answered for {CONNECT_TIMEOUT:.0f} seconds; check the address "
                "and that the cluster is running (ray status)"
            )
        self._is_connected = True
        ready = self._receive(WORKER_TIMEOUT)
        if isinstance(ready, Failed):
            raise EngineError(ready.reason)
        if not isinstance(ready, Ready):
            raise EngineError(
                f"{named} has started no worker for {WORKER_TIMEOUT:.0f} seconds; check that it "
                "has free CPUs, and GPUs if runs need them (ray status)"
            )
        return connected.workers

    def _receive(self, timeout: float) -> Message | None:
        try:
            if self._connection.poll(timeout):
                message: Message = self._connection.recv()
                return message
        except (EOFError, OSError) as error:
            raise EngineError(
                f"the connection to {named_cluster(self._address)} is lost; the end of {self._log} "
                "may say why. Start the study again to continue it"
            ) from error
        return None

    def _send(self, message: Job | None) -> None:
        with suppress(OSError):  # the driver has ended, which `wait` reports
            self._connection.send(message)


def _short_folder() -> str:
    """Return a folder for temporary files whose path leaves room for the names of sockets."""
    folder = tempfile.gettempdir()
    return folder if len(folder) <= _LONGEST_FOLDER else "/tmp"


def _check_address(address: str) -> None:
    """Check that something listens at an address, because Ray itself tries for two minutes."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in address:
        raise EngineError(
            f"address: {address!r} is not HOST:PORT; give what ray start --head printed, for "
            "example 10.0.0.1:6379, and run the study on a machine of the cluster"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), _PORT_TIMEOUT).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise EngineError(
            f"address: there is no Ray cluster at {address} ({reason}); start one with "
            "ray start --head --port=6379, or leave --address out to start one on this machine"
        ) from error
