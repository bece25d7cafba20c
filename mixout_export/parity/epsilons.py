"""The epsilons of normalisations: a wrong one changes outputs, though often by very little."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from torch import nn

from mixout_export.files.graph_metadata import recorded_lists
from mixout_export.parity.subject import Candidate, ServedSubject, Subject, TorchSubject

#: Operators that normalise, with their epsilon as an attribute.
NORMALIZATIONS = (
    "LayerNormalization",
    "RMSNormalization",
    "SimplifiedLayerNormalization",
    "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization",
)

#: What PyTorch's and transformers' modules call theirs.
_ATTRIBUTES = ("eps", "variance_epsilon", "epsilon")


def _of_model(model: nn.Module) -> dict[str, float]:
    """Return the epsilon of each normalisation, by the module's name."""
    found: dict[str, float] = {}
    for name, module in model.named_modules():
        values = (getattr(module, attribute, None) for attribute in _ATTRIBUTES)
        epsilon = next((value for value in values if isinstance(value, float)), None)
        if epsilon is not None and next(module.children(), None) is None:
            found[name] = epsilon
    return found


def _of_graph(path: Path, values_of: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Return the epsilon of each normalisation that is one node, by the module's name."""
    nodes = {
        node.output[0]: {attribute.name: attribute.f for attribute in node.attribute}
        for node in onnx.load(path, load_external_data=False).graph.node
        if node.op_type in NORMALIZATIONS
    }
    made: dict[str, str] = {}  # value → the innermost of the modules that return it
    for module, values in values_of.items():
        if values and "epsilon" in nodes.get(values[-1], {}):
            made[values[-1]] = max(made.get(values[-1], ""), module, key=len)
    return {module: nodes[value]["epsilon"] for value, module in made.items()}


def _epsilons(subject: Subject, *, headless: bool) -> dict[str, float]:
    if isinstance(subject, TorchSubject):
        return _of_model(subject.model.base_model if headless else subject.model)
    recorded = recorded_lists(subject.session.metadata, "module_values", subject.graph)
    return {} if recorded is None else _of_graph(subject.graph, recorded)


def different_epsilons(reference: Subject, candidate: Candidate) -> tuple[str, ...]:
    """Return a sentence if normalisations that both sides have differ in their epsilons.

    A normalisation that a graph spells out in several nodes is left to the outputs, and so are
    all of a server, which shows none.
    """
    if isinstance(candidate, ServedSubject):
        return ()
    headless = reference.headless != candidate.headless
    ours = _epsilons(reference, headless=headless)
    theirs = _epsilons(candidate, headless=headless)
    wrong = [
        name for name, value in theirs.items() if name in ours and not _equal(value, ours[name])
    ]
    if not wrong:
        return ()
    first = wrong[0]
    more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
    return (f"epsilon of {first!r}: got {theirs[first]:g}, expected {ours[first]:g}{more}",)


def _equal(left: float, right: float) -> bool:
    """Compare as float32, in which graphs hold attributes."""
    return bool(np.float32(left) == np.float32(right))
