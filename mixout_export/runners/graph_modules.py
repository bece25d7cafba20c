"""Read the values that leave the modules of a graph, and the epsilons of its normalizations."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from mixout_export.runners.onnx_runner import open_session
from mixout_export.runners.runner import Array
from mixout_export.runners.trace import Trace

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


def trace_graph(
    path: Path, modules: Mapping[str, Sequence[str]], inputs: Mapping[str, Array], *, provider: str
) -> Trace:
    """Run a copy of a graph on a batch, and return the values that leave its modules, in its order.

    For each module, the graph records the names of these values. They become outputs of a copy in
    memory, so one session returns them all. The file stays as it is, because additional outputs may
    keep a runtime from fusing.
    """
    graph = onnx.load(path, load_external_data=False)
    order = {name: at for at, node in enumerate(graph.graph.node) for name in node.output}
    there = {key: names for key, names in modules.items() if names and order.keys() >= set(names)}
    own = [value.name for value in graph.graph.output]
    left = dict(sorted(there.items(), key=lambda item: (order[item[1][-1]], -len(item[0]))))
    left[""] = own  # the model itself
    names = list(dict.fromkeys(name for values in left.values() for name in values))
    graph.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in own)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(path.parent)
    )
    session = open_session(graph.SerializeToString(), options, provider=provider)
    taken = {value.name for value in session.get_inputs()}
    values = session.run(names, {name: inputs[name] for name in taken}) if names else []
    found = {name: value.astype(np.float32) for name, value in zip(names, values, strict=True)}
    outputs = {(module, 0): [found[name] for name in names] for module, names in left.items()}
    return Trace(outputs, {}, frozenset(), counts_calls=False)
