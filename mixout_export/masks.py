"""Random bits for masks, cheaply and repeatably.

An element mask is as large as its weight. It is never kept between a forward and a backward pass:
the pass that needs it again draws it again from the same seed.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_LEVELS = 1 << 16
#: Below this many weights one `torch.rand` costs less than seeding a generator.
_FEWEST = 1 << 12
#: Weights whose bits are drawn at a time: a multiple of four, and few enough for the cache.
_PIECE = 1 << 18
#: Largest relative error of p and of 1 - p that a realised probability may have.
_TOLERANCE = 1e-3


def realised_probability(p: float) -> float:
    """Return the multiple of 2⁻¹⁶ next to p, the probability that 16-bit draws realise."""
    return round(p * _LEVELS) / _LEVELS


def can_pack(count: int, p: float) -> bool:
    """Tell whether a mask of so many weights is drawn from packed bits.

    Args:
        count: Number of weights.
        p: Mix probability in (0, 1). Next to 1, a step of 2⁻¹⁶ would change 1/(1 - p) too much;
            next to 0, p itself.
    """
    error = abs(realised_probability(p) - p)
    return count >= _FEWEST and error <= _TOLERANCE * min(p, 1.0 - p)


@dataclass(frozen=True)
class PackedMask:
    """An element mask that can be drawn again: m ~ Bernoulli(1 - p), four bits' worth a draw.

    Sixty-four random bits are drawn at a time and read as four 16-bit numbers, each compared with a
    threshold. The realised p is the threshold's, and belongs in the scale, so that E[Φ] = w holds.

    Attributes:
        seed: Seed of the generator.
        shape: The weight's shape.
        p: The realised mix probability, a multiple of 2⁻¹⁶.
    """

    seed: int
    shape: torch.Size
    p: float

    @classmethod
    def draw(cls, shape: torch.Size, p: float) -> "PackedMask":
        """Take a seed from PyTorch's global generator on the CPU.

        Args:
            shape: The weight's shape.
            p: Mix probability in (0, 1).
        """
        seed = int(torch.randint(1 << 62, (), dtype=torch.int64))
        return cls(seed, shape, realised_probability(p))

    def bits(self, like: Tensor) -> Tensor:
        """Draw the mask, the same one at each call.

        Args:
            like: A tensor of the dtype and device to return.

        Returns:
            0 and 1, of the mask's shape.
        """
        parts = [bits for _, bits in self.pieces(like)]
        return torch.cat(parts).view(self.shape)

    def pieces(self, like: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Draw the mask piece by piece, so that it is never there as a whole.

        Args:
            like: A tensor of the dtype and device to yield.

        Yields:
            Which of the weights, counted through, and their bits, 0 and 1, of shape (piece,).
        """
        threshold = round(self.p * _LEVELS) - _LEVELS // 2  # the draws are signed
        draw = _drawing(self.seed, like.device)
        count = self.shape.numel()
        piece = _PIECE if like.device.type == "cpu" else count
        for start in range(0, count, piece):
            part = slice(start, min(start + piece, count))
            numbers = draw((part.stop - start + 3) // 4).view(torch.int16)[: part.stop - start]
            yield (
                part,
                torch.ge(numbers, threshold, out=torch.empty_like(numbers, dtype=like.dtype)),
            )


def _drawing(seed: int, device: torch.device) -> Callable[[int], Tensor]:
    """Return a function that draws the next so many int64 numbers, uniform over their range."""
    if device.type == "cpu":  # twice as fast as PyTorch's Mersenne twister
        source = np.random.SFC64(seed)
        return lambda count: torch.from_numpy(source.random_raw(count).view(np.int64))
    generator = torch.Generator(device).manual_seed(seed)
    lowest = torch.iinfo(torch.int64).min

    def draw(count: int) -> Tensor:
        numbers = torch.empty(count, dtype=torch.int64, device=device)
        return numbers.random_(lowest, None, generator=generator)

    return draw
