"""Leaving the dropped input neurons out of the weight gradient's product."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor

from mixout_export.compact import CompactGradient, Slices
from mixout_export.fast_linear.products import from_host

#: The number of gathered columns is rounded up to a multiple of this, by device. Matrix units
#: compute such sizes faster.
PADDING = {"cpu": 8, "cuda": 64}
#: Multiplications that gathering must save to pay for itself (measured: it costs about 40 µs).
_FEWEST_SAVED = 4_000_000
#: If at most this share of the columns is gathered, they are kept instead of the whole input.
_KEPT_SHARE = 0.5

#: What `always_gather` or `never_gather` has set.
_forced: bool | None = None


@contextmanager
def _force(gathers: bool) -> Iterator[None]:
    global _forced
    before, _forced = _forced, gathers
    try:
        yield
    finally:
        _forced = before


def always_gather() -> AbstractContextManager[None]:
    """Gather the active neurons in every layer within a `with` block, however little that saves.

    For tests and measurements. Outside the block, only large layers and batches gather.
    """
    return _force(True)


def never_gather() -> AbstractContextManager[None]:
    """Compute the whole weight gradient in every layer within a `with` block."""
    return _force(False)


class ActiveNeurons:
    """Which input neurons a mask leaves active, in a form that gathers and scatters.

    Attributes:
        mask: The mask, on the CPU.
        indices: int64, shape (1, columns): the active neurons, then padding.
        count: Number of active neurons.
        columns: Number of columns that are multiplied: `count`, rounded up by the padding.
        keeps_gathered: Whether the backward pass keeps the gathered columns, not the whole input.
    """

    def __init__(self, mask: Tensor, neurons: Tensor, columns: int, device: torch.device) -> None:
        self.mask = mask
        self.count, self.columns = neurons.shape[0], columns
        padded = torch.constant_pad_nd(neurons, (0, 0, 0, columns - self.count))
        self.indices = from_host(padded.view(1, -1), device)
        self.keeps_gathered = columns <= _KEPT_SHARE * mask.numel()

    @property
    def has_ones(self) -> bool:
        """Whether `gather` adds a column of ones after those of the active neurons."""
        return self.count < self.columns

    @classmethod
    def of(
        cls, mask: Tensor, weight: Tensor, rows: int, *, always: bool = False
    ) -> "ActiveNeurons | None":
        """Return the active neurons of a mask, which is on the CPU, for an input of some rows.

        Return None if gathering them costs more than it saves, unless `always` asks for them.
        """
        total = mask.numel()
        neurons = mask.view(-1).nonzero()
        step = PADDING[weight.device.type]
        columns = min(-(-(neurons.shape[0] + 1) // step) * step, total)
        saved = (total - columns) * rows * (weight.numel() // max(1, total))
        gathers = (always or saved >= _FEWEST_SAVED) if _forced is None else _forced
        return cls(mask, neurons, columns, weight.device) if gathers else None

    def gather(self, input: Tensor) -> Tensor:
        """Return the active neurons' columns, (rows, columns), of an input, (rows, in).

        If there is room, the next column holds ones. In the weight gradient's product, that column
        becomes the gradient of the bias.
        """
        gathered = Slices.of(input, self.indices.view(-1), 1).values
        if self.has_ones:
            gathered.select(1, self.count).fill_(1.0)
        return gathered

    def scatter(self, values: Tensor, whole: Tensor, dim: int) -> Tensor:
        """Write the active neurons' values into `whole`, a tensor of zeros, and return it.

        Along `dim`, `values` has `count` or `columns` elements, and `whole` has one per input
        neuron.
        """
        values = values.narrow(dim, 0, self.count)
        return Slices(self.indices[0, : self.count], values, dim).write_to(whole)

    def weight_gradient(
        self, part: Tensor, weight: Tensor, dim: int, p: float, compact: CompactGradient | None
    ) -> Tensor | None:
        """Turn the gradient of Φ's active slices into that of w; None if it went to `compact`.

        Along `dim`, `part` has `columns` elements. It has the dtype of the output's gradient.
        """
        scaled = part.narrow(dim, 0, self.count).to(weight.dtype) * (1.0 / (1.0 - p))
        scaled = scaled.contiguous()  # scattering a transposed tensor can take ten times as long
        if compact is not None and compact.accepts(part.dtype):
            compact.add(self.mask, self.indices[0, : self.count], scaled)
            return None
        # Zeros made from the values, not from the weight: under `is_grads_batched` the values have
        # one dimension more, and so must the zeros.
        return self.scatter(scaled, scaled.new_zeros(weight.shape), dim)
