"""The result of checking a server: its version, its answers to several clients, its speed."""

from dataclasses import dataclass
from typing import Any

from mixout_export.files.json_files import fields_as_json


@dataclass(frozen=True)
class Latency:
    """Time of requests as the client measures it, in milliseconds.

    Attributes:
        p50: Median.
        p90: 90th percentile.
        p99: 99th percentile.
        longest: Maximum.
    """

    p50: float
    p90: float
    p99: float
    longest: float


@dataclass(frozen=True)
class ConcurrencyOutcome:
    """The answers to several clients that sent requests at the same time.

    Attributes:
        clients: Number of clients. Each had its own inputs.
        requests: Number of requests of all clients.
        own: Requests that got the answer to their own inputs.
        mixed_up: Requests that got the answer to another client's inputs.
        changed: Requests that got another answer than the same inputs get alone.
        lost: Requests that got no answer.
        retried: Requests that were sent again because the connection failed.
        latency: Time of the answered requests; None if there are none.
        per_second: Answers per second.
        failure: Why the first lost request got no answer; "" if none was lost.
        too_alike: Number of inputs whose answers are too similar to recognize.
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
        """Return why `holds` is false, as sentences; empty if it is true."""
        clients = f"{self.clients} clients at once" if self.clients > 1 else "a client"
        of = f"of {self.requests} requests by {clients}"
        cause = f", the first because {self.failure}" if self.failure else ""
        counts = (
            (self.mixed_up, f"{self.mixed_up} {of} got an answer to other inputs"),
            (self.changed, f"{self.changed} {of} got another answer than the same inputs alone"),
            (self.lost, f"{self.lost} {of} got no answer{cause}"),
        )
        return tuple(text for count, text in counts if count)


#: What `Serving.graph` means, for a reader.
_GRAPH_WORDS = {
    "this graph": "the server reports the SHA-256 of the reference's graph",
    "these weights": "the server reports the SHA-256 of the reference's weights",
    "another graph of these weights": "another graph, made from the reference's weights",
    "another version": "another version, because the SHA-256 is not the reference's",
    "not shown": "the server reports no SHA-256, so only the outputs are compared",
    "not comparable": "the reference has no SHA-256 to compare with the server's",
}


@dataclass(frozen=True)
class Serving:
    """What was found out about a server, apart from its outputs.

    Attributes:
        server: Name and version that the server reports.
        platform: Runtime that the server reports for the model; "" if unknown.
        protocol: How tensors were sent: "json", "binary" or "grpc".
        versions: Versions of the model that answered, if the server reports them.
        graph: Result of comparing the hashes that the server shows: "this graph", "another graph
            of these weights", "these weights", "another version", "not shown", or "not comparable"
            if the reference has no such hash.
        concurrency: Answers to several clients at a time; None if no request was possible.
        notes: Remarks that are not faults, as sentences.
    """

    server: str
    platform: str
    protocol: str
    versions: tuple[str, ...]
    graph: str
    concurrency: ConcurrencyOutcome | None
    notes: tuple[str, ...] = ()

    @property
    def graph_in_words(self) -> str:
        """What comparing the hashes showed, for a reader."""
        return _GRAPH_WORDS[self.graph]

    @property
    def holds(self) -> bool:
        """Whether a single version answered and every client got its own answers."""
        return len(self.versions) <= 1 and (self.concurrency is None or self.concurrency.holds)

    def reasons(self) -> tuple[str, ...]:
        """Return why `holds` is false, as sentences; empty if it is true."""
        several = len(self.versions) > 1
        versions = f"answers came from several versions of the model: {', '.join(self.versions)}"
        return (
            *((versions,) if several else ()),
            *(() if self.concurrency is None else self.concurrency.reasons()),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        values = fields_as_json(self, "holds")
        values["crowd"] = values.pop("concurrency")  # the key in --json, which must not change
        return values
