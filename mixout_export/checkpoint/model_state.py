"""What of a model's state is its own, and what its outputs depend on."""

from collections.abc import Set

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mixout_export.checkpoint.interface import ModelInterface
from mixout_export.checkpoint.keys import is_statistic
from mixout_export.checkpoint.model_inputs import smallest_batch
from mixout_export.layers import MixoutLayer
from mixout_export.surgery.key_names import disk_keys


def unused_keys(model: PreTrainedModel, interface: ModelInterface) -> Set[str]:
    """Return the keys on disk of what no output depends on, by differentiating once.

    Those are parameters, and buffers such as the decay from block to block of a model that reads
    texts of a single block. So is the counter of a batch normalization, which only training reads.
    """
    batch = smallest_batch(interface).inputs
    inputs = {name: torch.from_numpy(batch[name]) for name in interface.inputs}
    named = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    statistics = {key: value for key, value in named if is_statistic(key)}
    wanted = {  # batch normalization has no derivative by its statistics
        key: value for key, value in named if value.is_floating_point() and key not in statistics
    }
    frozen = [value for value in wanted.values() if not value.requires_grad]
    try:
        for value in frozen:
            value.requires_grad_(True)
        with torch.enable_grad():
            outputs = model(**inputs, return_dict=True)
            total = torch.stack([outputs[name].sum() for name in interface.outputs]).sum()
            gradients = torch.autograd.grad(total, list(wanted.values()), allow_unused=True)
    finally:
        for value in frozen:
            value.requires_grad_(False)
    unused = {key for key, gradient in zip(wanted, gradients, strict=True) if gradient is None}
    unused |= {key for key, value in statistics.items() if not value.is_floating_point()}
    keys = disk_keys(model)
    return {keys[key] for key in unused & keys.keys()}


def plain_state(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the model's state dict without the anchors of its mixout layers."""
    anchors = {
        f"{name}.pretrained_weight"
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, MixoutLayer)
    }
    return {key: value for key, value in model.state_dict().items() if key not in anchors}
