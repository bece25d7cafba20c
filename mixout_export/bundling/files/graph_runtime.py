"""Serve an ONNX graph with MLServer. Needs only mlserver, numpy and onnxruntime."""

import asyncio

import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.errors import InferenceError
from mlserver.types import (
    InferenceRequest,
    InferenceResponse,
    MetadataModelResponse,
    Parameters,
)
from mlserver.utils import get_model_uri


class GraphRuntime(MLModel):
    """Run an ONNX graph: named tensors in, named tensors out."""

    async def load(self) -> bool:
        """Load the graph that `model-settings.json` names."""
        self._session = onnxruntime.InferenceSession(
            await get_model_uri(self._settings), providers=["CPUExecutionProvider"]
        )
        self._inputs = [value.name for value in self._session.get_inputs()]
        self._outputs = [value.name for value in self._session.get_outputs()]
        return True

    async def metadata(self) -> MetadataModelResponse:
        """Return the model's inputs, its outputs and the SHA-256 of its graph."""
        answer = await super().metadata()
        answer.parameters = Parameters(**self._extra)
        return answer

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Run the graph on the tensors of a request."""
        given = {tensor.name: NumpyCodec.decode_input(tensor) for tensor in payload.inputs}
        self._check(given)
        wanted = [output.name for output in payload.outputs or []] or self._outputs
        try:
            values = await asyncio.to_thread(self._session.run, wanted, given)
        except Exception as error:  # onnxruntime's errors have no common base class
            raise InferenceError(f"{self.name}: {error}") from error
        return InferenceResponse(
            id=payload.id,
            model_name=self.name,
            model_version=self.version,
            outputs=[
                NumpyCodec.encode_output(name, value)
                for name, value in zip(wanted, values, strict=True)
            ],
        )

    @property
    def _extra(self) -> dict:
        parameters = self._settings.parameters
        return dict(parameters.extra or {}) if parameters else {}

    def _check(self, given: dict) -> None:
        if set(given) != set(self._inputs):
            raise InferenceError(
                f"{self.name}: got inputs {', '.join(sorted(given))}, expected "
                f"{', '.join(self._inputs)}"
            )
        limit = self._extra.get("max_batch_size")
        rows = max((value.shape[0] for value in given.values() if value.ndim), default=0)
        if limit and rows > limit:
            raise InferenceError(f"{self.name}: got {rows} rows, expected at most {limit}")
