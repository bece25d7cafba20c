"""The engine that runs jobs in worker processes on this machine."""

import logging
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from mixout_export.stages.study.engine import Job, Outcome

#: Variables that set the number of threads of numerical libraries when they are loaded.
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def default_workers(*, threads: int, device: str | None) -> int:
    """Return how many runs to do at the same time: one on a GPU, else what the cores allow."""
    import torch

    if device != "cpu" and torch.cuda.is_available():
        return 1
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return max(1, cores // threads)


@dataclass
class _Worker:
    """A worker process and the job that it is doing."""

    process: SpawnProcess
    connection: Connection
    job: Job | None = None


class LocalEngine:
    """Runs jobs in processes that are started once and do many jobs.

    Args:
        workers: Number of processes.
        threads: CPU threads of each.
    """

    def __init__(self, *, workers: int, threads: int) -> None:
        self.workers = workers
        self._threads = threads
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
                return Outcome(job, worker.connection.recv())
        except (EOFError, OSError):
            pass
        worker.process.join()
        worker.connection.close()
        self._running.remove(worker)
        code = worker.process.exitcode or 0
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        return Outcome(job, None, f"the worker process ended {how}")

    def _start(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs,), daemon=True)
        with _environment(self._threads), _no_interrupts():
            process.start()
        theirs.close()  # so that reading from it ends when the worker ends
        worker = _Worker(process, ours)
        self._running.append(worker)
        return worker


@contextmanager
def _environment(threads: int) -> Iterator[None]:
    """Set the variables that a new process needs before it imports anything."""
    earlier = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, str(threads)))
    try:
        yield
    finally:
        for name, value in earlier.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _no_interrupts() -> Iterator[None]:
    """Start a process that Ctrl-C does not reach, because the caller decides what it means.

    A new process inherits which signals are blocked. One that arrives meanwhile is not lost.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)


def _serve(connection: Connection) -> None:
    """Do the jobs that arrive, until the other side ends."""
    _end_with_parent()
    warnings.simplefilter("ignore")
    logging.getLogger().addHandler(logging.NullHandler())  # else what libraries log is printed
    from mixout_export.stages.study.worker import execute  # only here, where it is needed

    while True:
        try:
            job = connection.recv()
        except (EOFError, OSError):
            return
        connection.send(execute(job))


def _end_with_parent() -> None:
    """End this process as soon as the one that started it ends, even if that was killed."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
