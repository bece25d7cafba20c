"""A served model judged: what its server says of it, and whether it is the version it should be."""

from dataclasses import dataclass
from functools import cached_property

from mixout_export.checkpoint.interface import ModelInterface
from mixout_export.files.streams import file_digest
from mixout_export.parity.battery import smallest_batch
from mixout_export.parity.description import different_labels, shared_interface
from mixout_export.parity.served_description import (
    can_be_asked,
    input_mismatches,
    output_mismatches,
    served_interface,
)
from mixout_export.parity.subject import OnnxSubject, Subject
from mixout_export.printable import one_line
from mixout_export.runners.runner import Runner
from mixout_export.served.metadata import MODEL_HASH, SOURCE_HASH
from mixout_export.served.session import ServedModel

#: What a hash is of, as a sentence has it.
_GRAPH, _SOURCE = "its graph has", "it was made from weights with"


_HASHES = (MODEL_HASH, SOURCE_HASH)


@dataclass(frozen=True)
class _Hashes:
    """SHA-256 of a graph and of the weights it was made from; None where unknown."""

    graph: str | None
    source: str | None


def _expected(reference: Subject, *, with_cache: bool) -> _Hashes:
    if isinstance(reference, OnnxSubject):
        recorded = reference.session.metadata.get("source_sha256")
        cached = reference.cached_graph if with_cache else None
        return _Hashes(file_digest(cached or reference.graph), recorded)
    if reference.folder.kind == "mixout":
        return _Hashes(None, None)  # collapse writes files of its own
    return _Hashes(None, reference.folder.weights_sha256())


@dataclass(frozen=True)
class Version:
    """Which version of a model a server holds, by the hashes that it shows.

    Attributes:
        reference: What it should be.
        served: What is on the server.
    """

    reference: Subject
    served: ServedModel

    @property
    def _shown(self) -> dict[str, str]:
        """The hashes that the server shows."""
        parameters = self.served.facts.parameters
        return {name: one_line(parameters[name]) for name in _HASHES if parameters.get(name)}

    @cached_property
    def _pairs(self) -> list[tuple[str, str, str]]:
        """What is hashed, the hash that is shown and the one expected, where both are known."""
        if not self._shown:
            return []
        expected = _expected(self.reference, with_cache=bool(self.served.empty))
        pairs = (
            (_GRAPH, self._shown.get(MODEL_HASH), expected.graph),
            (_SOURCE, self._shown.get(SOURCE_HASH), expected.source),
        )
        return [(what, found, right) for what, found, right in pairs if found and right]

    @property
    def found(self) -> str:
        """What the hashes say, as `Serving.graph` has it."""
        equal = {what: found.lower() == right for what, found, right in self._pairs}
        same_graph, same_source = equal.get(_GRAPH), equal.get(_SOURCE)
        if same_graph:
            return "this graph"
        if same_source:
            return "these weights" if same_graph is None else "another graph of these weights"
        if equal:
            return "another version"
        return "not comparable" if self._shown else "not shown"

    def reasons(self) -> list[str]:
        """Return a sentence if the server holds another version."""
        if self.found != "another version":
            return []
        what, found, right = next(pair for pair in self._pairs if pair[1].lower() != pair[2])
        return [
            f"{self.served.address}: serves another version of the model ({what} SHA-256 "
            f"{found}, expected {right}); load the new one into the server"
        ]


def _label_mismatches(
    reference: Subject, served: ServedModel, interface: ModelInterface
) -> list[str]:
    """Compare the labels of a server's own file with the reference's, where it has one."""
    expected, output = reference.labels, interface.outputs[0]
    if not expected or output not in served.facts.label_files:
        return []
    described = served_interface(served, interface)
    asked = smallest_batch(shared_interface(interface, described)).inputs
    found = served.labels(asked, output, len(expected))
    if found is None or found == expected:
        return []
    return [f"labels: in the file of {served.address}, {different_labels(found, expected)}"]


def served_mismatches(
    reference: Subject, runner: Runner, served: ServedModel, interface: ModelInterface
) -> tuple[str, ...]:
    """Return what a server says of a model that should not be so, as sentences.

    Args:
        reference: What the model should be.
        runner: Runs the reference.
        served: The served model.
        interface: What the reference takes and gives.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    labels: list[str] = []
    if can_be_asked(served, interface):
        outputs = runner.run(smallest_batch(interface).inputs)
        shapes = {name: value.shape for name, value in outputs.items()}
        labels = _label_mismatches(reference, served, interface)
    return (
        *Version(reference, served).reasons(),  # first, as it may explain the rest
        *input_mismatches(served, interface),
        *output_mismatches(served, interface, shapes),
        *labels,
    )
