"""The formulas of mixconnect and of mixout.

Lee, Cho, Kang, "Mixout: Effective Regularization to Finetune Large-scale Pretrained Language
Models", ICLR 2020, arXiv 1909.11299.
"""

import math

import torch
from torch import Tensor

from mixout_export.config import check_granularity, check_probability
from mixout_export.errors import ArgumentError


def is_full_precision(dtype: torch.dtype) -> bool:
    """Tell whether a dtype represents 1/(1 - p) precisely enough: float32 and float64 do."""
    return dtype in (torch.float32, torch.float64)


def output_dim(weight: Tensor, input_dim: int) -> int:
    """Return the dimension that counts output neurons: the first that does not count inputs."""
    return 1 if input_dim % weight.dim() == 0 else 0


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
        granularity: "neuron" draws one bit per index of `input_dim`, "filter" one per index of
            `output_dim`, "element" one per weight.
        input_dim: The dimension that counts input neurons.
        device: Where to draw; None means the weight's device.

    Returns:
        Bool tensor that broadcasts against `weight`. For "neuron" and "filter", every dimension
        except the one that has the bits has size 1. For "element", the shape is the weight's.
    """
    shape = list(weight.shape)
    if granularity != "element":
        shape = [1] * weight.dim()
        dim = input_dim if granularity == "neuron" else output_dim(weight, input_dim)
        shape[dim] = weight.shape[dim]
    # Always float32: if the default dtype is a half precision, `rand` has at most 2048 levels.
    device = weight.device if device is None else device
    return torch.rand(shape, device=device, dtype=torch.float32) >= p


def coefficients(mask: Tensor, dtype: torch.dtype, mean: float) -> Tensor:
    """Return the factors for `mix_by`: m / μ, or only m in half precision.

    Args:
        mask: The mask, real numbers or Bool.
        dtype: The weight's dtype. The result has it too, except that a mask with float32 or float64
            values keeps them for a weight in half precision.
        mean: μ, the mean of the mask's distribution, above 0; 1 - p for mixout.
    """
    if is_full_precision(dtype):
        return mask.to(dtype) * (1.0 / mean)
    return mask if is_full_precision(mask.dtype) else mask.to(dtype)


def mix_by(
    factors: Tensor,
    weight: Tensor,
    target: Tensor,
    mean: float,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Compute Φ = u + (m / μ) ⊙ (w - u) from a mask that `coefficients` has converted.

    This equals equation 4 of the paper. In this form, Φ is exactly u where w = u, in every dtype;
    the form printed in the paper is off by up to 3 % in bfloat16. In half precision, 1/μ is a
    scalar of the operation and is not rounded to the tensor's dtype, which would bias the mean.

    Args:
        factors: The result of `coefficients`; broadcasts against `weight`.
        weight: w, floating point.
        target: u, of the same shape; cast to the weight's dtype if it differs.
        mean: μ, the mean of the mask's distribution, above 0; 1 - p for mixout.
        out: Tensor to write Φ into, if no gradient is needed; None allocates one.

    Returns:
        Φ, of the weight's shape and dtype. The gradient of `weight` is (m / μ) ⊙ ∂L/∂Φ.
    """
    target = target.to(weight.dtype)
    if is_full_precision(weight.dtype):
        return torch.lerp(target, weight, factors, out=out)
    mixed = torch.addcmul(target, weight - target, factors, value=1.0 / mean, out=out)
    return mixed.to(weight.dtype)


def mix(weight: Tensor, pretrained_weight: Tensor, mask: Tensor, p: float) -> Tensor:
    """Compute Φ = u + (m / (1 - p)) ⊙ (w - u), the formula of mixout, for a given mask.

    Args:
        weight: w, floating point.
        pretrained_weight: u, of the same shape; cast to the weight's dtype if it differs.
        mask: Bool mask that broadcasts against `weight`.
        p: Mix probability in [0, 1).

    Returns:
        Φ, of the weight's shape and dtype. The gradient of `weight` is (m / (1 - p)) ⊙ ∂L/∂Φ.
    """
    mean = 1.0 - p
    return mix_by(coefficients(mask, weight.dtype, mean), weight, pretrained_weight, mean)


def _check_pair(weight: Tensor, target: Tensor, *, name: str) -> None:
    """Refuse a weight that is not floating point, and a target of another shape."""
    if not weight.is_floating_point():
        raise ArgumentError(f"weight: got {weight.dtype}, expected floating point")
    if weight.shape != target.shape:
        raise ArgumentError(
            f"{name}: got shape {tuple(target.shape)}, expected the weight's {tuple(weight.shape)}"
        )


def _check_mean(mean: float) -> float:
    """Return the mean of a mask's distribution as a float, after checking it."""
    is_number = isinstance(mean, (int, float)) and not isinstance(mean, bool)
    if not is_number or not 0.0 < mean < math.inf:
        raise ArgumentError(
            f"mean: got {mean!r}, expected a finite number above 0, the mean of the distribution "
            "that the mask was drawn from"
        )
    return float(mean)


def _broadcasts(shape: torch.Size, to: torch.Size) -> bool:
    """Tell whether a tensor of one shape broadcasts to another shape without enlarging it."""
    sizes = zip(reversed(shape), reversed(to), strict=False)
    return len(shape) <= len(to) and all(size in (1, wanted) for size, wanted in sizes)


def mixconnect(weight: Tensor, target: Tensor, mask: Tensor, mean: float) -> Tensor:
    """Mix a weight with a target by a mask from any distribution (the paper's equation 4).

    Φ = μ⁻¹ ((I - M) u + M w - (1 - μ) u), computed as u + (m / μ) ⊙ (w - u). E[Φ] = w if E[m] = μ.

    Special cases: with a target of zeros this is dropout (one mask value per input neuron, shape
    (1, in_features) for a linear layer) or dropconnect (one per weight). With a mask of zeros and
    ones and μ = 1 - p it is mixout.

    Args:
        weight: w, floating point, any shape.
        target: u, of the same shape and device. It receives no gradient.
        mask: m, real numbers or Bool, drawn by the caller; broadcasts to the weight's shape.
        mean: μ, the mean of the distribution that the mask was drawn from (not of this mask); a
            finite number above 0.

    Returns:
        Φ, of the shape, dtype and device of `weight`. The gradient of `weight` is (m / μ) ⊙ ∂L/∂Φ.

    Raises:
        ArgumentError: The weight is not floating point, the mask is complex, a shape does not fit,
            or `mean` is not valid.

    Example:
        >>> u = torch.zeros(3, 4); w = torch.ones(3, 4)
        >>> mask = 1.0 + 0.5 * torch.randn(1, 4)  # Gaussian, one value per input neuron
        >>> torch.equal(mixconnect(w, u, mask, 1.0), mask.expand(3, 4))
        True
    """
    _check_pair(weight, target, name="target")
    mean = _check_mean(mean)
    if mask.is_complex():
        raise ArgumentError(f"mask: got {mask.dtype}, expected real numbers or Bool")
    if not _broadcasts(mask.shape, to=weight.shape):
        raise ArgumentError(
            f"mask: got shape {tuple(mask.shape)}, expected one that broadcasts to the weight's "
            f"{tuple(weight.shape)}"
        )
    return mix_by(coefficients(mask, weight.dtype, mean), weight, target.detach(), mean)


def mixout(
    weight: Tensor,
    pretrained_weight: Tensor,
    p: float,
    *,
    granularity: str = "neuron",
    training: bool = True,
    input_dim: int = -1,
) -> Tensor:
    """Mix a weight with its pretrained value at random: mixconnect with Bernoulli masks.

    Φ = u + (m / (1 - p)) ⊙ (w - u) with m ~ Bernoulli(1 - p), so that E[Φ] = w.

    Args:
        weight: w, floating point; (out_features, in_features) for a linear layer.
        pretrained_weight: u, of the same shape and device. It receives no gradient.
        p: Mix probability in [0, 1). At 0 the weight itself is returned and nothing is drawn.
        granularity: "neuron" replaces all weights of a dropped input neuron by the pretrained
            ones, as in the paper. "filter" replaces all weights of an output neuron, which are a
            convolution's filter. "element" replaces single weights.
        training: False returns the weight itself, which is the expectation of Φ.
        input_dim: The dimension of `weight` that counts input neurons; 1 for a convolution without
            groups. Output neurons are counted by the first dimension that is not `input_dim`.

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
    _check_pair(weight, pretrained_weight, name="pretrained_weight")
    if weight.dim() == 0:
        raise ArgumentError("weight: got a scalar, expected at least one dimension")
    if not -weight.dim() <= input_dim < weight.dim():
        raise ArgumentError(
            f"input_dim: got {input_dim}, expected a dimension of the {weight.dim()}-dimensional "
            "weight"
        )
    if granularity == "filter" and weight.dim() < 2:
        raise ArgumentError("weight: got one dimension, expected two or more for filter masks")
    if not training or p == 0.0:
        return weight
    mask = draw_mask(weight, p, granularity=granularity, input_dim=input_dim)
    return mix(weight, pretrained_weight.detach(), mask, p)
