"""Run a PyTorch model on a batch."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mixout_export.errors import CheckpointError
from mixout_export.printable import first_line
from mixout_export.runners.runner import Array, require_inputs

#: Gather the experts of each token. The default sorts tokens by expert and calls an operator that
#: ONNX lacks, and a loop over experts would depend on the data.
_GATHERED = "batched_mm"


@contextmanager
def gathered_experts(model: nn.Module) -> Iterator[None]:
    """Compute experts inside the block as a graph does. The results are the same.

    Modules inside the experts then see their tokens in another order, so code that compares modules
    with those of a graph has to choose the same way.
    """
    if not getattr(model, "_can_set_experts_implementation", lambda: False)():
        yield
        return
    before = model.get_experts_implementation()  # type: ignore[operator]
    model.set_experts_implementation(_GATHERED)  # type: ignore[operator]
    try:
        yield
    finally:
        model.set_experts_implementation(before)  # type: ignore[operator]


def forward_options(model: PreTrainedModel) -> dict[str, Any]:
    """Return what to call a model with beside its inputs: named outputs, and no cache."""
    options: dict[str, Any] = {"return_dict": True}
    accepted = inspect.signature(model.forward).parameters
    # an encoder-decoder's classifier that takes none by name gives its body one itself
    decides = "use_cache" not in accepted and getattr(model.config, "is_encoder_decoder", False)
    if hasattr(model.config.get_text_config(), "use_cache") and not decides:
        options["use_cache"] = False
    return options


class TorchRunner:
    """A PyTorch model in float32, on the CPU, without gradients."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        inputs: Sequence[str],
        outputs: Sequence[str],
        headless: bool = False,
        row_by_row: bool = False,
    ) -> None:
        """Prepare a plain model.

        Args:
            model: The model.
            inputs: Inputs to give it.
            outputs: Outputs to take from it.
            headless: Whether to leave out the head.
            row_by_row: Whether to give it one row at a time, because a decoder's classifier
                without a padding id refuses batches.
        """
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self._model = (model.base_model if headless else model).eval().float()
        self._row_by_row = row_by_row
        self._options = forward_options(model)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Compute the outputs of one batch, float32."""
        require_inputs(type(self._model).__name__, "model", self.inputs, inputs)
        tensors = {name: torch.from_numpy(inputs[name]) for name in self.inputs}
        rows = next(iter(tensors.values())).shape[0]
        step = 1 if self._row_by_row else rows
        parts = [
            self._run({name: value[start : start + step] for name, value in tensors.items()})
            for start in range(0, rows, step)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in self.outputs}

    def _run(self, tensors: Mapping[str, Tensor]) -> dict[str, Array]:
        try:
            with torch.inference_mode():
                outputs = self._model(**tensors, **self._options)
        except (RuntimeError, ValueError, IndexError) as error:
            shape = tuple(next(iter(tensors.values())).shape)
            raise CheckpointError(
                f"{type(self._model).__name__}: does not run on inputs of shape {shape} "
                f"({first_line(error)})"
            ) from error
        return {name: outputs[name].numpy() for name in self.outputs}
