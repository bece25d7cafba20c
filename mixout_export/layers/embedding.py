"""Lookup tables whose rows are mixed with their pretrained values during training."""

import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own idiom)
from torch import Tensor, nn

from mixout_export.functional import mix
from mixout_export.layers.base import MixoutLayer


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
        granularity: "neuron" (one bit per row), "filter" (one bit per column, as columns are the
            output neurons) or "element" (one bit per value).
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

    def packs_masks(self) -> bool:
        """Tell that an element mask is kept as bits, of which a batch needs few."""
        return False

    def takes_compact_gradients(self) -> bool:
        """Tell that a lookup's gradient is dense, as that of the plain layer."""
        return False

    def _row_mask(self, input: Tensor) -> Tensor:
        """Return a mask in which equal row numbers get equal bits.

        It is Bool and broadcasts against the rows, (..., embedding_dim).
        """
        if self.granularity == "filter":
            return self.current_mask().view(-1)
        if self.granularity == "neuron" or self.held_mask is not None:
            return F.embedding(input, self.current_mask())
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
