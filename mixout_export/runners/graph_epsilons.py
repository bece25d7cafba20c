"""The epsilons of a graph's normalizations."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx

#: Operators that normalize, with their epsilon as an attribute.
NORMALIZATIONS = (
    "LayerNormalization",
    "RMSNormalization",
    "SimplifiedLayerNormalization",
    "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization",
)


def graph_epsilons(path: Path, values_of: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Return the epsilon of each normalization that is one node, by the module's name."""
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
