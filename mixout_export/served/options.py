"""How a server is asked."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from mixout_export.errors import ArgumentError
from mixout_export.served.address import Address

#: How tensors are sent: as numbers in JSON, as bytes over HTTP, or over gRPC.
Protocol = Literal["json", "binary", "grpc"]

PROTOCOLS: tuple[str, ...] = get_args(Protocol)

#: Requests of each client where nobody says how many: enough to meet the others', and quick.
DEFAULT_REQUESTS = 8


@dataclass(frozen=True)
class ServingOptions:
    """How a server is asked.

    Attributes:
        timeout: Seconds that a request may take, its repetitions included.
        concurrency: Clients that ask at the same time.
        requests: Requests of each of them; 0 is `DEFAULT_REQUESTS`.
        protocol: How tensors are sent; None is the best that the server offers at its address.
    """

    timeout: float = 30.0
    concurrency: int = 16
    requests: int = 0
    protocol: Protocol | None = None

    @property
    def requests_each(self) -> int:
        """Requests of each client."""
        return self.requests or DEFAULT_REQUESTS

    def check(self, address: Address) -> None:
        """Check each option, and that the protocol is one of the address.

        Raises:
            ArgumentError: It is outside its domain.
        """
        if not (self.timeout > 0 and math.isfinite(self.timeout)):
            raise ArgumentError(f"timeout: got {self.timeout!r}, expected seconds above 0")
        if self.concurrency < 1:
            raise ArgumentError(f"concurrency: got {self.concurrency}, expected at least 1")
        if self.requests < 0:
            raise ArgumentError(f"requests: got {self.requests}, expected at least 0")
        if self.protocol is not None and (self.protocol == "grpc") != (address.scheme == "grpc"):
            raise ArgumentError(
                f"protocol: got {self.protocol}, which {address.scheme}://{address.host} does not "
                "speak; gRPC has a port of its own, grpc://HOST:PORT/v2/models/NAME"
            )
