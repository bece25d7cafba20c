"""Options for requests to a server."""

import math
from dataclasses import dataclass
from typing import Literal

from mixout_export.errors import ArgumentError
from mixout_export.served.address import Address

#: How tensors are sent: as JSON over HTTP, as bytes over HTTP, or over gRPC.
Protocol = Literal["json", "binary", "grpc"]

#: Default number of requests per client: enough for requests of different clients to overlap.
DEFAULT_REQUESTS = 8


@dataclass(frozen=True)
class ServingOptions:
    """Options for requests to a server.

    Attributes:
        timeout: Time limit of a request including retries, in seconds.
        concurrency: Number of clients that send requests at the same time.
        requests: Number of requests per client; 0 means `DEFAULT_REQUESTS`.
        protocol: How tensors are sent; None chooses the best that the server offers.
    """

    timeout: float = 30.0
    concurrency: int = 16
    requests: int = 0
    protocol: Protocol | None = None

    @property
    def requests_each(self) -> int:
        """Number of requests per client."""
        return self.requests or DEFAULT_REQUESTS

    def check(self, address: Address) -> None:
        """Check each option, and that the protocol matches the address.

        Raises:
            ArgumentError: An option is outside its domain.
        """
        if not (self.timeout > 0 and math.isfinite(self.timeout)):
            raise ArgumentError(f"timeout: got {self.timeout!r}, expected more than 0 seconds")
        if self.concurrency < 1:
            raise ArgumentError(f"concurrency: got {self.concurrency}, expected at least 1")
        if self.requests < 0:
            raise ArgumentError(f"requests: got {self.requests}, expected at least 0")
        if self.protocol is not None and (self.protocol == "grpc") != (address.scheme == "grpc"):
            raise ArgumentError(
                f"protocol: got {self.protocol}, but {address.scheme}://{address.host} does not "
                "speak it; for gRPC, give grpc://HOST:PORT/v2/models/NAME with the gRPC port"
            )
