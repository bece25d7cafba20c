"""Parse the address of a served model: `http://HOST:PORT/v2/models/NAME[/versions/VERSION]`."""

import re
from dataclasses import dataclass
from urllib.parse import SplitResult, quote, unquote, urlsplit

from mixout_export.errors import ArgumentError

SCHEMES = ("http", "https", "grpc")

_PATH = re.compile(
    r"(?P<prefix>.*)/v2/models/(?P<model>[^/]+)(?:/versions/(?P<version>[^/]+))?/?", re.DOTALL
)


@dataclass(frozen=True)
class Address:
    """The address of a served model.

    Attributes:
        scheme: "http", "https" or "grpc".
        host: Host and port.
        prefix: Path before `/v2`, for a server behind a gateway; usually "".
        model: The model's name.
        version: The model's version; None lets the server choose.
    """

    scheme: str
    host: str
    prefix: str
    model: str
    version: str | None = None

    @property
    def server_path(self) -> str:
        """Path of the server's metadata."""
        return f"{self.prefix}/v2"

    @property
    def model_path(self) -> str:
        """Path of the model's metadata."""
        path = f"{self.server_path}/models/{quote(self.model, safe='')}"
        return path if self.version is None else f"{path}/versions/{quote(self.version, safe='')}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host}{self.model_path}"


def is_address(text: str) -> bool:
    """Return whether a text is the address of a server rather than a path."""
    return "://" in text


def _split(text: str) -> SplitResult:
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise ArgumentError(
            f"{text}: is not a valid address ({error}), expected http://HOST:PORT/v2/models/NAME"
        ) from error
    if parts.hostname is None or port == 0:
        raise ArgumentError(f"{text}: has no host, expected http://HOST:PORT/v2/models/NAME")
    return parts


def parse_address(text: str) -> Address:
    """Parse the address of a served model.

    Raises:
        ArgumentError: The text is not such an address, or it contains a user or a password.
    """
    parts = _split(text)
    if parts.scheme not in SCHEMES:
        raise ArgumentError(
            f"{text}: the scheme is {parts.scheme!r}, expected one of {', '.join(SCHEMES)}"
        )
    if parts.username is not None or parts.password is not None:
        raise ArgumentError(
            f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}: the address contains "
            "a user or password, but credentials are never sent; remove them"
        )
    found = _PATH.fullmatch(parts.path)
    if found is None or parts.query or parts.fragment:
        raise ArgumentError(
            f"{text}: is not the address of a served model, expected "
            f"{parts.scheme}://{parts.netloc}/v2/models/NAME or …/NAME/versions/VERSION"
        )
    version = found["version"]
    return Address(
        scheme=parts.scheme,
        host=parts.netloc,
        prefix=found["prefix"],
        model=unquote(found["model"]),
        version=None if version is None else unquote(version),
    )
