"""Run and export a family's plain model, to compare this package with."""

from pathlib import Path
from typing import Any

import onnxruntime
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as onnxruntime_errors
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PretrainedConfig

from mixout_export.checkpoint.interface import sequence_limit
from mixout_export.errors import MixoutError
from mixout_export.quiet import quiet_libraries
from mixout_export.stages.onnx_export import export_onnx


def _token(config: PretrainedConfig, name: str) -> int | None:
    value = getattr(config.get_text_config(), name, None)
    return value[0] if isinstance(value, list) else value


def random_rows(
    config: PretrainedConfig, rows: int, length: int, *, seed: int
) -> dict[str, Tensor]:
    """Return random rows such as a tokenizer makes. All rows but the first are padded.

    Padding is on the right. Every row ends with the end-of-text token if the family has one,
    because an encoder-decoder's classifier reads the state at that token.

    Args:
        config: The model's configuration.
        rows: Number of rows.
        length: Length of the longest row, in tokens.
        seed: Random seed of tokens and lengths.

    Returns:
        `input_ids` and `attention_mask`, int64 `(rows, length)`.
    """
    generator = torch.Generator().manual_seed(seed)
    special = {_token(config, f"{name}_token_id") for name in ("pad", "bos", "eos", "cls", "sep")}
    size = getattr(config.get_text_config(), "vocab_size", 256)  # CANINE reads characters
    words = torch.tensor([i for i in range(size) if i not in special])
    ids = words[torch.randint(len(words), (rows, length), generator=generator)]
    mask = torch.ones_like(ids)
    pad, eos = _token(config, "pad_token_id"), _token(config, "eos_token_id")
    for row in range(rows):
        kept = length if row == 0 else int(torch.randint(1, length + 1, (), generator=generator))
        mask[row, kept:] = 0
        ids[row, kept:] = 0 if pad is None else pad
        if eos is not None:
            ids[row, kept - 1] = eos
    return {"input_ids": ids, "attention_mask": mask}


class _Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


def _accepts(graph: Path, batch: dict[str, Tensor]) -> bool:
    """Return whether a graph runs on a batch."""
    session = onnxruntime.InferenceSession(graph)
    try:
        session.run(None, {value.name: batch[value.name].numpy() for value in session.get_inputs()})
    except (onnxruntime_errors.InvalidArgument, onnxruntime_errors.Fail):
        return False
    return True


def exports_unmodified(folder: Path, *, try_package: bool) -> bool:
    """Return whether the plain model can be exported, by PyTorch or by this package.

    If PyTorch cannot make an axis dynamic, it still writes a graph, with the sizes of the example
    fixed. Such a graph does not count as exported.

    Args:
        folder: The plain checkpoint.
        try_package: Whether to try this package if `torch.onnx.export` alone fails.
    """
    with quiet_libraries():
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        if hasattr(model.config, "use_cache"):
            model.config.use_cache = False
        batch = random_rows(model.config, 3, 11, seed=0)
        limit = sequence_limit(model)
        axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=limit)}
        try:
            torch.onnx.export(
                _Logits(model),
                tuple(batch.values()),
                graph := folder.parent / "plain.onnx",
                dynamo=True,
                opset_version=20,
                dynamic_shapes=(axes, axes),
                verbose=False,
            )
            return _accepts(graph, random_rows(model.config, 2, 16, seed=1))
        except Exception:  # the exporter's errors have no common base class
            pass
    if not try_package:
        return False
    try:
        export_onnx(folder, folder.parent / "unmodified", verify=False)
    except MixoutError:
        return False
    return True
