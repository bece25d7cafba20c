"""The outputs of the modules that a graph was exported from, while it runs one batch.

The values that leave each module become outputs of a copy in memory, so that one session gives them
all. The graph on the disk is left alone: outputs that are added may keep a runtime from fusing.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from mixout_export.runners.onnx_runner import open_session
from mixout_export.runners.runner import Array
from mixout_export.runners.trace import Trace


def trace_graph(
    path: Path, modules: Mapping[str, Sequence[str]], inputs: Mapping[str, Array], *, provider: str
) -> Trace:
    """Run a copy of a graph and return the values that leave its modules, in the graph's order.

    Args:
        path: The graph's file.
        modules: Module → names of the values that leave it, as the graph records them.
        inputs: One batch.
        provider: onnxruntime's execution provider.
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
