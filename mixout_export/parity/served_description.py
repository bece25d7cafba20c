"""Compare the inputs and outputs that a server describes with the reference's."""

from collections.abc import Mapping

from mixout_export.checkpoint.interface import ModelInterface
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


def input_mismatches(served: ServedSession, reference: ModelInterface) -> list[str]:
    """Return how a server's inputs differ from the reference's, as sentences."""
    where, found = f"{served.address}", []
    for name in reference.inputs if served.facts.inputs else ():
        if name not in served.inputs:
            found.append(f"input {name!r}: {where} does not take it, but the reference does")
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


def output_mismatches(
    served: ServedSession,
    reference: ModelInterface,
    shapes: Mapping[str, tuple[int, ...]],
) -> list[str]:
    """Return how a server's outputs differ from the reference's, as sentences.

    Args:
        served: The served model.
        reference: Inputs and outputs of the reference.
        shapes: Output name → shape of the reference's output for one batch; {} if it was not run.
    """
    found = []
    names = [spec.name for spec in served.facts.outputs]
    if names and set(names) != set(reference.outputs):
        found.append(
            f"outputs: {served.address} gives {one_line(', '.join(names))}, expected "
            f"{', '.join(reference.outputs)}"
        )
    for spec in served.facts.outputs:
        if spec.name in reference.outputs:
            problem = _output_problem(spec, shapes.get(spec.name))
            if problem:
                found.append(f"output {spec.name!r}: on {served.address} it {problem}")
    return found


def notes_on(served: ServedSession, *, generated: bool) -> tuple[str, ...]:
    """Return remarks about a server that are not faults, as sentences.

    Args:
        served: The served model.
        generated: Whether generated text was compared.
    """
    notes = []
    if not served.facts.inputs or not served.facts.outputs:
        notes.append(
            "the server does not describe the model's inputs and outputs, so those of the "
            "reference were used"
        )
    if served.facts.precision not in ("", "fp32"):
        precision = one_line(served.facts.precision)
        notes.append(f"the server says that its model is {precision}, so that tolerance applies")
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
