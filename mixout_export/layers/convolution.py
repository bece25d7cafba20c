"""Convolutions whose weight is mixed with its pretrained value during training."""

from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own idiom)
from torch import Tensor, nn

from mixout_export.fast_linear.masked import masked_operation
from mixout_export.fast_linear.operations import Convolution
from mixout_export.layers.base import MixoutLayer

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]


class MixoutConvolution(MixoutLayer):
    """What both convolutions have in common: y = x * Φ + b, where * is the convolution.

    An input neuron is an input channel, and an output neuron is an output channel, which one filter
    computes. The positions of the kernel share the bit of their channel. In a grouped convolution
    every input channel has a bit of its own, too: it is shared by the weights that read the
    channel, which are those of the channel's group. For a depthwise convolution, this is one bit
    per filter, or per group of filters that read the same channel.
    """

    input_dim = 1

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int
    padding_mode: PaddingMode

    def forward(self, input: Tensor) -> Tensor:
        """Map (batch, in_channels, …) to (batch, out_channels, …); the batch may be left out."""
        if self.takes_fast_path(input):
            return self.fast_product(input)
        if not self.is_mixing():
            return self.plain_class.forward(self, input)  # type: ignore[no-any-return]
        input, operation = self._padded(input)
        return operation.convolve(input, self.mixed_weight(), self.bias)

    def takes_fast_path(self, input: Tensor) -> bool:
        """Tell whether `fast_linear` computes the output for this input."""
        return input.dim() == self.weight.dim() and super().takes_fast_path(input)

    def packs_masks(self) -> bool:
        """Tell that element masks take the plain path: a bit per weight costs little here."""
        return False

    def takes_compact_gradients(self) -> bool:
        """Tell whether the backward pass can leave out the slices that a mask makes zero."""
        return self.groups == 1 and super().takes_compact_gradients()

    def fast_product(self, input: Tensor) -> Tensor:
        """Map (batch, in_channels, …) to (batch, out_channels, …); see `MixoutLayer`."""
        input, operation = self._padded(input)
        return masked_operation(
            operation,
            *(input, self.weight, self.pretrained_weight, self.bias),
            self.held_mask if isinstance(self.held_mask, Tensor) else self.draw_mask("cpu"),
            p=self.p,
            granularity=self.granularity,
            compact=self.compact_gradient(),
        )

    def _padded(self, input: Tensor) -> tuple[Tensor, Convolution]:
        """Return the input and the convolution, which pads with zeros itself where it can."""
        if isinstance(self.padding, str):
            same = self.padding == "same"
            sizes = zip(self.kernel_size, self.dilation, strict=True)
            totals = [dilation * (kernel - 1) if same else 0 for kernel, dilation in sizes]
            sides = [(total // 2, total - total // 2) for total in totals]
        else:
            sides = [(padding, padding) for padding in self.padding]
        padding = tuple(left for left, _ in sides)
        if self.padding_mode != "zeros" or any(left != right for left, right in sides):
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            input = F.pad(input, [side for pair in reversed(sides) for side in pair], mode=mode)
            padding = (0,) * len(sides)
        return input, Convolution(self.stride, padding, self.dilation, self.groups)

    def draw_mask(self, device: torch.device | str | None = None) -> Tensor:
        """Draw a mask; see `MixoutLayer.draw_mask`. With groups, rows share their group's bits."""
        if self.granularity != "neuron" or self.groups == 1:
            return super().draw_mask(device)
        channels = self.weight.shape[1]
        device = self.weight.device if device is None else device
        bits = torch.rand(self.groups, 1, channels, device=device, dtype=torch.float32) >= self.p
        rows = bits.expand(-1, self.weight.shape[0] // self.groups, -1).reshape(-1, channels)
        return rows.view(*rows.shape, *(1 for _ in self.kernel_size))


class MixoutConv2d(MixoutConvolution, nn.Conv2d):  # type: ignore[misc]
    """A two-dimensional convolution whose weight is mixed with its pretrained value.

    Lee, Cho, Kang, "Mixout", ICLR 2020, equation 4: Φ = u + (m / (1 - p)) ⊙ (w - u), with
    m ~ Bernoulli(1 - p). See `MixoutConvolution` for what a mask bit covers. In training mode each
    call draws a mask. In evaluation mode the output is bit for bit that of the plain layer.

    Args:
        in_channels: Number of channels of the input.
        out_channels: Number of filters.
        kernel_size: Size of the kernel. This and the next arguments are those of `nn.Conv2d`.
        stride: Step between two positions of the kernel.
        padding: Number of values added at each side; or "same", or "valid".
        dilation: Distance between the values that the kernel reads.
        groups: Number of groups of channels that are convolved separately.
        bias: Whether the layer has a bias. The bias is never mixed.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        p: Mix probability in [0, 1).
        granularity: "neuron" (one bit per input channel, as in the paper), "filter" (one bit per
            output channel) or "element" (one bit per weight).
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ArgumentError: `p` or `granularity` is not valid.
    """

    plain_class = nn.Conv2d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        *,
        p: float = 0.7,
        granularity: str = "neuron",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        nn.Conv2d.__init__(
            self, in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            padding_mode, device=device, dtype=dtype,
        )  # fmt: skip
        self.anchor(None, p=p, granularity=granularity)


class MixoutConv1d(MixoutConvolution, nn.Conv1d):  # type: ignore[misc]
    """A one-dimensional convolution whose weight is mixed with its pretrained value.

    Like `MixoutConv2d`. Not to be confused with `MixoutConv1D`: transformers' Conv1D is a linear
    layer.

    Args:
        in_channels: Number of channels of the input.
        out_channels: Number of filters.
        kernel_size: Size of the kernel. This and the next arguments are those of `nn.Conv1d`.
        stride: Step between two positions of the kernel.
        padding: Number of values added at each side; or "same", or "valid".
        dilation: Distance between the values that the kernel reads.
        groups: Number of groups of channels that are convolved separately.
        bias: Whether the layer has a bias. The bias is never mixed.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        p: Mix probability in [0, 1).
        granularity: "neuron", "filter" or "element".
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ArgumentError: `p` or `granularity` is not valid.
    """

    plain_class = nn.Conv1d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int],
        stride: int | tuple[int] = 1,
        padding: str | int | tuple[int] = 0,
        dilation: int | tuple[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        *,
        p: float = 0.7,
        granularity: str = "neuron",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        nn.Conv1d.__init__(
            self, in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            padding_mode, device=device, dtype=dtype,
        )  # fmt: skip
        self.anchor(None, p=p, granularity=granularity)
