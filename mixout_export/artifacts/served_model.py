"""Open models on a running server, which shows only the names, types and shapes of its tensors."""

from dataclasses import replace
from typing import TYPE_CHECKING

from mixout_export.checkpoint.artifact import Artifact, Generators
from mixout_export.served.session import ServedSession
from mixout_export.served.tensors import DATATYPES

if TYPE_CHECKING:
    from mixout_export.checkpoint.interface import ModelInterface

#: Largest number of rows, and of tokens, in a batch made for a server that takes one fixed size.
_MOST_ROWS, _MOST_TOKENS = 1 << 10, 1 << 16


class ServedModel(Artifact):
    """A model on a server."""

    kind = "served"
    title = "model on a server"

    def __init__(self, session: ServedSession) -> None:
        self._session = session

    @property
    def session(self) -> ServedSession:
        """Requests to the model."""
        return self._session

    @property
    def where(self) -> str:
        """Address of the model, for messages."""
        return str(self.session.address)

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Label names; None if the server does not show them."""
        return self.session.facts.labels

    @property
    def precision(self) -> str:
        """Precision that the server reports; "" if it reports none."""
        return self.session.facts.precision

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs."""
        return self.session.inputs

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs to compare."""
        return self.session.outputs

    @property
    def runs_in(self) -> str:
        """Description of what computes the outputs."""
        session = self.session
        over = "gRPC" if session.protocol == "grpc" else f"{session.address.scheme.upper()}, "
        how = {"json": "numbers as JSON", "binary": "numbers as bytes", "grpc": ""}
        platform = f", {session.facts.platform}" if session.facts.platform else ""
        return f"{session.server}{platform}, over {over}{how[session.protocol]}"

    def runner(self, inputs: tuple[str, ...], *, headless: bool = False) -> ServedSession:
        """Return the runner, which sends requests to the server."""
        return self.session

    def generators(self) -> Generators:
        """Return the model with its cache, if it has one.

        A model without a cache has no generator, because the battery tests it completely.
        """
        return Generators(cached=self.session.cached)

    def described_by(self, other: "ModelInterface | None") -> "ModelInterface":
        """Return the other side's interface with the names and length that the server takes."""
        if other is None:
            raise TypeError("a served model needs the interface of its reference")
        known = tuple(name for name in self.inputs if name in _makeable())
        described = replace(other, inputs=known, outputs=self.outputs)
        length = self._fixed_length(other)
        if length is None:
            return described
        return replace(described, sequence_limit=length, shortest_sequence=length)

    def can_answer(self, ours: "ModelInterface", theirs: "ModelInterface") -> bool:
        """Return whether inputs can be made for the model and it has the reference's outputs."""
        makeable = all(
            spec.name in _makeable() and spec.datatype in DATATYPES
            for spec in self.session.facts.inputs
        )
        return makeable and set(ours.outputs) <= set(self.outputs) and self._has_a_size(ours)

    def _fixed_length(self, interface: "ModelInterface") -> int | None:
        """Return the only sequence length that a server takes; None if it takes several."""
        if interface.image is not None:
            return None
        lengths = [spec.shape[-1] for spec in self.session.facts.inputs if len(spec.shape) > 1]
        return next((length for length in lengths if length > 0), None)

    def _has_a_size(self, interface: "ModelInterface") -> bool:
        """Return whether the model can run the only size that a server takes, if it is so."""
        length = self._fixed_length(interface) or interface.shortest_sequence
        longest = interface.sequence_limit or length
        rows = self.session.fixed_rows or 1
        return (
            interface.shortest_sequence <= length <= longest
            and rows <= _MOST_ROWS
            and rows * length <= _MOST_TOKENS
        )


def _makeable() -> set[str]:
    """Return the names of inputs for which values can be made."""
    from mixout_export.checkpoint.interface import IMAGE_INPUT, KNOWN_INPUTS

    return {*KNOWN_INPUTS, "position_ids", IMAGE_INPUT}
