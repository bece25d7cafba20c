"""What two sides say of themselves: what they take and give, their task, their labels."""

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mixout_export.checkpoint.interface import IMAGE_INPUT, ModelInterface
from mixout_export.errors import CheckpointError
from mixout_export.files.layout import LAYOUT
from mixout_export.parity.served_description import served_interface
from mixout_export.parity.subject import (
    Candidate,
    OnnxSubject,
    ServedSubject,
    Subject,
    TorchSubject,
)
from mixout_export.printable import one_line


def _borrowed(graph: OnnxSubject, other: ModelInterface | None) -> ModelInterface:
    """Describe a graph that records nothing by the other side, or by the folder around it."""
    inputs, outputs = graph.session.inputs, graph.session.outputs
    if other is not None:
        return replace(other, inputs=inputs, outputs=outputs)
    if inputs == (IMAGE_INPUT,):
        return _borrowed_of_images(graph)
    config = graph.folder.config
    if "vocab_size" not in config:
        raise CheckpointError(
            f"{graph.graph}: neither the graph nor a {LAYOUT.config} beside it says how large the "
            f"vocabulary is; put the checkpoint's {LAYOUT.config} beside it"
        )
    return ModelInterface(
        inputs=inputs,
        outputs=outputs,
        vocabulary_size=config["vocab_size"],
        sequence_limit=config.get("max_position_embeddings"),
        segments=config.get("type_vocab_size") or 1,
        pad_token_id=config.get("pad_token_id"),
    )


def _borrowed_of_images(graph: OnnxSubject) -> ModelInterface:
    """Describe a graph that takes images by their shape in it."""
    shape = graph.session.input_shapes[IMAGE_INPUT][1:]
    sizes = [size for size in shape if isinstance(size, int)]
    if len(shape) != 3 or len(sizes) != 3:
        raise CheckpointError(
            f"{graph.graph}: {IMAGE_INPUT} has shape (batch, {', '.join(map(str, shape))}) there, "
            "so the size of an image is unknown; compare it with the checkpoint it came from"
        )
    return ModelInterface(
        inputs=graph.session.inputs,
        outputs=graph.session.outputs,
        vocabulary_size=0,
        image=(sizes[0], sizes[1], sizes[2]),
    )


def _same_inputs(
    reference: Subject, candidate: Candidate, ours: ModelInterface, theirs: ModelInterface
) -> tuple[ModelInterface, ModelInterface]:
    """Let two PyTorch sides take the same inputs, those of either that both forwards take.

    What a folder's inputs are is read from its tokenizer, which one of the two may lack.
    """
    if not isinstance(reference, TorchSubject) or not isinstance(candidate, TorchSubject):
        return ours, theirs
    accepted = [inspect.signature(side.model.forward).parameters for side in (reference, candidate)]
    wanted = shared_interface(ours, theirs).inputs
    inputs = tuple(name for name in wanted if all(name in names for names in accepted))
    return replace(ours, inputs=inputs), replace(theirs, inputs=inputs)


def interfaces(reference: Subject, candidate: Candidate) -> tuple[ModelInterface, ModelInterface]:
    """Return both sides' interfaces.

    Raises:
        CheckpointError: Nothing says how large a graph's vocabulary, or its image, is.
    """
    ours, theirs = reference.interface, candidate.interface
    if isinstance(reference, OnnxSubject) and ours is None:
        ours = _borrowed(reference, theirs)
    if isinstance(candidate, ServedSubject) and ours is not None:
        theirs = served_interface(candidate.session, ours)
    elif isinstance(candidate, OnnxSubject) and theirs is None:
        theirs = _borrowed(candidate, ours)
    if ours is None or theirs is None:
        raise TypeError("a PyTorch side always has an interface")
    return _same_inputs(reference, candidate, ours, theirs)


def shared_interface(ours: ModelInterface, theirs: ModelInterface) -> ModelInterface:
    """Return the ranges that both sides accept, and all inputs that either takes."""
    limits = [limit for limit in (ours.sequence_limit, theirs.sequence_limit) if limit is not None]
    return replace(
        ours,
        inputs=tuple(dict.fromkeys((*ours.inputs, *theirs.inputs))),
        vocabulary_size=min(ours.vocabulary_size, theirs.vocabulary_size),
        sequence_limit=min(limits, default=None),
        segments=min(ours.segments, theirs.segments),
        shortest_sequence=max(ours.shortest_sequence, theirs.shortest_sequence),
        pad_token_id=theirs.pad_token_id if ours.pad_token_id is None else ours.pad_token_id,
    )


#: Labels of a model that a sentence lists; of more it has the first that differs.
_FEW_LABELS = 10


def _shown(value: Any) -> str:
    return one_line(", ".join(map(str, value)) if isinstance(value, tuple) else value)


def different_labels(found: Sequence[str], expected: Sequence[str]) -> str:
    """Return how two models' labels differ, as the end of a sentence."""
    if max(len(found), len(expected)) <= _FEW_LABELS:
        return f"got {_shown(tuple(found))}, expected {_shown(tuple(expected))}"
    if len(found) != len(expected):
        return f"got {len(found)} labels, expected {len(expected)}"
    number = next(n for n, pair in enumerate(zip(found, expected, strict=True)) if len({*pair}) > 1)
    return f"label {number} is {one_line(found[number])}, expected {one_line(expected[number])}"


def _different_facts(
    reference: Subject, candidate: Candidate, ours: ModelInterface, theirs: ModelInterface
) -> list[str]:
    facts: list[tuple[str, Any, Any]] = [
        ("vocabulary size", ours.vocabulary_size, theirs.vocabulary_size),
        ("sequence limit", ours.sequence_limit, theirs.sequence_limit),
        ("number of segments", ours.segments, theirs.segments),
        ("channels, height and width of an image", ours.image, theirs.image),
        ("task", reference.task, candidate.task),
    ]
    found = [
        f"{name}: got {_shown(right)}, expected {_shown(left)}"
        for name, left, right in facts
        if left is not None and right is not None and left != right
    ]
    labels, expected = candidate.labels, reference.labels
    if labels is not None and expected is not None and labels != expected:
        found.append(f"labels: {different_labels(labels, expected)}")
    return found


def _different_names(
    reference: Subject, candidate: Subject, ours: ModelInterface, theirs: ModelInterface
) -> list[str]:
    """Compare names of inputs, where a graph fixes them, and of outputs."""
    found = []
    if isinstance(reference, OnnxSubject) or isinstance(candidate, OnnxSubject):
        for name in sorted(set(ours.inputs) ^ set(theirs.inputs)):
            without = candidate if name in ours.inputs else reference
            if name == "position_ids" and isinstance(without, TorchSubject):
                continue  # PyTorch counts the very positions that the graph is told
            found.append(f"input {name!r}: {without.path} does not take it, the other side does")
    if reference.headless == candidate.headless and ours.outputs != theirs.outputs:
        found.append(f"outputs: got {_shown(theirs.outputs)}, expected {_shown(ours.outputs)}")
    return found


def _broken_anchors(subject: Subject) -> list[str]:
    if not isinstance(subject, TorchSubject):
        return []
    try:
        subject.folder.check_anchors()
    except CheckpointError as error:
        return [str(error)]
    return []


def find_mismatches(
    reference: Subject, candidate: Candidate, ours: ModelInterface, theirs: ModelInterface
) -> tuple[str, ...]:
    """Return what the two sides say of themselves and do not agree on, as sentences.

    What one side does not know is no mismatch; nor is a head that one side does not have.
    """
    if isinstance(candidate, ServedSubject):
        # of what a server takes it shows the shapes, which are judged where they are read
        described = replace(ours, inputs=theirs.inputs, outputs=theirs.outputs)
        facts = _different_facts(reference, candidate, ours, described)
        return (*facts, *_broken_anchors(reference))
    return (
        *_different_facts(reference, candidate, ours, theirs),
        *_different_names(reference, candidate, ours, theirs),
        *_broken_anchors(reference),
        *_broken_anchors(candidate),
    )
