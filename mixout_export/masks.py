"""Random bits for masks, cheaply and repeatably.

An element mask is as large as its weight. It is never kept between a forward and a backward pass:
the pass that needs it again draws it again from the same seed.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_LEVELS = 1 << 16
#: Below this many weights one `torch.rand` costs less than seeding a generator.
_FEWEST = 1 << 12
#: Largest relative error of 1 - p by which a realised probability may differ from the one asked.
_TOLERANCE = 1e-3


def realised_probability(p: float) -> float:
    """Return the multiple of 2⁻¹⁶ next to p, the probability that 16-bit draws realise."""
    return round(p * _LEVELS) / _LEVELS


def can_pack(count: int, p: float) -> bool:
    """Tell whether a mask of so many weights is drawn from packed bits.

    Args:
        count: Number of weights.
        p: Mix probability in (0, 1). Next to 1, a step of 2⁻¹⁶ would change 1/(1 - p) too much.
    """
    return count >= _FEWEST and abs(realised_probability(p) - p) <= _TOLERANCE * (1.0 - p)


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

    def bits(self, out: Tensor) -> Tensor:
        """Draw the mask, the same one at each call.

        Args:
            out: Floating point, contiguous, of the mask's shape, on any device; what it held is
                lost.

        Returns:
            `out`, of 0 and 1.
        """
        threshold = round(self.p * _LEVELS) - _LEVELS // 2  # the draws are signed
        numbers = self._numbers(self.shape.numel(), out.device).view(self.shape)
        return torch.ge(numbers, threshold, out=out)

    def _numbers(self, count: int, device: torch.device) -> Tensor:
        """Return so many int16 numbers, uniform over their whole range."""
        draws = (count + 3) // 4
        if device.type == "cpu":  # twice as fast as PyTorch's Mersenne twister
            bits = torch.from_numpy(np.random.SFC64(self.seed).random_raw(draws).view(np.int64))
        else:
            generator = torch.Generator(device).manual_seed(self.seed)
            lowest = torch.iinfo(torch.int64).min
            bits = torch.empty(draws, dtype=torch.int64, device=device)
            bits.random_(lowest, None, generator=generator)
        return bits.view(torch.int16)[:count]
