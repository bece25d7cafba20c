"""What goes wrong between a client and a server, over real sockets of this machine."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import anyio
import pytest

from mixout_export.errors import ServerError
from mixout_export.served import transport as module
from mixout_export.served.address import parse_address
from mixout_export.served.transport import ATTEMPTS, Response, Transport

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"

Serve = Callable[[socket.socket, int], None]


class Listener:
    """Accepts connections one by one and lets a function do with each what it likes."""

    def __init__(self, serve: Serve) -> None:
        self.accepted: list[bytes] = []
        self.stopped = threading.Event()
        self._serve = serve
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(5)
                try:
                    self.accepted.append(connection.recv(65536))
                    self._serve(connection, len(self.accepted))
                except OSError:
                    continue

    def close(self) -> None:
        self.stopped.set()
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()


@contextmanager
def listening(serve: Serve) -> Iterator[Listener]:
    listener = Listener(serve)
    try:
        yield listener
    finally:
        listener.close()


def ask(port: int, *, timeout: float = 5.0, largest: int = 1000) -> tuple[Response, int]:
    address = parse_address(f"http://127.0.0.1:{port}/v2/models/m")

    async def send() -> tuple[Response, int]:
        async with Transport(address, timeout=timeout, connections=2, largest=largest) as transport:
            return await transport.send("GET", address.model_path), transport.retried

    return anyio.run(send)


def fails(port: int, *parts: str, **options: float) -> None:
    with pytest.raises(ServerError) as raised:
        ask(port, **options)  # type: ignore[arg-type]
    for part in (f"http://127.0.0.1:{port}/v2/models/m", *parts):
        assert part in str(raised.value)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_WAIT", 0.001)


def test_an_answer_comes_with_its_code_and_headers() -> None:
    with listening(lambda connection, _: connection.sendall(OK)) as server:
        response, retried = ask(server.port)
    assert (response.status, response.body, retried) == (200, b"{}", 0)
    assert response.headers["content-LENGTH"] == "2"
    request = server.accepted[0].lower()
    assert request.startswith(b"get /v2/models/m http/1.1\r\n")
    assert b"authorization" not in request
    assert b"cookie" not in request


def test_nobody_listening_is_said_after_all_attempts(quick: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    fails(port, "cannot be reached after 4 attempts", "check that the server is running")


@pytest.mark.parametrize("bad", range(1, ATTEMPTS))
def test_a_connection_that_is_cut_is_made_again(quick: None, bad: int) -> None:
    def serve(connection: socket.socket, number: int) -> None:
        if number > bad:
            connection.sendall(OK)

    with listening(serve) as server:
        response, retried = ask(server.port)
    assert (response.body, retried, len(server.accepted)) == (b"{}", bad, bad + 1)


def test_a_connection_cut_within_an_answer_is_made_again(quick: None) -> None:
    def serve(connection: socket.socket, number: int) -> None:
        connection.sendall(OK if number == 2 else OK[:-1])

    with listening(serve) as server:
        response, retried = ask(server.port)
    assert (response.body, retried) == (b"{}", 1)


def test_a_connection_that_is_always_cut_is_given_up(quick: None) -> None:
    with listening(lambda *_: None) as server:
        fails(server.port, f"after {ATTEMPTS} attempts")
    assert len(server.accepted) == ATTEMPTS


def test_waits_between_attempts_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(module.anyio, "sleep", sleep)
    with listening(lambda *_: None) as server:
        fails(server.port, "cannot be reached")
    assert waits == [0.1, 0.2, 0.4]


@pytest.mark.parametrize("status", [400, 404, 429, 500, 503])
def test_an_error_of_the_server_is_an_answer_and_not_asked_for_again(status: int) -> None:
    text = f"HTTP/1.1 {status} No\r\nContent-Length: 5\r\n\r\nwrong".encode()
    with listening(lambda connection, _: connection.sendall(text)) as server:
        response, retried = ask(server.port)
    assert (response.status, response.message, retried, len(server.accepted)) == (
        status,
        "wrong",
        0,
        1,
    )


def test_a_server_that_says_nothing_runs_out_of_time() -> None:
    with listening(lambda _, __: server.stopped.wait(5) and None) as server:
        start = time.monotonic()
        fails(server.port, "did not answer within 0.3 s", "--timeout", timeout=0.3)
        assert time.monotonic() - start < 4  # not the five seconds until the server gives up
        server.stopped.set()


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n"])
def test_a_slow_drip_runs_out_of_time_in_headers_and_in_the_body(head: bytes) -> None:
    """Bytes that keep coming hold off each timeout between two of them."""
    sent = 0

    def serve(connection: socket.socket, _: int) -> None:
        nonlocal sent
        connection.sendall(head)
        rest = b"x" * 5000 if head else b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 5000
        for byte in rest:
            if server.stopped.wait(0.02):
                return
            connection.sendall(bytes([byte]))
            sent += 1

    with listening(serve) as server:
        fails(server.port, "did not answer within 0.4 s", timeout=0.4, largest=100_000)
    assert 2 <= sent < 1000


def test_a_redirect_is_not_followed_and_the_other_host_is_never_asked() -> None:
    with listening(lambda connection, _: connection.sendall(OK)) as other:
        elsewhere = f"http://127.0.0.1:{other.port}/v2/models/m"
        text = f"HTTP/1.1 307 Go\r\nLocation: {elsewhere}\r\nContent-Length: 0\r\n\r\n".encode()
        with listening(lambda connection, _: connection.sendall(text)) as server:
            fails(server.port, f"redirects to {elsewhere}, but redirects are not followed")
        assert len(server.accepted) == 1
        assert other.accepted == []


@pytest.mark.parametrize("length", [b"Content-Length: 1001\r\n\r\n", b"\r\n"])
def test_an_answer_too_large_is_cut_off(length: bytes) -> None:
    text = b"HTTP/1.1 200 OK\r\n" + length + b"x" * 1001
    with listening(lambda connection, _: connection.sendall(text)) as server:
        fails(server.port, "the answer has more than 1000 bytes")


def test_a_compressed_answer_is_refused_and_not_unpacked() -> None:
    text = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}"
    with listening(lambda connection, _: connection.sendall(text)) as server:
        fails(server.port, "the answer has the encoding 'gzip'")
    assert b"accept-encoding: identity" in server.accepted[0].lower()


def test_proxies_and_passwords_of_the_environment_are_not_looked_at(
    monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    with listening(lambda connection, _: connection.sendall(OK)) as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        with listening(lambda connection, _: connection.sendall(OK)) as server:
            assert ask(server.port)[0].status == 200
        assert proxy.accepted == []
    assert b"authorization" not in server.accepted[0].lower()


def test_what_is_no_http_is_said(quick: None) -> None:
    with listening(
        lambda connection, _: connection.sendall(b"\x00\x00\x06\x04 no\r\n\r\n")
    ) as server:
        fails(server.port, "cannot be reached")
