"""The mixout formula.

Lee, Cho, Kang, "Mixout: Effective Regularization to Finetune Large-scale Pretrained Language
Models", ICLR 2020, arXiv 1909.11299.
"""

import torch
from torch import Tensor

from mixout_export.config import check_granularity, check_probability
from mixout_export.errors import ArgumentError


def is_full_precision(dtype: torch.dtype) -> bool:
    """Tell whether a weight's dtype holds 1/(1 - p) without rounding it noticeably."""
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
        granularity: "neuron" draws one bit per index of `input_dim`; "element" one per entry.
        input_dim: The dimension that counts input neurons.
        device: Where to draw; None draws on the weight's device.

    Returns:
        Bool tensor that broadcasts against `weight`: of size 1 in every dimension but `input_dim`
        for "neuron", of the weight's own shape for "element".
    """
    shape = list(weight.shape)
    if granularity == "neuron":
        shape = [1] * weight.dim()
        shape[input_dim] = weight.shape[input_dim]
    # Always float32: a half-precision default dtype draws from 2048 levels or fewer.
    device = weight.device if device is None else device
    return torch.rand(shape, device=device, dtype=torch.float32) >= p


def mix(weight: Tensor, pretrained_weight: Tensor, mask: Tensor, p: float) -> Tensor:
    """Compute Φ = u + (m / (1 - p)) ⊙ (w - u) for a given mask (eq. 4, delta form).

    The delta form is exact at w = u in every dtype, where the paper's literal form is off by up to
    3 % in bfloat16. Half precisions keep the scale in the accumulation type, so that rounding
    1/(1 - p) does not bias the mean.

    Args:
        weight: w, floating point.
        pretrained_weight: u, of the same shape; cast to the weight's dtype if it differs.
        mask: Bool mask that broadcasts against `weight`.
        p: Mix probability in [0, 1).

    Returns:
        Tensor like `weight`. Its gradient is (m / (1 - p)) ⊙ ∂L/∂Φ with respect to `weight`.
    """
    return mix_by(coefficients(mask, weight.dtype, p), weight, pretrained_weight, p)


def coefficients(mask: Tensor, dtype: torch.dtype, p: float) -> Tensor:
    """Return what `mix_by` takes: m / (1 - p), or m alone in half precisions.

    Args:
        mask: The mask, Bool or of any other dtype.
        dtype: The weight's dtype.
        p: Mix probability in [0, 1).
    """
    bits = mask.to(dtype)
    return bits * (1.0 / (1.0 - p)) if is_full_precision(dtype) else bits


def mix_by(
    coefficients: Tensor,
    weight: Tensor,
    pretrained_weight: Tensor,
    p: float,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Compute Φ from ready `coefficients`; see `mix`.

    Args:
        coefficients: Of the weight's dtype; broadcasts against it.
        weight: w.
        pretrained_weight: u, of the same shape; cast to the weight's dtype if it differs.
        p: Mix probability in [0, 1).
        out: Where to write Φ, which autograd must not need; None makes a tensor.
    """
    target = pretrained_weight.to(weight.dtype)
    if is_full_precision(weight.dtype):
        return torch.lerp(target, weight, coefficients, out=out)
    return torch.addcmul(target, weight - target, coefficients, value=1.0 / (1.0 - p), out=out)


def mixout(
    weight: Tensor,
    pretrained_weight: Tensor,
    p: float,
    *,
    granularity: str = "neuron",
    training: bool = True,
    input_dim: int = -1,
) -> Tensor:
    """Mix a weight at random with its pretrained value.

    Φ = u + (m / (1 - p)) ⊙ (w - u) with m ~ Bernoulli(1 - p), so that E[Φ] = w.

    Args:
        weight: w, floating point, for a linear layer of shape (out_features, in_features).
        pretrained_weight: u, of the same shape and device. It receives no gradient.
        p: Mix probability in [0, 1). At 0 the weight itself is returned and nothing is drawn.
        granularity: "neuron" (the paper's: a dropped input neuron takes its outgoing pretrained
            weights) or "element".
        training: False returns the weight itself, the expectation of Φ.
        input_dim: The dimension of `weight` that counts input neurons.

    Returns:
        Φ, of the shape, dtype and device of `weight`.

    Raises:
        ArgumentError: `p`, `granularity` or `input_dim` is out of its domain, or the shapes differ.

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
