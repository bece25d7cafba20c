"""Compare what two sides say about themselves: inputs, outputs, task and labels."""

from dataclasses import replace
from typing import Any

import numpy as np

from mixout_export.checkpoint.artifact import Artifact, LocalArtifact
from mixout_export.checkpoint.interface import ModelInterface, shared_interface
from mixout_export.parity.labels import different_labels
from mixout_export.parity.served_description import served_mismatches
from mixout_export.printable import one_line


def _same_inputs(
    reference: Artifact, candidate: Artifact, ours: ModelInterface, theirs: ModelInterface
) -> tuple[ModelInterface, ModelInterface]:
    """Give two PyTorch sides the same inputs: all that one of them has and both forwards accept.

    The inputs of a checkpoint are derived from its tokenizer, which one of them may lack.
    """
    left, right = reference.checkpoint, candidate.checkpoint
    if left is None or right is None:
        return ours, theirs
    accepted = left.accepted_inputs & right.accepted_inputs
    inputs = tuple(name for name in shared_interface(ours, theirs).inputs if name in accepted)
    return replace(ours, inputs=inputs), replace(theirs, inputs=inputs)


def interfaces(
    reference: LocalArtifact, candidate: Artifact
) -> tuple[ModelInterface, ModelInterface]:
    """Return both sides' interfaces. What one side does not record is taken from the other.

    Raises:
        CheckpointError: Neither side tells the size of a graph's vocabulary or images.
    """
    ours = reference.described_by(candidate.interface)
    return _same_inputs(reference, candidate, ours, candidate.described_by(ours))


def _shown(value: Any) -> str:
    return one_line(", ".join(map(str, value)) if isinstance(value, tuple) else value)


def _different_facts(
    reference: Artifact, candidate: Artifact, ours: ModelInterface, theirs: ModelInterface
) -> list[str]:
    facts: list[tuple[str, Any, Any]] = [
        ("vocabulary size", ours.vocabulary_size, theirs.vocabulary_size),
        ("sequence limit", ours.sequence_limit, theirs.sequence_limit),
        ("number of segments", ours.segments, theirs.segments),
        ("channels, height and width of an image", ours.image, theirs.image),
        ("task", reference.task_name, candidate.task_name),
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
    reference: Artifact, candidate: Artifact, ours: ModelInterface, theirs: ModelInterface
) -> list[str]:
    """Compare the names of the outputs and, if a graph fixes them, of the inputs."""
    found = []
    if reference.graph or candidate.graph:
        for name in sorted(set(ours.inputs) ^ set(theirs.inputs)):
            without = candidate if name in ours.inputs else reference
            if name == "position_ids" and without.checkpoint:
                continue  # PyTorch counts the positions that the graph is given
            found.append(f"input {name!r}: {without.where} does not take it, the other side does")
    if reference.headless == candidate.headless and ours.outputs != theirs.outputs:
        found.append(f"outputs: got {_shown(theirs.outputs)}, expected {_shown(ours.outputs)}")
    return found


def find_mismatches(
    reference: LocalArtifact, candidate: Artifact, ours: ModelInterface, theirs: ModelInterface
) -> tuple[str, ...]:
    """Return how the two sides describe themselves differently, as sentences.

    What one side does not know is not a mismatch, and neither is a head that one side lacks.
    """
    damage = (*reference.damage(), *candidate.damage())
    if candidate.session is not None:
        return (
            *served_mismatches(reference, candidate, candidate.session, ours, theirs),
            *_different_facts(reference, candidate, ours, ours),  # a server shows only shapes
            *damage,
        )
    return (
        *_different_facts(reference, candidate, ours, theirs),
        *_different_names(reference, candidate, ours, theirs),
        *damage,
    )


def different_epsilons(reference: Artifact, candidate: Artifact) -> tuple[str, ...]:
    """Return a sentence if normalizations that both sides know have different epsilons.

    A normalization that consists of several nodes of a graph, or that is on a server, is not known
    here. Its outputs are still compared.
    """
    headless = reference.headless != candidate.headless
    theirs = candidate.epsilons(headless=headless)
    ours = reference.epsilons(headless=headless) if theirs else {}
    wrong = [
        name
        for name, value in theirs.items()
        # float32 is the type of a graph's attributes
        if name in ours and np.float32(value) != np.float32(ours[name])
    ]
    if not wrong:
        return ()
    first = wrong[0]
    more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
    return (f"epsilon of {first!r}: got {theirs[first]:g}, expected {ours[first]:g}{more}",)
