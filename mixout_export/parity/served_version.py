"""Compare a served model's description and version with the reference."""

from dataclasses import dataclass
from functools import cached_property

from mixout_export.checkpoint.artifact import Artifact
from mixout_export.checkpoint.interface import ModelInterface, shared_interface
from mixout_export.checkpoint.model_inputs import smallest_batch
from mixout_export.files.graph_metadata import MODEL_SHA256, SOURCE_SHA256
from mixout_export.parity.labels import different_labels
from mixout_export.parity.served_description import input_mismatches, output_mismatches
from mixout_export.printable import one_line
from mixout_export.served.session import ServedSession

#: The two kinds of hash, as the beginning of a clause.
_GRAPH, _SOURCE = "its graph has", "it was made from weights with"

_HASHES = (MODEL_SHA256, SOURCE_SHA256)


@dataclass(frozen=True)
class Version:
    """Which version of a model a server holds, according to the hashes that it shows.

    Attributes:
        reference: The model that should be on the server.
        served: The model on the server.
    """

    reference: Artifact
    served: ServedSession

    @property
    def _shown(self) -> dict[str, str]:
        """The hashes that the server shows."""
        parameters = self.served.facts.parameters
        return {name: one_line(parameters[name]) for name in _HASHES if parameters.get(name)}

    @cached_property
    def _pairs(self) -> list[tuple[str, str, str]]:
        """For each hash that both sides have: what it is of, the server's, and the expected one."""
        if not self._shown:
            return []
        expected = self.reference.hashes(with_cache=bool(self.served.empty))
        pairs = (
            (_GRAPH, self._shown.get(MODEL_SHA256), expected.graph),
            (_SOURCE, self._shown.get(SOURCE_SHA256), expected.source),
        )
        return [(what, found, right) for what, found, right in pairs if found and right]

    @property
    def found(self) -> str:
        """The result of comparing the hashes; see `Serving.graph`."""
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
        """Return a sentence if the server holds another version of the model."""
        if self.found != "another version":
            return []
        what, found, right = next(pair for pair in self._pairs if pair[1].lower() != pair[2])
        return [
            f"{self.served.address}: serves another version of the model ({what} SHA-256 "
            f"{found}, expected {right}); load the right version into the server"
        ]


def _label_mismatches(
    reference: Artifact, served: ServedSession, ours: ModelInterface, theirs: ModelInterface
) -> list[str]:
    """Compare the labels in the server's label file with the reference's, if it has such a file."""
    expected, output = reference.labels, ours.outputs[0]
    if not expected or output not in served.facts.label_files:
        return []
    asked = smallest_batch(shared_interface(ours, theirs)).inputs
    found = served.labels(asked, output, len(expected))
    if found is None or found == expected:
        return []
    return [f"labels: in the file of {served.address}, {different_labels(found, expected)}"]


def served_mismatches(
    reference: Artifact,
    candidate: Artifact,
    served: ServedSession,
    ours: ModelInterface,
    theirs: ModelInterface,
) -> tuple[str, ...]:
    """Return how a served model's description contradicts the reference, as sentences.

    Args:
        reference: The model that should be on the server.
        candidate: The model on the server.
        served: Requests to that model.
        ours: Inputs and outputs of the reference.
        theirs: Inputs and outputs of the served model.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    labels: list[str] = []
    if candidate.can_answer(ours, theirs):
        outputs = reference.runner(ours.inputs).run(smallest_batch(ours).inputs)
        shapes = {name: value.shape for name, value in outputs.items()}
        labels = _label_mismatches(reference, served, ours, theirs)
    return (
        *Version(reference, served).reasons(),  # first, because it may explain the others
        *input_mismatches(served, ours),
        *output_mismatches(served, ours, shapes),
        *labels,
    )
