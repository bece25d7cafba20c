"""The product with Φ under a filter mask: one bit per output neuron."""

from torch import Tensor

from mixout_export.fast_linear.masked import masked_operation
from mixout_export.fast_linear.operations import MatrixProduct
from mixout_export.functional import draw_mask


def filter_product(
    input: Tensor,
    weight: Tensor,
    pretrained_weight: Tensor,
    bias: Tensor | None,
    p: float,
    input_dim: int,
) -> Tensor:
    """Multiply (rows, in) with Φ under a fresh filter mask and add the bias.

    The arguments are those of `linear.mixed_product`. The mask is drawn on the CPU, where its
    active neurons can be counted without waiting for a GPU.
    """
    mask = draw_mask(weight, p, granularity="filter", input_dim=input_dim, device="cpu")
    return masked_operation(
        MatrixProduct(input_dim),
        *(input, weight, pretrained_weight, bias, mask),
        p=p,
        granularity="filter",
    )
