"""Verify a model on a server: which options it allows, and how it serves."""

from dataclasses import replace
from pathlib import Path

from mixout_export.checkpoint.artifact import LocalArtifact
from mixout_export.checkpoint.interface import ModelInterface
from mixout_export.errors import ArgumentError
from mixout_export.parity.concurrency import ask_at_once
from mixout_export.parity.result import ParityResult
from mixout_export.parity.served_description import notes_on, served_version
from mixout_export.parity.serving import Serving
from mixout_export.served.address import is_address, parse_address
from mixout_export.served.options import ServingOptions
from mixout_export.served.session import ServedSession

#: Options that need the candidate's files, and why a server does not allow them.
_NEED_FILES = {
    "drift": "compares every module, and a server shows only outputs",
    "self-test": "puts faults into copies of the candidate, and a served model cannot be copied",
}


def check_options(
    reference: Path | str,
    candidate: Path | str,
    *,
    serving: ServingOptions | None,
    **given: bool,
) -> None:
    """Check, before anything is opened, that the options fit the two sides.

    Args:
        reference: The side that is right by definition.
        candidate: The side that is checked.
        serving: Options for a server; None if the user gave none.
        given: Whether `drift` and `self_test` are given.

    Raises:
        ArgumentError: They do not fit.
    """
    if is_address(str(reference)):
        raise ArgumentError(
            f"{reference}: a server can only be the CANDIDATE; give the folder with the right "
            "model as the REFERENCE"
        )
    if not is_address(str(candidate)):
        if serving is not None:
            raise ArgumentError(
                f"{candidate}: is not a server's address, and --timeout, --concurrency, "
                "--requests and --protocol are for http://HOST:PORT/v2/models/NAME; leave them out"
            )
        return
    (serving or ServingOptions()).check(parse_address(str(candidate)))
    for name, why in _NEED_FILES.items():
        if given[name.replace("-", "_")]:
            raise ArgumentError(f"{name}: {why}; compare the folder that the server loaded instead")


def with_serving(
    result: ParityResult,
    reference: LocalArtifact,
    served: ServedSession,
    interface: ModelInterface,
    *,
    seed: int,
) -> ParityResult:
    """Add facts about the server and the answers to concurrent clients, even without parity.

    Raises:
        ServerError: The server stopped answering.
    """
    concurrency = None
    if result.outputs:
        concurrency = ask_at_once(served, interface, tolerance=result.tolerance, seed=seed)
    serving = Serving(
        server=str(served.server),
        platform=served.facts.platform,
        protocol=served.protocol,
        versions=tuple(sorted(served.answered_by)),
        graph=served_version(reference, served).found,
        concurrency=concurrency,
        notes=notes_on(served, generated=result.generation is not None),
    )
    return replace(result, serving=serving)
