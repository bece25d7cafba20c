"""The mixout formula.

Lee, Cho, Kang, "Mixout: Effective Regularization to Finetune Large-scale Pretrained Language
Models", ICLR 2020, arXiv 1909.11299.
"""

import torch
from torch import Tensor

from mixout_export.config import check_granularity, check_probability
from mixout_export.errors import ArgumentError


def is_full_precision(dtype: torch.dtype) -> bool:
    """Tell whether a dtype represents 1/(1 - p) precisely enough: float32 and float64 do."""
    return dtype in (torch.float32, torch.float64)


def draw_mask(
    weight: Tensor,
    p: float,
    *,
    granularity: str,
    input_dim: int = -1,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw m ~ Bernoulli(1 - p) from PyTorch's global generator.

    Args:
        weight: The weight to mask, any shape with at least one dimension.
        p: Mix probability in [0, 1).
        granularity: "neuron" draws one bit per index of `input_dim`, "element" one per weight.
        input_dim: The dimension that counts input neurons.
        device: Where to draw; None means the weight's device.

    Returns:
        Bool tensor that broadcasts against `weight`. For "neuron", every dimension except
        `input_dim` has size 1. For "element", the shape is the weight's.
    """
    shape = list(weight.shape)
    if granularity == "neuron":
        shape = [1] * weight.dim()
        shape[input_dim] = weight.shape[input_dim]
    # Always float32: if the default dtype is a half precision, `rand` has at most 2048 levels.
    device = weight.device if device is None else device
    return torch.rand(shape, device=device, dtype=torch.float32) >= p


def mix(weight: Tensor, pretrained_weight: Tensor, mask: Tensor, p: float) -> Tensor:
    """Compute Φ = u + (m / (1 - p)) ⊙ (w - u) for a given mask.

    This equals equation 4 of the paper. In this form, Φ is exactly u where w = u, in every dtype;
    the form printed in the paper is off by up to 3 % in bfloat16. In half precision, 1/(1 - p) is a
    scalar of the operation and is not rounded to the tensor's dtype, which would bias the mean.

    Args:
        weight: w, floating point.
        pretrained_weight: u, of the same shape; cast to the weight's dtype if it differs.
        mask: Bool mask that broadcasts against `weight`.
        p: Mix probability in [0, 1).

    Returns:
        Φ, of the weight's shape and dtype. The gradient of `weight` is (m / (1 - p)) ⊙ ∂L/∂Φ.
    """
    return mix_by(coefficients(mask, weight.dtype, p), weight, pretrained_weight, p)


def coefficients(mask: Tensor, dtype: torch.dtype, p: float) -> Tensor:
    """Return the factors for `mix_by`: m / (1 - p), or only m in half precision.

    Args:
        mask: The mask, Bool or 0 and 1 in any dtype.
        dtype: The weight's dtype, which the result has too.
        p: Mix probability in [0, 1).
    """
    bits = mask.to(dtype)
    return bits * (1.0 / (1.0 - p)) if is_full_precision(dtype) else bits


def mix_by(
    factors: Tensor,
    weight: Tensor,
    pretrained_weight: Tensor,
    p: float,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Compute Φ as `mix` does, from a mask that `coefficients` has converted.

    Args:
        factors: The result of `coefficients`; broadcasts against `weight`.
        weight: w.
        pretrained_weight: u, of the same shape; cast to the weight's dtype if it differs.
        p: Mix probability in [0, 1).
        out: Tensor to write Φ into, if no gradient is needed; None allocates one.

    Returns:
        Φ, of the weight's shape and dtype.
    """
    target = pretrained_weight.to(weight.dtype)
    if is_full_precision(weight.dtype):
        return torch.lerp(target, weight, factors, out=out)
    return torch.addcmul(target, weight - target, factors, value=1.0 / (1.0 - p), out=out)


def mixout(
    weight: Tensor,
    pretrained_weight: Tensor,
    p: float,
    *,
    granularity: str = "neuron",
    training: bool = True,
    input_dim: int = -1,
) -> Tensor:
    """Mix a weight with its pretrained value at random (the paper's equation 4).

    Φ = u + (m / (1 - p)) ⊙ (w - u) with m ~ Bernoulli(1 - p), so that E[Φ] = w.

    Args:
        weight: w, floating point; (out_features, in_features) for a linear layer.
        pretrained_weight: u, of the same shape and device. It receives no gradient.
        p: Mix probability in [0, 1). At 0 the weight itself is returned and nothing is drawn.
        granularity: "neuron" replaces all weights of a dropped input neuron by the pretrained
            ones, as in the paper. "element" replaces single weights.
        training: False returns the weight itself, which is the expectation of Φ.
        input_dim: The dimension of `weight` that counts input neurons.

    Returns:
        Φ, of the shape, dtype and device of `weight`.

    Raises:
        ArgumentError: `p`, `granularity` or `input_dim` is not valid, or the shapes differ.

    Example:
        >>> u = torch.zeros(3, 4); w = torch.ones(3, 4)
        >>> mixout(w, u, 0.5).unique().tolist() in ([0.0], [2.0], [0.0, 2.0])
        True
        >>> mixout(w, u, 0.5, training=False) is w
        True
    """
    p = check_probability(p)
    granularity = check_granularity(granularity)
    if weight.shape != pretrained_weight.shape:
        raise ArgumentError(
            f"pretrained_weight: got shape {tuple(pretrained_weight.shape)}, "
            f"expected the weight's {tuple(weight.shape)}"
        )
    if not weight.is_floating_point() or weight.dim() == 0:
        raise ArgumentError(
            f"weight: got {weight.dtype} of shape {tuple(weight.shape)}, "
            "expected floating point with at least one dimension"
        )
    if not -weight.dim() <= input_dim < weight.dim():
        raise ArgumentError(
            f"input_dim: got {input_dim}, expected a dimension of the {weight.dim()}-dimensional "
            "weight"
        )
    if not training or p == 0.0:
        return weight
    mask = draw_mask(weight, p, granularity=granularity, input_dim=input_dim)
    return mix(weight, pretrained_weight.detach(), mask, p)
