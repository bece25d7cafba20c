"""Run a graph with OpenVINO, in OpenVINO's environment: GRAPH INPUTS.npz OUTPUTS.npz."""

import sys

import numpy as np
import openvino

graph, inputs, outputs = sys.argv[1:]
# full precision: on some processors the default is bfloat16
model = openvino.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
given = np.load(inputs)
found = {}
for number in sorted({name.split("/")[0] for name in given.files}):
    parts = {
        name.split("/")[1]: given[name] for name in given.files if name.startswith(f"{number}/")
    }
    found[number] = model(parts)[model.output("logits")]
np.savez(outputs, **found)
