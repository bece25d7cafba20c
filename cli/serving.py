"""The options of `verify` for a model on a server, and its output."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click

from mixout_export_cli.options import PATH
from mixout_export_cli.output import labeled

if TYPE_CHECKING:
    from mixout_export.parity.serving import Serving

    PathOrText = click.ParamType[Path | str]
else:
    PathOrText = click.ParamType  # not generic before click 8.4

P = ParamSpec("P")
R = TypeVar("R")


class PathOrAddress(PathOrText):
    """A path on this machine, or the address of a server, whose slashes a path would change."""

    name = "path"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path | str:
        """Return an address as text, and anything else as a path."""
        if isinstance(value, str) and "://" in value:
            return value
        path: Path = PATH.convert(value, param, ctx)
        return path


_OPTIONS = (
    click.option(
        "--timeout",
        type=float,
        metavar="SECONDS",
        help="For a server: time limit of a request, retries included.  [default: 30]",
    ),
    click.option(
        "--concurrency",
        type=int,
        metavar="CLIENTS",
        help="For a server: number of clients that send requests at the same time.  [default: 16]",
    ),
    click.option(
        "--requests",
        type=int,
        metavar="COUNT",
        help="For a server: number of requests per client.  [default: 8]",
    ),
    click.option(
        "--protocol",
        type=click.Choice(["json", "binary", "grpc"]),
        help="For a server: how tensors are sent.  [default: the fastest that it supports]",
    ),
)

_NAMES = ("timeout", "concurrency", "requests", "protocol")


def server_options(function: Callable[..., R]) -> Callable[..., R]:
    """Add the options for a server, and pass those that were given as the argument `serving`."""

    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> R:
        given = {name: kwargs.pop(name) for name in _NAMES}
        known = {name: value for name, value in given.items() if value is not None}
        return function(*args, serving=known, **kwargs)

    decorated: Callable[..., R] = wrapper
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated


def describe_server(serving: "Serving | None") -> list[str]:
    """Return lines about the server and its model; none without a server."""
    if serving is None:
        return []
    version = f", version {', '.join(serving.versions)}" if serving.versions else ""
    platform = f", {serving.platform}" if serving.platform else ""
    model = {
        "not shown": "the server shows no hash, so only the outputs are compared",
        "not comparable": "the reference has no hash to compare with that of the server",
    }.get(serving.graph, f"{serving.graph}, according to the hash that the server shows")
    return [
        labeled("server", f"{serving.server}{platform}{version}, over {serving.protocol}"),
        labeled("model", model),
        *(labeled("note", note) for note in serving.notes),
    ]


def describe_crowd(serving: "Serving | None") -> list[str]:
    """Return lines about concurrent clients; none if there were none."""
    concurrency = None if serving is None else serving.concurrency
    if concurrency is None:
        return []
    each = concurrency.requests // concurrency.clients
    lines = [
        "",
        labeled(
            "clients",
            f"{concurrency.clients} at once, {each} request{'s' if each > 1 else ''} each: "
            f"{concurrency.own} of {concurrency.requests} got their own answer, "
            f"{concurrency.mixed_up} mixed up, {concurrency.lost} lost",
        ),
    ]
    if concurrency.latency is not None:
        it = concurrency.latency
        lines.append(
            labeled(
                "latency",
                f"p50 {it.p50:.1f} ms, p90 {it.p90:.1f} ms, p99 {it.p99:.1f} ms, "
                f"{concurrency.per_second:.1f} answers per second",
            )
        )
    if concurrency.retried:
        lines.append(
            labeled(
                "note", f"{concurrency.retried} requests were repeated, their connection failed"
            )
        )
    if concurrency.too_alike:
        lines.append(
            labeled(
                "note",
                f"{concurrency.too_alike} answers are too similar to tell apart",
            )
        )
    return lines
