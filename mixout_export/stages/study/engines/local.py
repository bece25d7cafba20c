"""The engine that runs jobs in worker processes on this machine."""

import logging
import multiprocessing
import signal
import warnings
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from mixout_export.stages.study.engine import Job, Outcome
from mixout_export.stages.study.engines.gpu import (
    GpuMemory,
    is_on_gpu,
    least_used,
    memory_after_run,
    visible_gpus,
    workers_on_gpus,
)
from mixout_export.stages.study.engines.processes import (
    available_cores,
    end_with_parent,
    environment,
    no_interrupts,
)


def default_workers(*, threads: int, device: str | None) -> int:
    """Return how many runs to do at the same time: one on each GPU, else what the cores allow."""
    most = max(1, available_cores() // threads)
    if is_on_gpu(device):
        return max(1, min(len(visible_gpus(device)), most))
    return most


@dataclass
class _Worker:
    """A worker process and the job that it is doing."""

    process: SpawnProcess
    connection: Connection
    gpu: str | None
    job: Job | None = None


class LocalEngine:
    """Runs jobs in processes that are started once and do many jobs.

    Args:
        workers: Number of processes; None starts with `default_workers`. After the first run on a
            GPU there are then as many as its memory and the CPU cores allow.
        threads: CPU threads of each.
        device: Device of the runs; None takes a GPU if there is one.
    """

    def __init__(
        self, *, workers: int | None = None, threads: int, device: str | None = None
    ) -> None:
        self.workers = workers or default_workers(threads=threads, device=device)
        self._may_grow = workers is None
        self._threads = threads
        self._gpus = visible_gpus(device)
        self._running: list[_Worker] = []

    def submit(self, job: Job) -> None:
        """Give a job to a worker that has none; start one if there is none."""
        worker = next((each for each in self._running if each.job is None), None)
        if worker is None:
            worker = self._start()
        worker.job = job
        with suppress(OSError):  # it has died, which `wait` reports
            worker.connection.send(job)

    def wait(self, timeout: float) -> list[Outcome]:
        """Return the jobs that have ended since the last call, after so many seconds at most."""
        busy = [worker for worker in self._running if worker.job is not None]
        ready = wait([part for w in busy for part in (w.connection, w.process.sentinel)], timeout)
        outcomes = []
        for worker in busy:
            if worker.connection in ready or worker.process.sentinel in ready:
                outcomes.append(self._outcome(worker))
        return outcomes

    def close(self) -> None:
        """End the workers. Jobs in flight are lost."""
        for worker in self._running:
            worker.process.kill()
        for worker in self._running:
            worker.process.join()
            worker.connection.close()
        self._running.clear()

    def _outcome(self, worker: _Worker) -> Outcome:
        job = worker.job
        assert job is not None  # only those that have one are asked
        worker.job = None
        try:
            if worker.connection.poll():
                record, memory = worker.connection.recv()
                self._grow(memory)
                return Outcome(job, record)
        except (EOFError, OSError):
            pass
        worker.process.join()
        worker.connection.close()
        self._running.remove(worker)
        code = worker.process.exitcode or 0
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        return Outcome(job, None, f"the worker process ended {how}")

    def _grow(self, memory: GpuMemory | None) -> None:
        """After the first run on a GPU, let as many runs share it as fit."""
        if self._may_grow and memory is not None:
            self._may_grow = False
            most = available_cores() // self._threads
            self.workers = workers_on_gpus(memory, gpus=max(1, len(self._gpus)), most=most)

    def _start(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs,), daemon=True)
        gpu = least_used(self._gpus, [each.gpu for each in self._running])
        # `timeout` and service managers send SIGTERM to all processes of a program
        with environment(self._threads, gpu), no_interrupts(also=[signal.SIGTERM]):
            process.start()
        theirs.close()  # so that reading from it ends when the worker ends
        worker = _Worker(process, ours, gpu)
        self._running.append(worker)
        return worker


def _serve(connection: Connection) -> None:
    """Do the jobs that arrive, until the other side ends."""
    end_with_parent()
    warnings.simplefilter("ignore")
    logging.getLogger().addHandler(logging.NullHandler())  # else what libraries log is printed
    from mixout_export.stages.study.worker import execute  # only here, where it is needed

    while True:
        try:
            job = connection.recv()
        except (EOFError, OSError):
            return
        connection.send((execute(job), memory_after_run(job.device)))
