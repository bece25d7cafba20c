"""AdamW with bias correction, and decay toward zero or toward the pretrained weights."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers.optimization import get_scheduler

from mixout_export.training.options import TrainOptions


@dataclass
class PretrainedDecay:
    """wdecay(u, λ), decoupled: w ← w - lr·λ·(w - u), applied where AdamW applies its own decay.

    Attributes:
        weights: The parameters that came from the base.
        pretrained: Their pretrained values, of the same shapes, devices and dtypes.
        rate: λ.
    """

    weights: list[Tensor]
    pretrained: list[Tensor]
    rate: float

    @torch.no_grad()
    def apply(self, lr: float) -> None:
        """Move every weight toward its pretrained value by lr·λ of the way."""
        if self.weights and lr * self.rate:
            torch._foreach_lerp_(self.weights, self.pretrained, lr * self.rate)


def _is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Return whether wdecay(0) applies: biases and normalization gains do not decay, as in BERT."""
    return parameter.dim() > 1 and not name.endswith("bias")


def build_optimizer(model: nn.Module, options: TrainOptions, *, fresh: frozenset[str]) -> AdamW:
    """Build AdamW over the trainable parameters.

    With decay toward the pretrained weights, the parameters that came from the base do not decay
    here but by `PretrainedDecay`. `fresh` names the parameters that did not come from the base.
    """
    toward_pretrained = options.decay_toward == "pretrained"
    head_decay = options.head_weight_decay
    head_decay = options.weight_decay if head_decay is None else head_decay
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = head_decay if name in fresh else options.weight_decay
        if (toward_pretrained and name not in fresh) or not _is_decayed(name, parameter):
            decay = 0.0
        groups.setdefault(decay, []).append(parameter)
    parameters: list[dict[str, Any]] = [
        {"params": members, "weight_decay": decay} for decay, members in groups.items()
    ]
    return AdamW(parameters, lr=options.lr, betas=(0.9, 0.999), eps=1e-8, fused=True)


def ceil_of(product: float) -> int:
    """Round up, but ignore rounding errors: 0.07 * 100 is 7.000000000000001."""
    return math.ceil(product - 1e-9)


def build_scheduler(optimizer: Optimizer, options: TrainOptions, *, steps: int) -> LambdaLR:
    """Build the learning-rate schedule over all training steps."""
    scheduler: LambdaLR = get_scheduler(
        options.scheduler,
        optimizer,
        num_warmup_steps=ceil_of(options.warmup_ratio * steps),
        num_training_steps=steps,
    )
    return scheduler


def build_pretrained_decay(
    model: nn.Module, pretrained: Mapping[str, Tensor], *, rate: float, fresh: frozenset[str]
) -> PretrainedDecay:
    """Pair every trainable parameter that came from the base with its pretrained value.

    Parameters without a pretrained value do not decay. `rate` is λ, and `fresh` names the
    parameters that did not come from the base.
    """
    weights, targets = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and name not in fresh and name in pretrained:
            weights.append(parameter.data)
            targets.append(pretrained[name].to(parameter.device, parameter.dtype))
    return PretrainedDecay(weights, targets, rate)
