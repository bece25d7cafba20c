"""MLServer, in an environment of its own."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from processes import ENVIRONMENTS, Served, free_ports, running

ENVIRONMENT = ENVIRONMENTS / "mlserver"


def _on_free_ports(bundle: Path) -> dict[str, int]:
    """Change the ports that a bundle's settings name, which variables do not override."""
    settings = bundle / "settings.json"
    ports = dict(zip(("http_port", "grpc_port", "metrics_port"), free_ports(3), strict=True))
    settings.write_text(json.dumps({**json.loads(settings.read_text()), **ports}))
    return ports


@contextmanager
def mlserver(bundle: Path, work: Path) -> Iterator[Served]:
    """Serve a bundle, as its page says, but for the ports.

    Args:
        bundle: As `bundle` writes it; a copy is served.
        work: An existing folder for the copy and the log.
    """
    copy = Path(shutil.copytree(bundle, work / "bundle"))
    ports = _on_free_ports(copy)
    http = f"http://127.0.0.1:{ports['http_port']}"
    command = [ENVIRONMENT / "bin" / "mlserver", "start", "."]
    ready = f"{http}/v2/health/ready"
    with running(command, ready=ready, log=work / "mlserver.log", folder=copy):
        yield Served(http, f"grpc://127.0.0.1:{ports['grpc_port']}")
