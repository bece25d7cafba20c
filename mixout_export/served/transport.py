"""HTTP to the one server that was named: nothing follows, retries or waits longer than it says.

A deadline covers all of a request: a server that sends a byte now and then keeps any timeout
between two bytes from running out. Proxies and passwords of the environment are not looked at,
and no redirect is followed, so that nothing is asked but the address given.
"""

import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Self

import anyio
import httpx2

from mixout_export.errors import ServerError
from mixout_export.printable import one_line
from mixout_export.served.address import Address

#: How often a request is sent at most, and how long it waits before the second time, in seconds;
#: each further wait is twice as long.
ATTEMPTS = 4
FIRST_WAIT = 0.1

#: Seconds that a connection may take to be made.
CONNECT_TIMEOUT = 5.0

#: Bytes of an answer at most.
LARGEST_ANSWER = 1 << 30


@dataclass(frozen=True)
class Response:
    """An answer in HTTP.

    Attributes:
        status: Its code.
        headers: Its headers, whatever their case.
        body: All of its bytes.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def said(self) -> str:
        """What the body says, short enough for a sentence; "" if it is empty."""
        return one_line(_message(self.body[:4096]))


@cache
def _certificates() -> ssl.SSLContext:
    """Return the certificates that this machine trusts, with SSL_CERT_FILE's; takes 20 ms."""
    return ssl.create_default_context()


def _message(body: bytes) -> str:
    """Return a body's text, of a JSON object its error."""
    text = body.decode("utf-8", "replace")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return str(content["error"]) if isinstance(content, dict) and content.get("error") else text


class Transport:
    """Connections to one server; an asynchronous context manager.

    Attributes:
        retried: How many requests had to be sent again.
    """

    def __init__(
        self,
        address: Address,
        *,
        timeout: float,
        connections: int,
        largest: int = LARGEST_ANSWER,
    ) -> None:
        """Prepare, without connecting.

        Args:
            address: Where the server is; only its scheme and host count here.
            timeout: Seconds that a request may take with all its repetitions.
            connections: Connections at once, at most.
            largest: Bytes of an answer at most.
        """
        self.retried = 0
        self._host = f"{address.scheme}://{address.host}"
        self._timeout = timeout
        self._largest = largest
        self._client = httpx2.AsyncClient(
            trust_env=False,
            follow_redirects=False,
            verify=_certificates(),
            limits=httpx2.Limits(
                max_connections=connections, max_keepalive_connections=connections
            ),
            timeout=httpx2.Timeout(timeout, connect=min(CONNECT_TIMEOUT, timeout), pool=None),
            headers={"Accept-Encoding": "identity"},
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def send(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        """Send a request, again if the connection failed, and return what came back.

        A connection that fails is worth another try; an answer, of whatever code, is an answer.

        Args:
            method: "GET" or "POST".
            path: What comes after the host.
            body: What to send.
            headers: Headers beside the usual.

        Raises:
            ServerError: No answer came in time, or one that redirects or is too large.
        """
        where = f"{self._host}{path}"
        try:
            with anyio.fail_after(self._timeout):
                return await self._until_answered(method, where, body, headers)
        except TimeoutError as error:
            raise ServerError(
                f"{where}: did not answer within {self._timeout:g} s; see whether the server is "
                "well, or give it longer with --timeout"
            ) from error

    async def _until_answered(
        self, method: str, where: str, body: bytes | None, headers: Mapping[str, str] | None
    ) -> Response:
        for attempt in range(ATTEMPTS):
            try:
                return await self._once(method, where, body, headers)
            except httpx2.TransportError as error:
                if (doubt := _distrust(error)) is not None:
                    raise ServerError(
                        f"{where}: shows a certificate that is not trusted here ({doubt}); give "
                        "the host as the certificate names it, and a file with the certificate, "
                        "or its issuer's, in the environment variable SSL_CERT_FILE"
                    ) from error
                if attempt + 1 == ATTEMPTS:
                    raise ServerError(
                        f"{where}: cannot be reached, {ATTEMPTS} times in a row "
                        f"({_why(error)}); is the server running there?"
                    ) from error
            self.retried += 1
            await anyio.sleep(FIRST_WAIT * 2**attempt)
        raise AssertionError

    async def _once(
        self, method: str, where: str, body: bytes | None, headers: Mapping[str, str] | None
    ) -> Response:
        async with self._client.stream(
            method, where, content=body, headers=dict(headers or {})
        ) as response:
            if response.has_redirect_location:
                raise ServerError(
                    f"{where}: redirects to {one_line(response.headers['location'])}, which is not "
                    "followed; give that address if it is the one that is meant"
                )
            return Response(
                response.status_code, response.headers, await self._read(response, where)
            )

    async def _read(self, response: httpx2.Response, where: str) -> bytes:
        coding = response.headers.get("content-encoding", "identity")
        if coding != "identity":
            raise ServerError(f"{where}: answers in {coding!r}, which was not asked for")
        pieces, size = [], 0
        async for piece in response.aiter_raw():
            size += len(piece)
            if size > self._largest:
                raise ServerError(f"{where}: answers with more than {self._largest} bytes")
            pieces.append(piece)
        return b"".join(pieces)


def _distrust(error: BaseException | None) -> str | None:
    """Return what is wrong with a server's certificate; None where something else failed."""
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    return None if error is None else error.verify_message.rstrip(".")


def _why(error: httpx2.TransportError) -> str:
    """Return what an error says, or its kind where it says nothing."""
    kind = {
        httpx2.ConnectTimeout: f"no connection within {CONNECT_TIMEOUT:g} s",
        httpx2.ReadError: "the connection was cut",
    }
    return str(error) or kind.get(type(error), type(error).__name__)


def refused(response: Response, where: str, asked: str = "") -> ServerError:
    """Return the error of an answer that is not 200, `asked` saying to what."""
    said = f" ({response.said})" if response.said else ""
    return ServerError(f"{where}: answered HTTP {response.status}{asked}{said}")
