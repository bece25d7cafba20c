"""On which side a batch may be padded without changing what the model answers.

A decoder with a table of positions counts them from the first token, padding included. Padded on
the left, a text then gets other positions beside a longer text than alone.
"""

import inspect
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mixout_export.checkpoint.interface import (
    ModelInterface,
    describe_interface,
    is_decoder,
)
from mixout_export.checkpoint.model_inputs import InputMaker
from mixout_export.errors import CheckpointError
from mixout_export.runners.runner import Runner
from mixout_export.runners.torch_runner import TorchRunner
from mixout_export.tasks import Task

#: Tokens of the text that is run, and tokens that are added on a side.
_TOKENS, _PADDING = 7, 4

#: Largest change that counts as none: that of parity in fp32.
_ATOL, _RTOL = 1e-5, 1e-4


def count_positions_in_text(model: PreTrainedModel) -> None:
    """Let a decoder count positions from the first token that is not padding, in place.

    Without padding, and with padding on the right, it computes what it did. Encoders take padding
    on the right only, so they stay as they are.
    """
    body = model.base_model
    if is_decoder(model) and "position_ids" in inspect.signature(body.forward).parameters:
        body.register_forward_pre_hook(_fill_positions, with_kwargs=True)


def _fill_positions(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Add the positions that the attention mask implies, if the caller gives none."""
    mask = kwargs.get("attention_mask")
    if isinstance(mask, Tensor) and mask.ndim == 2 and kwargs.get("position_ids") is None:
        kwargs = {**kwargs, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    return args, kwargs


def answers_alike(runner: Runner, interface: ModelInterface, side: str) -> bool:
    """Tell whether a text gets the same answer alone and padded on a side.

    True if the model takes no texts, or none that are longer.
    """
    if interface.image is not None:
        return True
    maker = InputMaker(interface, seed=0)
    length, width = maker.length(_TOKENS), maker.length(_TOKENS + _PADDING)
    if length == width:
        return True
    ids = maker.random_ids(1, length)
    place = slice(width - length, width) if side == "left" else slice(0, length)
    mask, padded = (np.zeros((1, width), np.int64) for _ in range(2))
    mask[:, place], padded[:, place] = 1, ids
    zeros = np.zeros_like(padded)
    alone = runner.run(maker.batch("alone", ids, segments=zeros[:, :length]).inputs)
    beside = runner.run(maker.batch("padded", padded, mask=mask, segments=zeros).inputs)
    return all(_close(alone[name], beside[name], place) for name in alone)


def _close(alone: np.ndarray[Any, Any], padded: np.ndarray[Any, Any], place: slice) -> bool:
    """Compare two outputs. One with a value for each token is cut to the tokens of the text."""
    if alone.shape != padded.shape:
        padded = padded[:, place]
    return alone.shape == padded.shape and bool(np.allclose(padded, alone, _RTOL, _ATOL))


def settle_padding(model: PreTrainedModel, interface: ModelInterface) -> ModelInterface:
    """Return the interface without padding on the left if a model's answer would depend on it."""
    if not interface.left_padding:
        return interface
    runner = TorchRunner(
        model,
        inputs=interface.inputs,
        outputs=interface.outputs,
        row_by_row=interface.pad_token_id is None,
    )
    try:
        return replace(interface, left_padding=answers_alike(runner, interface, "left"))
    except CheckpointError:
        return interface  # if the model does not run, that is reported when it is used


def must_pad_right(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, task: Task | None
) -> bool:
    """Tell whether a tokenizer pads on the left although a model's answer would depend on it.

    A model that generates text has to be padded on the left, and transformers then counts its
    positions from the first token.
    """
    if tokenizer is None or tokenizer.padding_side != "left":
        return False
    if task is not None and task.generates:
        return False
    return not settle_padding(model, describe_interface(model, task, tokenizer)).left_padding


def padding_side(tokenizer_side: str, interface: ModelInterface) -> str:
    """Return the side to pad on: the tokenizer's, unless the model's answer would depend on it."""
    return tokenizer_side if interface.left_padding else "right"
