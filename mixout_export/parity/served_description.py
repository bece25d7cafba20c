"""Compare the inputs and outputs that a server describes with the reference's."""

from collections.abc import Mapping
from dataclasses import dataclass

from mixout_export.checkpoint.artifact import Artifact
from mixout_export.checkpoint.interface import ModelInterface, shared_interface
from mixout_export.checkpoint.model_inputs import smallest_batch
from mixout_export.files.graph_metadata import MODEL_SHA256, SOURCE_SHA256
from mixout_export.parity.labels import different_labels
from mixout_export.printable import one_line
from mixout_export.served.metadata import TensorSpec
from mixout_export.served.session import ServedSession
from mixout_export.served.tensors import FLOATING, INTEGERS

#: Largest number of sentences about inputs that the reference does not take.
_MOST_UNKNOWN = 8


def _rank(interface: ModelInterface) -> int:
    if interface.image is not None:
        return 4
    return 3 if interface.choices else 2


def _shown(shape: tuple[int, ...]) -> str:
    return "[" + ", ".join("any" if size < 0 else str(size) for size in shape) + "]"


def _input_problem(spec: TensorSpec, reference: ModelInterface) -> str | None:
    """Return what is wrong with an input, as the end of a sentence."""
    kinds = FLOATING if reference.image is not None else INTEGERS
    if spec.datatype not in kinds:
        return f"is {spec.datatype}, expected {' or '.join(kinds)}"
    if not spec.shape:
        return None  # unknown
    if len(spec.shape) != _rank(reference):
        return f"has shape {_shown(spec.shape)}, expected {_rank(reference)} axes, the batch first"
    if spec.shape[0] > 0:
        return f"takes batches of {spec.shape[0]} only, expected any number of rows"
    if reference.image is not None:
        differ = any(
            s > 0 and s != size for s, size in zip(spec.shape[1:], reference.image, strict=True)
        )
        wanted = (-1, *reference.image)
        return f"has shape {_shown(spec.shape)}, expected {_shown(wanted)}" if differ else None
    if spec.shape[-1] > 0:
        return f"takes sequences of {spec.shape[-1]} tokens only, expected any length"
    if len(spec.shape) == 3 and spec.shape[1] > 0:
        return f"takes {spec.shape[1]} choices only, expected any number"
    return None


def _input_mismatches(served: ServedSession, reference: ModelInterface) -> list[str]:
    """Return how a server's inputs differ from the reference's, as sentences."""
    where = str(served.address)
    found = [
        f"input {name!r}: {where} does not take it, but the reference does"
        for name in reference.inputs
        if served.facts.inputs and name not in served.inputs
    ]
    for spec in served.facts.inputs:
        problem = _input_problem(spec, reference) if spec.name in reference.inputs else None
        if problem:
            found.append(f"input {spec.name!r}: on {where} it {problem}")
    known = {*reference.inputs, "position_ids"}
    unknown = [spec.name for spec in served.facts.inputs if spec.name not in known]
    found += [
        f"input {name!r}: {where} takes it, but the reference does not"
        for name in unknown[:_MOST_UNKNOWN]
    ]
    if len(unknown) > _MOST_UNKNOWN:
        more = len(unknown) - _MOST_UNKNOWN
        found.append(f"inputs: {where} takes {more} more that the reference does not")
    return found


def _output_problem(spec: TensorSpec, expected: tuple[int, ...] | None) -> str | None:
    """Return what is wrong with an output, as the end of a sentence."""
    if spec.datatype not in FLOATING:
        return f"is {spec.datatype}, expected {' or '.join(FLOATING)}"
    if expected is None or not spec.shape:
        return None
    if len(spec.shape) != len(expected):
        more = len(spec.shape) == len(expected) + 1 and spec.shape[-1] == 1
        extra = " with an additional axis of size 1 at the end" if more else ""
        return f"has shape {_shown(spec.shape)}{extra}, expected {len(expected)} axes"
    if any(
        size > 0 and size != right for size, right in zip(spec.shape[1:], expected[1:], strict=True)
    ):
        return f"has shape {_shown(spec.shape)}, expected {_shown((-1, *expected[1:]))}"
    return None


def _output_mismatches(
    served: ServedSession,
    reference: ModelInterface,
    shapes: Mapping[str, tuple[int, ...]],
) -> list[str]:
    """Return how a server's outputs differ from the reference's, as sentences.

    `shapes` maps outputs of the reference to their shapes for one batch; it is empty if the
    reference was not run.
    """
    found = []
    names = [spec.name for spec in served.facts.outputs]
    if names and set(names) != set(reference.outputs):
        found.append(
            f"outputs: {served.address} gives {one_line(', '.join(names))}, expected "
            f"{', '.join(reference.outputs)}"
        )
    for spec in served.facts.outputs:
        known = spec.name in reference.outputs
        problem = _output_problem(spec, shapes.get(spec.name)) if known else None
        if problem:
            found.append(f"output {spec.name!r}: on {served.address} it {problem}")
    return found


@dataclass(frozen=True)
class ServedVersion:
    """Which version of a model a server holds, according to the hashes that it shows.

    Attributes:
        found: The result of comparing the hashes; see `Serving.graph`.
        reasons: A sentence if the server holds another version of the model.
    """

    found: str
    reasons: tuple[str, ...] = ()


def served_version(reference: Artifact, served: ServedSession) -> ServedVersion:
    """Compare the hashes that a server shows with those of the reference."""
    parameters = served.facts.parameters
    graph, source = (one_line(parameters.get(name) or "") for name in (MODEL_SHA256, SOURCE_SHA256))
    if not graph and not source:
        return ServedVersion("not shown")
    expected = reference.hashes(with_cache=bool(served.empty))
    same_graph = graph.lower() == expected.graph if graph and expected.graph else None
    same_source = source.lower() == expected.source if source and expected.source else None
    if same_graph:
        return ServedVersion("this graph")
    if same_source:
        same = "these weights" if same_graph is None else "another graph of these weights"
        return ServedVersion(same)
    if same_graph is None and same_source is None:
        return ServedVersion("not comparable")
    hashes = f"its graph has SHA-256 {graph}, expected {expected.graph}"
    if same_graph is None:
        hashes = f"it was made from weights with SHA-256 {source}, expected {expected.source}"
    reason = (
        f"{served.address}: serves another version of the model ({hashes}); load the right version "
        "into the server"
    )
    return ServedVersion("another version", (reason,))


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
    """Return how a served model's description contradicts the reference, as sentences."""
    shapes: dict[str, tuple[int, ...]] = {}
    labels: list[str] = []
    if candidate.can_answer(ours, theirs):
        outputs = reference.runner(ours.inputs).run(smallest_batch(ours).inputs)
        shapes = {name: value.shape for name, value in outputs.items()}
        labels = _label_mismatches(reference, served, ours, theirs)
    return (
        *served_version(reference, served).reasons,  # first, because it may explain the others
        *_input_mismatches(served, ours),
        *_output_mismatches(served, ours, shapes),
        *labels,
    )


def notes_on(served: ServedSession, *, generated: bool) -> tuple[str, ...]:
    """Return remarks about a server that are not faults, as sentences.

    `generated` says whether generated text was compared.
    """
    notes = []
    if not served.facts.inputs or not served.facts.outputs:
        notes.append(
            "the server does not describe the model's inputs and outputs, so those of the "
            "reference were used"
        )
    if served.facts.precision not in ("", "fp32"):
        precision = one_line(served.facts.precision)
        notes.append(
            f"the server says that its model is {precision}, therefore the {precision} criterion "
            "applies"
        )
    if any(spec.datatype == "INT32" for spec in served.facts.inputs):
        notes.append("the server takes ids as INT32, so they were sent in that type")
    if served.empty and not generated:
        notes.append(
            "its key/value cache was tested only when empty; to compare generated text, give the "
            "Hugging Face folder as REFERENCE"
        )
    if served.most_rows is not None:
        notes.append(f"requests had at most {served.most_rows} rows, which is the server's limit")
    return tuple(notes)
