"""What `verify` accepts and shows for a model on a server."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mixout_export_cli.options import PATH
from mixout_export_cli.output import count_of, labeled

if TYPE_CHECKING:
    from mixout_export.parity.serving import Serving

    PathOrText = click.ParamType[Path | str]
else:
    PathOrText = click.ParamType  # not generic before click 8.4


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


def describe_server(serving: "Serving | None") -> list[str]:
    """Return lines about the server and its model; none without a server."""
    if serving is None:
        return []
    version = f", model version {', '.join(serving.versions)}" if serving.versions else ""
    platform = f", {serving.platform}" if serving.platform else ""
    return [
        labeled("server", f"{serving.server}{platform}{version}, over {serving.protocol}"),
        labeled("model", serving.graph_in_words),
        *(labeled("note", note) for note in serving.notes),
    ]


def describe_concurrency(serving: "Serving | None") -> list[str]:
    """Return lines about concurrent clients; none if there were none."""
    concurrency = None if serving is None else serving.concurrency
    if concurrency is None:
        return []
    each = concurrency.requests // concurrency.clients
    wrong = concurrency.mixed_up + concurrency.changed
    clients = (
        f"{concurrency.clients} at once, {count_of(each, 'request')} each: {concurrency.own} of "
        f"{concurrency.requests} got their own answer, {wrong} got a wrong answer, "
        f"{concurrency.lost} got no answer"
    )
    lines = ["", labeled("clients", clients)]
    if concurrency.latency is not None:
        it = concurrency.latency
        latency = (
            f"p50 {it.p50:.1f} ms, p90 {it.p90:.1f} ms, p99 {it.p99:.1f} ms, "
            f"{concurrency.per_second:.1f} answers per second"
        )
        lines.append(labeled("latency", latency))
    notes = [
        (concurrency.retried, "requests were repeated, because their connection failed"),
        (concurrency.too_alike, "of the answers are too similar to others to tell whose they are"),
    ]
    return lines + [labeled("note", f"{count} {text}") for count, text in notes if count]
