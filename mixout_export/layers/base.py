"""What all mixout layers have in common."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from mixout_export.compact import CompactGradient
from mixout_export.config import check_granularity, check_probability
from mixout_export.errors import ArgumentError
from mixout_export.fast_linear.linear import mixed_product, needs_plain_ops
from mixout_export.functional import draw_mask, mix, output_dim
from mixout_export.masks import PackedMask, can_pack


class MixoutLayer(nn.Module):
    """Base class of the mixout layers.

    A mixout layer is a subclass of its plain layer. It adds two settings and one buffer. `weight`
    and `bias` stay where they were, so the plain layer's state-dict keys never change.

    Attributes:
        p: Mix probability in [0, 1).
        granularity: "neuron", "filter" or "element": what shares a bit of the mask.
        pretrained_weight: u, the anchor: a persistent buffer of the weight's shape, without a
            gradient.
        held_mask: The mask of all calls until another one is held; None if each call draws its own.
        anchor_moved: Whether the anchor has moved away from the pretrained weight.
        compact: Where the backward pass may leave the gradient of the active columns; None for a
            dense gradient.
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
    held_mask: Tensor | PackedMask | None = None
    anchor_moved: bool = False
    compact: CompactGradient | None = None

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
        for name in ("held_mask", "anchor_moved", "compact"):
            vars(self).pop(name, None)

    @torch.no_grad()
    def move_anchor(self, share: float) -> None:
        """Move the anchor toward the weight by a share of the way: u ← u + share · (w - u).

        Rows that only one of both has stay as they are.
        """
        common = min(len(self.weight), len(self.pretrained_weight))
        anchor = self.pretrained_weight[:common]
        anchor.lerp_(self.weight[:common].to(anchor.dtype), share)
        self.anchor_moved = True

    def hold_mask(self) -> None:
        """Draw a mask for all calls until the next one is drawn. At p = 0 none is needed."""
        self.held_mask = None if self.p == 0.0 else self.fresh_mask()

    def packs_masks(self) -> bool:
        """Tell whether an element mask is kept as a seed."""
        return can_pack(self.weight.numel(), self.p)

    def fresh_mask(self) -> Tensor | PackedMask:
        """Draw a mask in the form that the fast path takes.

        Masks over neurons are Bool on the CPU, where their bits can be counted without waiting for
        a GPU.
        """
        if self.granularity != "element":
            return self.draw_mask("cpu")
        return (
            PackedMask.draw(self.weight.shape, self.p) if self.packs_masks() else self.draw_mask()
        )

    def mask_dim(self) -> int:
        """Return the dimension of the weight that has the mask's bits, unless each weight has."""
        neuron = self.granularity == "neuron"
        return self.input_dim if neuron else output_dim(self.weight, self.input_dim)

    def takes_compact_gradients(self) -> bool:
        """Tell whether the backward pass can leave out the slices that a mask makes zero."""
        return self.granularity != "element"

    def compact_gradient(self) -> CompactGradient | None:
        """Return where a backward pass may leave its gradient; None for a dense gradient."""
        compact = self.compact
        if compact is None or compact.weight is not self.weight or not compact.is_read():
            return None
        return compact

    def is_mixing(self) -> bool:
        """Tell whether a call draws a mask: in training mode with p > 0."""
        return self.training and self.p > 0.0

    def takes_fast_path(self, input: Tensor) -> bool:
        """Tell whether `fast_linear` computes the output for this input."""
        if not self.is_mixing() or needs_plain_ops(self.weight, input):
            return False
        return self.granularity != "element" or self.packs_masks()

    def fast_product(self, input: Tensor) -> Tensor:
        """Map (..., in) to (..., out) under the held mask or a fresh one; see `fast_linear`."""
        return mixed_product(
            input,
            self.weight,
            self.pretrained_weight,
            self.bias,
            self.held_mask if self.held_mask is not None else self.fresh_mask(),
            p=self.p,
            granularity=self.granularity,
            input_dim=self.input_dim,
            compact=self.compact_gradient(),
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
        """Return Φ under the held mask or a fresh one; in evaluation mode or at p = 0, `weight`."""
        if not self.is_mixing():
            return self.weight
        if isinstance(self.held_mask, PackedMask):
            bits = self.held_mask.bits(self.weight)
            return mix(self.weight, self.pretrained_weight, bits, self.held_mask.p)
        return mix(self.weight, self.pretrained_weight, self.current_mask(), self.p)

    def current_mask(self) -> Tensor:
        """Return the held mask or draw a fresh one: Bool, on the weight's device."""
        if isinstance(self.held_mask, Tensor):
            return self.held_mask.to(self.weight.device)
        return self.draw_mask()

    def extra_repr(self) -> str:
        """Return the plain layer's description with p and the granularity."""
        plain = self.plain_class.extra_repr(self)
        return f"{plain}, p={self.p}, granularity={self.granularity}"
