import pytest
import torch

from mixout_export.masks import PackedMask, can_pack, round_probability

SHAPE = torch.Size((64, 128))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_same_bits_at_each_call(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    mask = PackedMask.draw(SHAPE, 0.7)
    bits = mask.bits(torch.empty(SHAPE, dtype=dtype))
    assert bits.dtype == dtype
    assert bits.shape == SHAPE
    assert set(bits.unique().tolist()) == {0.0, 1.0}
    torch.rand(100)
    assert torch.equal(mask.bits(torch.ones(SHAPE, dtype=dtype)), bits)


def test_the_seed_comes_from_the_global_generator() -> None:
    def draw(seed: int) -> PackedMask:
        torch.manual_seed(seed)
        return PackedMask.draw(SHAPE, 0.7)

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    torch.manual_seed(1)
    assert PackedMask.draw(SHAPE, 0.7) != PackedMask.draw(SHAPE, 0.7)


@pytest.mark.parametrize("p", [0.01, 0.3, 0.7, 0.9, 0.99])
def test_bits_are_kept_with_the_rounded_probability(p: float) -> None:
    torch.manual_seed(3)
    mask = PackedMask.draw(torch.Size((1000, 1001)), p)
    kept = float(mask.bits(torch.empty(mask.shape, dtype=torch.float64)).mean())
    deviation = (mask.p * (1 - mask.p) / mask.shape.numel()) ** 0.5
    assert abs(kept - (1 - mask.p)) < 5 * deviation
    assert abs(mask.p - p) <= 2**-17


def test_bits_are_independent_between_neighbors() -> None:
    """Four bits come from one draw: no pair of places at any such distance may be correlated."""
    torch.manual_seed(4)
    flat = PackedMask.draw(torch.Size((1 << 20,)), 0.5).bits(torch.empty(1 << 20)).double() - 0.5
    for distance in (1, 2, 3, 4, 5, 64):
        correlation = float((flat[:-distance] * flat[distance:]).mean() / 0.25)
        assert abs(correlation) < 5 / 1024  # five standard deviations


def test_where_packed_bits_serve() -> None:
    assert can_pack(10_000, 0.7)
    assert not can_pack(100, 0.7)
    assert not can_pack(10_000, 0.99999)  # a step of 2⁻¹⁶ is a good part of 1 - p
    assert not can_pack(10_000, 1 - 1e-9)
    assert not can_pack(10_000, 1e-4)  # and here of p
    assert round_probability(0.5) == 0.5


def test_pieces_are_the_mask() -> None:
    torch.manual_seed(5)
    shape = torch.Size((521, 1031))  # an odd number, of more than two pieces
    mask = PackedMask.draw(shape, 0.7)
    whole = mask.bits(torch.empty(1)).view(-1)
    pieces = list(mask.pieces(torch.empty(1)))
    assert [part.start for part, _ in pieces] == [0, 1 << 18, 2 << 18]
    assert pieces[-1][0].stop == shape.numel()
    for part, bits in pieces:
        assert torch.equal(whole[part], bits)
