"""Linear layers whose weight is mixed with its pretrained value during training."""

import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own idiom)
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from mixout_export.layers.base import MixoutLayer


class MixoutLinear(MixoutLayer, nn.Linear):
    """A linear layer y = x Φᵀ + b whose weight is mixed with its pretrained value.

    Lee, Cho, Kang, "Mixout", ICLR 2020, equation 4 and section 3:
    Φ = u + (m / (1 - p)) ⊙ (w - u), m ~ Bernoulli(1 - p), with one bit per input neuron. In
    training mode each call draws a mask. In evaluation mode the output is bit for bit that of the
    plain layer.

    Args:
        in_features: Size of each input sample.
        out_features: Size of each output sample.
        bias: Whether the layer has a bias. The bias is never mixed.
        p: Mix probability in [0, 1).
        granularity: "neuron", "filter" (one bit per output neuron) or "element".
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ArgumentError: `p` or `granularity` is not valid.
    """

    plain_class = nn.Linear
    input_dim = 1

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        p: float = 0.7,
        granularity: str = "neuron",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        nn.Linear.__init__(self, in_features, out_features, bias, device=device, dtype=dtype)
        self.anchor(None, p=p, granularity=granularity)

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        if self.takes_fast_path(input):
            return self.fast_product(input)
        if not self.is_mixing():
            return self.plain_class.forward(self, input)
        return F.linear(input, self.mixed_weight(), self.bias)


class MixoutConv1D(MixoutLayer, Conv1D):  # type: ignore[misc]
    """transformers' Conv1D, y = x Φ + b, whose weight is mixed with its pretrained value.

    Like `MixoutLinear`, with the weight stored as (in, out). A neuron mask has shape (in, 1).

    Args:
        nf: Number of output features.
        nx: Number of input features.
        p: Mix probability in [0, 1).
        granularity: "neuron", "filter" or "element".

    Raises:
        ArgumentError: `p` or `granularity` is not valid.
    """

    plain_class = Conv1D
    input_dim = 0

    def __init__(self, nf: int, nx: int, *, p: float = 0.7, granularity: str = "neuron") -> None:
        Conv1D.__init__(self, nf, nx)  # type: ignore[no-untyped-call]
        self.anchor(None, p=p, granularity=granularity)

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., nx) to (..., nf)."""
        if self.takes_fast_path(input):
            return self.fast_product(input)
        # The operations of the plain layer, so that evaluation gives the same bits.
        flat = input.view(-1, input.size(-1))
        mixed = torch.addmm(self.bias, flat, self.mixed_weight())
        return mixed.view(*input.shape[:-1], self.nf)

    def __repr__(self) -> str:
        """Return the plain layer's description with p and the granularity."""
        inner = f"nf={self.nf}, nx={self.nx}, p={self.p}, granularity={self.granularity}"
        return f"MixoutConv1D({inner})"
