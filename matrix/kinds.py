"""Describe what the families read: texts or images."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.pytorch_utils import Conv1D

from mixout_export.checkpoint.interface import IMAGE_INPUT, image_shape, sequence_limit
from mixout_export.config import ALL_CONV, ALL_LINEAR


def _token(config: PretrainedConfig, name: str) -> int | None:
    value = getattr(config.get_text_config(), name, None)
    return value[0] if isinstance(value, list) else value


def random_texts(model: PreTrainedModel, shape: tuple[int, ...], seed: int) -> dict[str, Tensor]:
    """Return random rows such as a tokenizer makes. All rows but the first are padded.

    Padding is on the right. Every row ends with the end-of-text token if the family has one,
    because an encoder-decoder's classifier reads the state at that token.

    Args:
        model: The model that will read them.
        shape: Number of rows, and length of the longest row in tokens.
        seed: Random seed of tokens and lengths.

    Returns:
        `input_ids` and `attention_mask`, int64 `(rows, length)`.
    """
    config, (rows, length) = model.config, shape
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


def random_images(model: PreTrainedModel, shape: tuple[int, ...], seed: int) -> dict[str, Tensor]:
    """Return `pixel_values`, float32 `(images, channels, height, width)`, of random noise.

    Args:
        model: The model that will read them.
        shape: Number of images.
        seed: Random seed.
    """
    generator = torch.Generator().manual_seed(seed)
    return {IMAGE_INPUT: torch.randn(*shape, *image_shape(model), generator=generator)}


def _text_axes(model: PreTrainedModel) -> dict[int, Any]:
    length = torch.export.Dim("sequence", max=sequence_limit(model))
    return {0: torch.export.Dim("batch"), 1: length}


def _image_axes(model: PreTrainedModel) -> dict[int, Any]:
    return {0: torch.export.Dim("batch")}


@dataclass(frozen=True)
class Kind:
    """What a group of families reads, and how it is tested.

    Attributes:
        auto: The class of transformers that makes their classifiers.
        inputs: Makes random inputs from a model, a shape and a seed.
        axes: Returns the dynamic axes of each input, for `torch.onnx.export`.
        example: The shape with which a graph is exported.
        other: A shape with which the graph must run.
        training: The shape of the batch of a training step, with 4 rows.
        compared: The shapes at which the graph is compared with plain calls of the model.
        may_be_too_short: Those that some models cannot read, because they pool along the sequence.
    """

    auto: Any
    inputs: Callable[[PreTrainedModel, tuple[int, ...], int], dict[str, Tensor]]
    axes: Callable[[PreTrainedModel], dict[int, Any]]
    example: tuple[int, ...]
    other: tuple[int, ...]
    training: tuple[int, ...]
    compared: tuple[tuple[int, ...], ...]
    may_be_too_short: tuple[tuple[int, ...], ...] = ()


#: Task → what its families read.
KINDS: dict[str, Kind] = {
    "text-classification": Kind(
        AutoModelForSequenceClassification,
        random_texts,
        _text_axes,
        example=(3, 11),
        other=(2, 16),
        training=(4, 24),
        compared=((1, 1), (1, 9), (3, 4), (3, 16), (3, 33)),
        may_be_too_short=((1, 1), (3, 4)),
    ),
    "image-classification": Kind(
        AutoModelForImageClassification,
        random_images,
        _image_axes,
        example=(3,),
        other=(2,),
        training=(4,),
        compared=((1,), (3,), (5,)),
    ),
}


def targets(model: PreTrainedModel) -> str:
    """Return the layers to mix: linear ones, or convolutions in a body without linear layers."""
    layers = list(model.base_model.modules())
    linear = any(isinstance(layer, (nn.Linear, Conv1D)) for layer in layers)
    convolves = any(isinstance(layer, nn.Conv2d) for layer in layers)
    return ALL_CONV if convolves and not linear else ALL_LINEAR
