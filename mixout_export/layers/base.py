"""What all mixout layers have in common."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from mixout_export.config import check_granularity, check_probability
from mixout_export.errors import ArgumentError
from mixout_export.fast_linear.linear import mixed_product, needs_plain_ops
from mixout_export.functional import draw_mask, mix
from mixout_export.masks import can_pack


class MixoutLayer(nn.Module):
    """Base class of the mixout layers.

    A mixout layer is a subclass of its plain layer. It adds two settings and one buffer. `weight`
    and `bias` stay where they were, so the plain layer's state-dict keys never change.

    Attributes:
        p: Mix probability in [0, 1).
        granularity: "neuron", "filter" or "element": what shares a bit of the mask.
        pretrained_weight: u, the anchor: a persistent buffer of the weight's shape, without a
            gradient.
    """

    #: The plain layer that this class extends. `to_plain` restores it.
    plain_class: ClassVar[type[nn.Module]]
    #: The dimension of `weight` that counts input neurons.
    input_dim: ClassVar[int]

    weight: Tensor
    bias: nn.Parameter  # may be None; PyTorch's own annotation omits that too
    pretrained_weight: Tensor
    p: float
    granularity: str

    def anchor(self, pretrained_weight: Tensor | None, *, p: float, granularity: str) -> None:
        """Set the anchor, the mix probability and the granularity; see `to_mixout`."""
        p, granularity = check_probability(p), check_granularity(granularity)
        weight = self.weight.detach()
        if pretrained_weight is None:
            pretrained_weight = weight
        if not self.is_anchor_shape(pretrained_weight.shape):
            raise ArgumentError(
                f"pretrained_weight: got shape {tuple(pretrained_weight.shape)}, "
                f"expected the weight's {tuple(weight.shape)}"
            )
        # Always a copy: an anchor that shares memory with its weight would change with it.
        copy = pretrained_weight.detach().to(weight.device, weight.dtype).clone()
        self.p, self.granularity = p, granularity
        self.register_buffer("pretrained_weight", copy)

    def is_anchor_shape(self, shape: torch.Size) -> bool:
        """Tell whether the anchor may have this shape."""
        return shape == self.weight.shape

    def release(self) -> None:
        """Remove everything that the plain layer does not have."""
        del self.pretrained_weight, self.p, self.granularity

    def is_mixing(self) -> bool:
        """Tell whether a call draws a mask: in training mode with p > 0."""
        return self.training and self.p > 0.0

    def takes_fast_path(self, input: Tensor) -> bool:
        """Tell whether `fast_linear` computes the output for this input."""
        if not self.is_mixing() or needs_plain_ops(self.weight, input):
            return False
        return self.granularity != "element" or can_pack(self.weight.numel(), self.p)

    def fast_product(self, input: Tensor) -> Tensor:
        """Map (..., in) to (..., out) under a fresh mask; see `fast_linear`."""
        return mixed_product(
            input,
            self.weight,
            self.pretrained_weight,
            self.bias,
            p=self.p,
            granularity=self.granularity,
            input_dim=self.input_dim,
        )

    def draw_mask(self, device: torch.device | str | None = None) -> Tensor:
        """Draw a mask, Bool, which broadcasts against the weight.

        `device` says where; None means the weight's device.
        """
        granularity, input_dim = self.granularity, self.input_dim
        return draw_mask(
            self.weight, self.p, granularity=granularity, input_dim=input_dim, device=device
        )

    def mixed_weight(self) -> Tensor:
        """Return Φ under a fresh mask; in evaluation mode or at p = 0, return `weight` itself."""
        if not self.is_mixing():
            return self.weight
        return mix(self.weight, self.pretrained_weight, self.draw_mask(), self.p)

    def extra_repr(self) -> str:
        """Return the plain layer's description with p and the granularity."""
        plain = self.plain_class.extra_repr(self)
        return f"{plain}, p={self.p}, granularity={self.granularity}"
