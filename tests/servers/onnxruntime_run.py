"""Run GRAPH on INPUTS.npz with an old onnxruntime, in its own environment, into OUTPUTS.npz."""

import sys

import numpy as np
import onnxruntime

graph, inputs, outputs = sys.argv[1:]
session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
given = np.load(inputs)
found = {}
for number in sorted({name.split("/")[0] for name in given.files}):
    feed = {each.name: given[f"{number}/{each.name}"] for each in session.get_inputs()}
    found[number] = session.run(["logits"], feed)[0]
np.savez(outputs, **found)
