"""How a server serves: who answered, to how many clients at once, and how fast."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Latency:
    """How long requests took, as the client sees them, in milliseconds.

    Attributes:
        p50: Half of them took less.
        p90: Nine in ten took less.
        p99: 99 in 100 took less.
        longest: None took longer.
    """

    p50: float
    p90: float
    p99: float
    longest: float


@dataclass(frozen=True)
class ConcurrencyOutcome:
    """What several clients at once were answered.

    Attributes:
        clients: Clients that asked at the same time, each with inputs of its own.
        requests: Requests that all of them had to make.
        own: Requests that got their own answer.
        mixed_up: Those that got the answer to another's inputs.
        changed: Those that got an answer unlike the one that the same inputs get alone.
        lost: Those that got none.
        retried: Requests that were sent again as the connection failed.
        latency: How long the answered ones took; None if there are none.
        per_second: Answers per second.
        failure: Why the first of the lost was; "" if none was.
        too_alike: Inputs whose answers are too like another's to be told apart.
    """

    clients: int
    requests: int
    own: int
    mixed_up: int
    changed: int
    lost: int
    retried: int
    latency: Latency | None
    per_second: float
    failure: str = ""
    too_alike: int = 0

    @property
    def holds(self) -> bool:
        """Whether each request got its own answer."""
        return self.own == self.requests

    def reasons(self) -> tuple[str, ...]:
        """Return why it does not hold; empty if it does."""
        clients = f"{self.clients} clients at once" if self.clients > 1 else "a client"
        of = f"of {self.requests} requests by {clients}"
        why = f", the first because {self.failure}" if self.failure else ""
        told = (
            (self.mixed_up, f"{self.mixed_up} {of} got an answer to other inputs"),
            (self.changed, f"{self.changed} {of} got another answer than the same inputs alone"),
            (self.lost, f"{self.lost} {of} got no answer{why}"),
        )
        return tuple(text for count, text in told if count)


@dataclass(frozen=True)
class Serving:
    """What was found of a server besides its numbers.

    Attributes:
        server: Its name and version, as it says.
        platform: What runs the model there, as it says; "" if unknown.
        protocol: How tensors were sent: "json", "binary" or "grpc".
        versions: Versions of the model that answered, where the server says which.
        graph: What the served graph's hash says: "this graph", "another graph of these weights",
            "these weights", "another version", "not shown", or "not comparable" where it is shown
            and the reference has none of the kind.
        concurrency: What several clients at once were answered; None where nothing could be asked.
        notes: What a reader should know and is no fault, as sentences.
    """

    server: str
    platform: str
    protocol: str
    versions: tuple[str, ...]
    graph: str
    concurrency: ConcurrencyOutcome | None
    notes: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether one version alone gave each client its own answers."""
        return len(self.versions) <= 1 and (self.concurrency is None or self.concurrency.holds)

    def reasons(self) -> tuple[str, ...]:
        """Return why it does not hold; empty if it does."""
        several = len(self.versions) > 1
        versions = f"answers came from several versions of the model: {', '.join(self.versions)}"
        return (
            *((versions,) if several else ()),
            *(() if self.concurrency is None else self.concurrency.reasons()),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        plain["crowd"] = plain.pop("concurrency")  # the name that programs read it by
        return {**plain, "holds": self.holds}
