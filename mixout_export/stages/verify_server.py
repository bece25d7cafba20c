"""A server in a comparison: which options it takes, and how it serves."""

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

#: What else looks into a model, and what to do where a server holds it.
_NOT_SHOWN = {
    "drift": "looks at every module, and a server shows none",
    "self-test": "puts faults into copies of the candidate, and a server's cannot be copied",
}


def check_options(
    reference: Path | str,
    candidate: Path | str,
    *,
    serving: ServingOptions | None,
    **asked: bool,
) -> None:
    """Check, before anything is opened, that what is asked for fits what is compared.

    Args:
        reference: What the candidate should be.
        candidate: What is judged.
        serving: How to ask a server; None if nobody said.
        asked: Whether the options that look into a model are given, "_" for "-".

    Raises:
        ArgumentError: It does not.
    """
    if is_address(str(reference)):
        raise ArgumentError(
            f"{reference}: a server can only be the CANDIDATE; give the folder that says what is "
            "right as the REFERENCE"
        )
    if not is_address(str(candidate)):
        if serving is not None:
            raise ArgumentError(
                f"{candidate}: is not a server's address, and --timeout, --concurrency, "
                "--requests and --protocol are for http://HOST:PORT/v2/models/NAME; leave them out"
            )
        return
    (serving or ServingOptions()).check(parse_address(str(candidate)))
    for name, why in _NOT_SHOWN.items():
        if asked[name.replace("-", "_")]:
            raise ArgumentError(f"{name}: {why}; compare the folder that it was given instead")


def with_serving(
    result: ParityResult,
    reference: LocalArtifact,
    served: ServedSession,
    interface: ModelInterface,
    *,
    seed: int,
) -> ParityResult:
    """Add how a server serves, whether or not parity holds.

    Args:
        result: The comparison.
        reference: What the candidate should be.
        served: The connection to the model.
        interface: What both take.
        seed: Of the clients' inputs.

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
