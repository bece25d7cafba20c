"""Servers in processes of their own: started on free ports of 127.0.0.1, and stopped for sure."""

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

#: Seconds that a server may take to be ready, on a busy machine.
PATIENCE = 180

#: Where `make test-servers` puts an environment for each server.
ENVIRONMENTS = Path(__file__).resolve().parents[2] / "build" / "servers"


@dataclass(frozen=True)
class Served:
    """Addresses at which a server listens, of HTTP and of gRPC."""

    http: str
    grpc: str


def free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def needs(environment: Path) -> None:
    """Skip the test where a server is not installed."""
    if not (environment / ".installed").is_file():
        pytest.skip(f"{environment} is absent; make test-servers installs it")


def _answers(url: str) -> bool:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    until = time.monotonic() + PATIENCE
    while not _answers(url):
        if process.poll() is not None or time.monotonic() > until:
            how = "did not start" if process.returncode is None else f"ended: {process.returncode}"
            raise AssertionError(f"{process.args!r} {how}\n{log.read_text(errors='replace')}")
        time.sleep(0.2)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started, which share a group of their own."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, kind)
            process.wait(30)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


@contextmanager
def running(
    command: Sequence[object],
    *,
    ready: str,
    log: Path,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[None]:
    """Run a server until the block ends.

    Args:
        command: Program and arguments.
        ready: Address that answers 200 once the server is ready.
        log: File for all that it prints, which is shown if it does not start.
        folder: Where it is started.
        environment: Variables beside those of the tests.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            _wait(process, ready, log)
            yield
        finally:
            _stop(process)
