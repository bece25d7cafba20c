"""What `verify` takes and says of a model on a server."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click

from mixout_export_cli.options import PATH

if TYPE_CHECKING:
    from mixout_export.parity.serving import Serving

    PathOrText = click.ParamType[Path | str]
else:
    PathOrText = click.ParamType  # not generic before click 8.4

P = ParamSpec("P")
R = TypeVar("R")


class PathOrAddress(PathOrText):
    """A path on this machine, or a server's address, whose slashes a path would change."""

    name = "path"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path | str:
        """Return an address as the text it is, and anything else as a path."""
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
    """Add the options of a server, and pass those that were given as the argument `serving`."""

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
    """Return the lines on who serves what; none without a server."""
    if serving is None:
        return []
    version = f", version {', '.join(serving.versions)}" if serving.versions else ""
    platform = f", {serving.platform}" if serving.platform else ""
    model = {
        "not shown": "the server shows no hash of it, its numbers are judged",
        "not comparable": "the reference has no hash to compare the server's with",
    }.get(serving.graph, f"{serving.graph}, by the hash that the server shows")
    return [
        f"server     {serving.server}{platform}{version}, asked over {serving.protocol}",
        f"model      {model}",
        *(f"note       {note}" for note in serving.notes),
    ]


def describe_crowd(serving: "Serving | None") -> list[str]:
    """Return the lines on clients at once; none where there were none."""
    concurrency = None if serving is None else serving.concurrency
    if concurrency is None:
        return []
    each = concurrency.requests // concurrency.clients
    lines = [
        "",
        f"clients    {concurrency.clients} at once, {each} request{'s' if each > 1 else ''} each: "
        f"{concurrency.own} of {concurrency.requests} got their own answer, "
        f"{concurrency.mixed_up} mixed up, {concurrency.lost} lost",
    ]
    if concurrency.latency is not None:
        it = concurrency.latency
        lines.append(
            f"latency    p50 {it.p50:.1f} ms, p90 {it.p90:.1f} ms, p99 {it.p99:.1f} ms, "
            f"{concurrency.per_second:.1f} answers a second"
        )
    if concurrency.retried:
        lines.append(
            f"note       {concurrency.retried} requests were sent again, the connection failed"
        )
    if concurrency.too_alike:
        lines.append(
            f"note       {concurrency.too_alike} answers are too like another's to be told from it"
        )
    return lines
