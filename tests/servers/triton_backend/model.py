"""Triton's `onnxruntime` backend, in Python: NVIDIA's wheel comes without the native one.

It reads what the native one reads, the repository's own `config.pbtxt` and `model.onnx`, and runs
in the environment of Triton, not in that of the tests.
"""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as triton


class TritonPythonModel:
    """A graph on Triton."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the graph of the version that Triton loads."""
        config = json.loads(args["model_config"])
        # the repository's path here is that of the backend: the model's is beside the version
        folder = Path(args["model_repository"]) / args["model_version"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            folder / "model.onnx", options, providers=["CPUExecutionProvider"]
        )
        self._inputs = [value["name"] for value in config["input"]]
        self._outputs = [value["name"] for value in config["output"]]

    def execute(self, requests: list) -> list:
        """Run all requests that Triton put together as one batch, and take the answers apart."""
        given = [
            [triton.get_input_tensor_by_name(request, name).as_numpy() for name in self._inputs]
            for request in requests
        ]
        ends = np.cumsum([tensors[0].shape[0] for tensors in given])[:-1]
        batch = [np.concatenate(tensors) for tensors in zip(*given, strict=True)]
        try:
            values = self._session.run(self._outputs, dict(zip(self._inputs, batch, strict=True)))
        except Exception as error:  # onnxruntime's errors have no common class
            problem = triton.TritonError(str(error))
            return [triton.InferenceResponse(error=problem) for _ in requests]
        parts = zip(*(np.split(value, ends) for value in values), strict=True)
        return [self._answer(tensors) for tensors in parts]

    def _answer(self, tensors: tuple) -> object:
        named = zip(self._outputs, tensors, strict=True)
        return triton.InferenceResponse([triton.Tensor(*pair) for pair in named])
