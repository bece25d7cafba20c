"""What the processes of all engines have in common."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker

#: Variables that set the number of threads of numerical libraries when they are loaded.
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def available_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def environment(threads: int, gpu: str | None = None) -> Iterator[None]:
    """Set the variables that a new process needs before it imports anything.

    Args:
        threads: CPU threads of the process.
        gpu: The only GPU that the process sees; None leaves that as it is.
    """
    variables = dict.fromkeys(THREADS, str(threads))
    if gpu is not None:
        variables["CUDA_VISIBLE_DEVICES"] = gpu
    earlier = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in earlier.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def no_interrupts(*, also: Iterable[signal.Signals] = ()) -> Iterator[None]:
    """Start a process that Ctrl-C does not reach, because the caller decides what it means.

    A new process, and what that starts, inherits which signals are blocked. One that arrives
    meanwhile is not lost.

    Args:
        also: Other signals that are not to reach it.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # the first start of a process starts it and unblocks signals
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, *also})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)


def end_with_parent(*, patience: float = 0.0) -> None:
    """End this process when the one that started it ends, even if that was killed.

    Args:
        patience: Seconds that this process has to end by itself.
    """
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            time.sleep(patience)
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
