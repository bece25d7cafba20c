"""Layers whose weight is mixed with its pretrained value during training."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own idiom)
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

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
        granularity: "neuron" or "element".
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
        return self.granularity == "neuron" or can_pack(self.weight.numel(), self.p)

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

    def mixed_weight(self) -> Tensor:
        """Return Φ under a fresh mask; in evaluation mode or at p = 0, return `weight` itself."""
        if not self.is_mixing():
            return self.weight
        mask = draw_mask(
            self.weight, self.p, granularity=self.granularity, input_dim=self.input_dim
        )
        return mix(self.weight, self.pretrained_weight, mask, self.p)

    def extra_repr(self) -> str:
        """Return the plain layer's description with p and the granularity."""
        plain = self.plain_class.extra_repr(self)
        return f"{plain}, p={self.p}, granularity={self.granularity}"


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
        granularity: "neuron" or "element".
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
        granularity: "neuron" or "element".

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


class MixoutEmbedding(MixoutLayer, nn.Embedding):
    """A lookup table whose rows are mixed with their pretrained values.

    A lookup is the product of a one-hot vector with the table. The paper draws one mask bit per
    input neuron, and here an input neuron is a row. A dropped row takes all of its pretrained
    values, everywhere in the batch. In training mode each call draws a mask. Only the rows that the
    batch looks up are mixed. The padding row is mixed like the others and gets no gradient, as in
    the plain layer.

    The anchor may have fewer rows than the table: those that were added to it later have no
    pretrained value and are never mixed. It may have more: those were removed from the table.

    Args:
        num_embeddings: Number of rows.
        embedding_dim: Size of a row.
        padding_idx: The row that gets no gradient, or None.
        p: Mix probability in [0, 1).
        granularity: "neuron" (one bit per row) or "element" (one bit per value).
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ArgumentError: `p` or `granularity` is not valid.
    """

    plain_class = nn.Embedding
    input_dim = 0

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        p: float = 0.7,
        granularity: str = "neuron",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        nn.Embedding.__init__(
            self, num_embeddings, embedding_dim, padding_idx, device=device, dtype=dtype
        )
        self.anchor(None, p=p, granularity=granularity)

    def forward(self, input: Tensor) -> Tensor:
        """Map row numbers, int64 or int32 of shape (...), to (..., embedding_dim)."""
        rows = nn.Embedding.forward(self, input)
        if not self.is_mixing():
            return rows
        known = self.pretrained_weight.shape[0]
        pretrained = F.embedding(input.clamp(max=known - 1), self.pretrained_weight)
        mixed = mix(rows, pretrained, self._row_mask(input), self.p)
        if known >= self.weight.shape[0]:
            return mixed
        return torch.where((input < known).unsqueeze(-1), mixed, rows)

    def is_anchor_shape(self, shape: torch.Size) -> bool:
        """Tell whether the anchor may have this shape: that of the weight, with any rows."""
        return shape[1:] == self.weight.shape[1:]

    def _row_mask(self, input: Tensor) -> Tensor:
        """Draw a mask in which equal row numbers get equal bits.

        It is Bool, of shape (..., 1) for "neuron" and (..., embedding_dim) for "element".
        """
        if self.granularity == "neuron":
            mask = draw_mask(self.weight, self.p, granularity="neuron", input_dim=0)
            return F.embedding(input, mask)
        # Draw one row of bits per lookup, not per row of the table, and read the row of bits whose
        # index is the id's rank in the batch. All shapes are known without waiting for a GPU.
        ids = input.reshape(-1)
        ordered, order = ids.sort()
        rank = torch.zeros_like(ids)
        rank[1:] = (ordered[1:] != ordered[:-1]).cumsum(0)
        shape = (ids.shape[0], self.embedding_dim)
        bits = torch.rand(shape, device=ids.device, dtype=torch.float32) >= self.p
        found = torch.empty_like(rank).scatter_(0, order, rank)
        return F.embedding(found, bits).view(*input.shape, self.embedding_dim)


#: The mixout layer for each plain class. The type must match exactly.
LAYER_CLASSES: dict[type[nn.Module], type[MixoutLayer]] = {
    nn.Linear: MixoutLinear,
    Conv1D: MixoutConv1D,
    nn.Embedding: MixoutEmbedding,
}

#: Subclasses of `nn.Linear` in transformers that compute the same product.
_SAME_AS_LINEAR = frozenset({"transformers.models.falcon.modeling_falcon.FalconLinear"})


def mixout_class(plain: type[nn.Module]) -> type[MixoutLayer] | None:
    """Return the mixout layer for a plain class, or None if the class cannot be mixed."""
    if f"{plain.__module__}.{plain.__qualname__}" in _SAME_AS_LINEAR:
        return MixoutLinear
    return LAYER_CLASSES.get(plain)


def is_mixable(module: nn.Module, *, embeddings: bool = True) -> bool:
    """Tell whether a module can be mixed; `embeddings` says whether an Embedding counts."""
    found = mixout_class(type(module))
    return found is not None and (embeddings or found is not MixoutEmbedding)


def to_mixout(
    module: nn.Module, pretrained_weight: Tensor | None, *, p: float, granularity: str
) -> MixoutLayer:
    """Turn a plain layer into a mixout layer, in place.

    Only the object's class changes, as with PyTorch's parametrizations. The object keeps its mode,
    device, dtype, hooks and `requires_grad`, and all references to it stay valid.

    Args:
        module: An `nn.Linear`, a `Conv1D` or an `nn.Embedding`, not a subclass of one.
        pretrained_weight: u, of the weight's shape; None means a copy of the current weight. That
            of an `nn.Embedding` may have fewer rows, or more.
        p: Mix probability in [0, 1).
        granularity: "neuron" or "element".

    Returns:
        The module.

    Raises:
        ArgumentError: The module's type has no mixout layer, or an argument is not valid.
    """
    layer_class = mixout_class(type(module))
    if layer_class is None:
        raise ArgumentError(
            f"module: got {type(module).__name__}, expected exactly Linear, Conv1D or Embedding"
        )
    plain_class = type(module)
    module.__class__ = layer_class
    try:
        module.anchor(pretrained_weight, p=p, granularity=granularity)  # type: ignore[operator]
    except BaseException:
        module.__class__ = plain_class
        raise
    if plain_class is not layer_class.plain_class:
        vars(module)["plain_class"] = plain_class
    return module  # type: ignore[return-value]


def to_plain(layer: MixoutLayer) -> nn.Module:
    """Turn a mixout layer back into a plain layer, in place. The parameters stay the same."""
    layer.release()
    layer.__class__ = vars(layer).pop("plain_class", layer.plain_class)
    plain: Any = layer
    return plain  # type: ignore[no-any-return]
