"""AdamW with bias correction, and decay toward zero or toward the pretrained weights."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers.optimization import get_scheduler

from mixout_export.adamw import MixoutAdamW
from mixout_export.errors import ArgumentError
from mixout_export.surgery.layer_list import find_layers
from mixout_export.training.options import TrainOptions


@dataclass
class Attraction:
    """Parameters that came from the base and are trained at the same rate.

    Attributes:
        weights: The parameters.
        pretrained: Their pretrained values, of the same shapes, devices and dtypes.
    """

    weights: list[Tensor] = field(default_factory=list)
    pretrained: list[Tensor] = field(default_factory=list)


@dataclass
class PretrainedDecay:
    """wdecay(u, λ), decoupled: w ← w - lr·λ·(w - u), applied where AdamW applies its own decay.

    Attributes:
        groups: Factor of the learning rate → the parameters that have this factor.
        rate: λ.
    """

    groups: dict[float, Attraction]
    rate: float

    @torch.no_grad()
    def apply(self, lr: float) -> None:
        """Move every weight toward its pretrained value by lr·λ of the way, with its own lr.

        Args:
            lr: The learning rate of parameters with the factor 1.
        """
        for factor, group in self.groups.items():
            if share := lr * factor * self.rate:
                torch._foreach_lerp_(group.weights, group.pretrained, share)


def lr_factors(model: nn.Module, decay: float | None, *, fresh: frozenset[str]) -> dict[str, float]:
    """Return parameter name → its factor of the learning rate; empty if all have the factor 1.

    The k-th layer below the top layer has decay^k, and what lies below all layers has decay to the
    number of layers. The head and all other fresh parameters have 1, and so has whatever lies
    between the layers and the head.

    Args:
        model: A transformers model.
        decay: The factor from one layer to the next one below it, in (0, 1]; None means 1.
        fresh: Names of the parameters that did not come from the base.

    Raises:
        ArgumentError: The model has no list of layers.
    """
    if decay is None:
        return {}
    layers = find_layers(model, option="layer-lr-decay")
    count = len(layers.names)
    factors = dict.fromkeys(layers.below, decay**count)
    for name, _ in model.named_parameters():
        number = layers.layer_of(name)
        if number is not None:
            factors[name] = decay ** (count - 1 - number)
    return {name: factor for name, factor in factors.items() if name not in fresh}


def _is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Return whether wdecay(0) applies: biases and normalization gains do not decay, as in BERT."""
    return parameter.dim() > 1 and not name.endswith("bias")


def build_optimizer(
    model: nn.Module, options: TrainOptions, *, fresh: frozenset[str]
) -> MixoutAdamW:
    """Build AdamW over the trainable parameters.

    With decay toward the pretrained weights, the parameters that came from the base do not decay
    here but by `PretrainedDecay`. `fresh` names the parameters that did not come from the base.

    Raises:
        ArgumentError: The learning rate decays by layer, but the model has no list of layers. Or
            only active columns are to be changed, but the masks have none.
    """
    factors = lr_factors(model, options.layer_lr_decay, fresh=fresh)
    toward_pretrained = options.decay_toward == "pretrained"
    head_decay = options.head_weight_decay
    head_decay = options.weight_decay if head_decay is None else head_decay
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = head_decay if name in fresh else options.weight_decay
        if (toward_pretrained and name not in fresh) or not _is_decayed(name, parameter):
            decay = 0.0
        groups.setdefault((decay, factors.get(name, 1.0)), []).append(parameter)
    parameters: list[dict[str, Any]] = [
        {"params": members, "weight_decay": decay, "lr": options.lr * factor}
        for (decay, factor), members in groups.items()
    ]
    scope: Any = options.optimizer_scope
    try:
        return MixoutAdamW(model, parameters, lr=options.lr, scope=scope)
    except ArgumentError as error:  # begins with "scope: "
        raise ArgumentError(f"optimizer_{error}") from error


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


def peak_rate(scheduler: LambdaLR, options: TrainOptions) -> float:
    """Return the learning rate of the next step for parameters with the factor 1."""
    return float(options.lr * scheduler.lr_lambdas[0](scheduler.last_epoch))


def _target(weight: Tensor, pretrained: Tensor) -> Tensor:
    """Return the pretrained value on the weight's device, with zeros in the rows it lacks."""
    value = pretrained.to(weight.device, weight.dtype)
    if value.shape == weight.shape:
        return value
    target = torch.zeros_like(weight)
    common = min(len(value), len(weight))
    target[:common] = value[:common]
    return target


def build_pretrained_decay(
    model: nn.Module,
    pretrained: Mapping[str, Tensor],
    options: TrainOptions,
    *,
    fresh: frozenset[str],
) -> PretrainedDecay:
    """Pair every trainable parameter that came from the base with its pretrained value.

    Parameters without a pretrained value do not decay. `fresh` names the parameters that did not
    come from the base. Rows that the base did not have decay toward zero.
    """
    factors = lr_factors(model, options.layer_lr_decay, fresh=fresh)
    groups: dict[float, Attraction] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and name not in fresh and name in pretrained:
            group = groups.setdefault(factors.get(name, 1.0), Attraction())
            group.weights.append(parameter.data)
            group.pretrained.append(_target(parameter.data, pretrained[name]))
    return PretrainedDecay(groups, options.weight_decay)
