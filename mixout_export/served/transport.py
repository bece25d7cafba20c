"""Send HTTP requests to one server, and to no other.

One deadline covers a whole request. A timeout between two bytes would not do, because a slow server
could send a byte now and then for ever. Redirects are not followed, and the environment's proxies
and passwords are not used, so only the given address receives requests.
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

#: Largest number of attempts to send a request, and the wait before the second one, in seconds.
#: Each further wait is twice as long.
ATTEMPTS = 4
FIRST_WAIT = 0.1

#: Time limit for making a connection, in seconds.
CONNECT_TIMEOUT = 5.0

#: Size limit of an answer, in bytes.
LARGEST_ANSWER = 1 << 30


@dataclass(frozen=True)
class Response:
    """An HTTP response.

    Attributes:
        status: Status code.
        headers: Headers. Their names are case-insensitive.
        body: The complete body.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def message(self) -> str:
        """The body's text, shortened to fit into a sentence; "" if the body is empty."""
        return one_line(_message(self.body[:4096]))


@cache
def _certificates() -> ssl.SSLContext:
    """Return the trusted certificates of this machine and of SSL_CERT_FILE. This takes 20 ms."""
    return ssl.create_default_context()


def _message(body: bytes) -> str:
    """Return a body's text, or its entry "error" if it is a JSON object with such an entry."""
    text = body.decode("utf-8", "replace")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return str(content["error"]) if isinstance(content, dict) and content.get("error") else text


class Transport:
    """Connections to one server, as an asynchronous context manager.

    Attributes:
        retried: Number of requests that were sent again.
    """

    def __init__(
        self,
        address: Address,
        *,
        timeout: float,
        connections: int,
        largest: int = LARGEST_ANSWER,
    ) -> None:
        """Create a transport without connecting.

        Args:
            address: Address of the server. Only its scheme and host are used.
            timeout: Time limit of a request including retries, in seconds.
            connections: Largest number of connections at a time.
            largest: Size limit of an answer, in bytes.
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
        """Send a request and return the response, whatever its status.

        The request is sent again if the connection fails, but not if the server answers.

        Raises:
            ServerError: No answer came in time, or the answer is a redirect or too large.
        """
        where = f"{self._host}{path}"
        try:
            with anyio.fail_after(self._timeout):
                return await self._until_answered(method, where, body, headers)
        except TimeoutError as error:
            raise ServerError(
                f"{where}: did not answer within {self._timeout:g} s; check the server, or give a "
                "longer --timeout"
            ) from error

    async def _until_answered(
        self, method: str, where: str, body: bytes | None, headers: Mapping[str, str] | None
    ) -> Response:
        for attempt in range(ATTEMPTS):
            try:
                return await self._once(method, where, body, headers)
            except httpx2.TransportError as error:
                if (problem := _certificate_problem(error)) is not None:
                    raise ServerError(
                        f"{where}: the server's certificate is not trusted ({problem}). Use the "
                        "host name in the certificate, and set the environment variable "
                        "SSL_CERT_FILE to a file with the certificate or its issuer's"
                    ) from error
                if attempt + 1 == ATTEMPTS:
                    raise ServerError(
                        f"{where}: cannot be reached after {ATTEMPTS} attempts ({_reason(error)}); "
                        "check that the server is running at this address"
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
                    f"{where}: redirects to {one_line(response.headers['location'])}, but "
                    "redirects are not followed; give that address if you trust it"
                )
            return Response(
                response.status_code, response.headers, await self._read(response, where)
            )

    async def _read(self, response: httpx2.Response, where: str) -> bytes:
        coding = response.headers.get("content-encoding", "identity")
        if coding != "identity":
            raise ServerError(
                f"{where}: the answer has the encoding {coding!r}, expected no encoding; turn off "
                "compression in the server"
            )
        pieces, size = [], 0
        async for piece in response.aiter_raw():
            size += len(piece)
            if size > self._largest:
                raise ServerError(
                    f"{where}: the answer has more than {self._largest} bytes, which is the limit"
                )
            pieces.append(piece)
        return b"".join(pieces)


def _certificate_problem(error: BaseException | None) -> str | None:
    """Return what is wrong with a server's certificate; None if another problem occurred."""
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    return None if error is None else error.verify_message.rstrip(".")


def _reason(error: httpx2.TransportError) -> str:
    """Return an error's message, or a description of its type if it has none."""
    descriptions = {
        httpx2.ConnectTimeout: f"no connection within {CONNECT_TIMEOUT:g} s",
        httpx2.ReadError: "the connection was closed",
    }
    return str(error) or descriptions.get(type(error), type(error).__name__)


def refused(response: Response, where: str, request: str = "") -> ServerError:
    """Return the error for a response whose status is not 200.

    The request is described as, for example, " to inputs of shape [1, 8]".
    """
    message = f" ({response.message})" if response.message else ""
    return ServerError(f"{where}: answered HTTP {response.status}{request}{message}")
