"""Make the example request and answer on a bundle's page, with its own tokenizer and graph."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mixout_export.bundling.source import Graph, OnnxFolder
from mixout_export.runners.onnx_runner import open_session
from mixout_export.tasks import known_task

SENTENCE = "The film was a delight from the first scene to the last."

#: How many numbers of each output a page shows.
_SHOWN = 8

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Example:
    """A request to the graph, and its answer.

    Attributes:
        text: The text that was tokenized; "" if there is no tokenizer.
        inputs: Input name → array. The first axis is the batch.
        outputs: Output name → array.
        label: The most likely label; "" if the model does not choose one.
        score: Probability of that label, in [0, 1]; 0 if there is no label.
    """

    text: str
    inputs: dict[str, Array]
    outputs: dict[str, Array]
    label: str = ""
    score: float = 0.0

    def request(self) -> dict[str, Any]:
        """Return the request's body in the Open Inference Protocol, version 2."""
        names = {np.dtype(np.int64): "INT64", np.dtype(np.float32): "FP32"}
        return {
            "inputs": [
                {
                    "name": name,
                    "datatype": names[value.dtype],
                    "shape": list(value.shape),
                    "data": value.reshape(-1).tolist(),
                }
                for name, value in self.inputs.items()
            ]
        }

    def answer(self) -> dict[str, list[float]]:
        """Return the first numbers of each output."""
        return {
            name: [round(float(number), 5) for number in value.reshape(-1)[:_SHOWN]]
            for name, value in self.outputs.items()
        }


def _inputs_of(folder: OnnxFolder, graph: Graph) -> tuple[str, dict[str, Array]] | None:
    """Return a text and the graph's inputs for it; None if the graph takes something else."""
    names = [value.name for value in graph.inputs]
    if not set(names) <= {"input_ids", "attention_mask", "token_type_ids"}:
        return None
    if any(value.datatype != "INT64" or len(value.shape) != 2 for value in graph.inputs):
        return None
    tokenizer = folder.model.tokenizer
    if tokenizer is None:
        ids = np.array([[1, 2, 3, 4]], dtype=np.int64)
        arrays = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "token_type_ids": np.zeros_like(ids),
        }
        return "", {name: arrays[name] for name in names}
    encoded = tokenizer(SENTENCE, return_tensors="np")
    if not set(names) <= encoded.keys():
        return None
    return SENTENCE, {name: encoded[name].astype(np.int64) for name in names}


def _decision(folder: OnnxFolder, outputs: dict[str, Array]) -> tuple[str, float]:
    """Return the most likely label and its probability; ("", 0.0) for other tasks."""
    logits = outputs.get("logits")
    task = known_task(folder.task)
    if logits is None or task is None or not task.classifies or logits.ndim != 2:
        return "", 0.0
    if len(folder.labels) != logits.shape[-1]:
        return "", 0.0
    powers = np.exp(logits[0].astype(np.float64) - logits[0].max())
    best = int(powers.argmax())
    return folder.labels[best], float(powers[best] / powers.sum())


def make_example(folder: OnnxFolder, graph: Graph) -> Example | None:
    """Run a graph on one text. Return None if the graph takes something other than texts."""
    found = _inputs_of(folder, graph)
    if found is None:
        return None
    text, inputs = found
    session = open_session(graph.path)
    names = [value.name for value in session.get_outputs()]
    outputs = dict(zip(names, session.run(names, inputs), strict=True))
    return Example(text, inputs, outputs, *_decision(folder, outputs))
