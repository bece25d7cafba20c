"""Element masks that are drawn again from a seed instead of being kept.

An element mask is as large as its weight. The backward pass needs the mask of the forward pass, so
it draws the same bits again from the same seed.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

_LEVELS = 1 << 16
#: For fewer weights, one call of `torch.rand` is faster than seeding a generator.
_FEWEST = 1 << 12
#: Number of weights whose bits are drawn together: a multiple of four, small enough for the cache.
_PIECE = 1 << 18
#: Largest relative error that rounding to 16 bits may cause in p and in 1 - p.
_TOLERANCE = 1e-3


def round_probability(p: float) -> float:
    """Return the multiple of 2⁻¹⁶ nearest to p, which 16-bit random numbers can represent."""
    return round(p * _LEVELS) / _LEVELS


def can_pack(count: int, p: float) -> bool:
    """Tell whether `PackedMask` suits a weight: it is large enough, and p survives rounding.

    Args:
        count: Number of weights.
        p: Mix probability in (0, 1). Close to 0, rounding to 2⁻¹⁶ would change p too much; close
            to 1, it would change 1/(1 - p) too much.
    """
    error = abs(round_probability(p) - p)
    return count >= _FEWEST and error <= _TOLERANCE * min(p, 1.0 - p)


@dataclass(frozen=True)
class PackedMask:
    """An element mask, m ~ Bernoulli(1 - p), that can be drawn again from its seed.

    Each random 64-bit integer is read as four 16-bit numbers, and each of these is compared with a
    threshold. p is rounded to 16 bits for that. The scale 1/(1 - p) must use the rounded p, so that
    E[Φ] = w holds.

    Attributes:
        seed: Seed of the generator.
        shape: The weight's shape.
        p: The rounded mix probability, a multiple of 2⁻¹⁶.
    """

    seed: int
    shape: torch.Size
    p: float

    @classmethod
    def draw(cls, shape: torch.Size, p: float) -> "PackedMask":
        """Make a mask with a seed from PyTorch's global CPU generator; p is in (0, 1)."""
        seed = int(torch.randint(1 << 62, (), dtype=torch.int64))
        return cls(seed, shape, round_probability(p))

    def to_dict(self) -> dict[str, Any]:
        """Return what `from_dict` needs to make the same mask."""
        return {"seed": self.seed, "shape": list(self.shape), "p": self.p}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "PackedMask":
        """Make the mask that `to_dict` described."""
        return cls(values["seed"], torch.Size(values["shape"]), values["p"])

    def bits(self, like: Tensor) -> Tensor:
        """Draw the whole mask: zeros and ones, of the weight's shape.

        Every call returns the same bits. They get the dtype and the device of `like`.
        """
        parts = [bits for _, bits in self.pieces(like)]
        return torch.cat(parts).view(self.shape)

    def pieces(self, like: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Draw the mask piece by piece, so that the whole mask is never in memory.

        Yields:
            A slice of the flattened weight, and its zeros and ones, of shape (piece,) and with the
            dtype and the device of `like`.
        """
        threshold = round(self.p * _LEVELS) - _LEVELS // 2  # the 16-bit numbers are signed
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
    """Return a function that draws a given number of int64, uniform over their whole range."""
    if device.type == "cpu":  # NumPy's SFC64 is twice as fast as PyTorch's generator
        source = np.random.SFC64(seed)
        return lambda count: torch.from_numpy(source.random_raw(count).view(np.int64))
    generator = torch.Generator(device).manual_seed(seed)
    lowest = torch.iinfo(torch.int64).min

    def draw(count: int) -> Tensor:
        numbers = torch.empty(count, dtype=torch.int64, device=device)
        return numbers.random_(lowest, None, generator=generator)

    return draw
