"""Which examples go into which batch."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

#: Batches whose examples are sorted by length together: wide enough to leave little padding,
#: narrow enough that batches still differ from epoch to epoch.
_POOL = 50


def training_batches(
    lengths: NDArray[np.int64], *, batch_size: int, seed: int, epoch: int
) -> list[list[int]]:
    """Return an epoch's batches: every example once, examples of similar length together.

    The order depends on nothing but the arguments, so a resumed run sees the same batches.

    Args:
        lengths: Number of tokens of each example, shape (examples,).
        batch_size: Examples per batch; the last one may be smaller.
        seed: Seed of the run.
        epoch: Number of the epoch, from 0.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    pool = batch_size * _POOL
    batches: list[list[int]] = []
    for start in range(0, len(order), pool):
        part = order[start : start + pool]
        part = part[np.argsort(lengths[part], kind="stable")]
        batches += [part[i : i + batch_size].tolist() for i in range(0, len(part), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def evaluation_batches(lengths: NDArray[np.int64], *, batch_size: int) -> list[list[int]]:
    """Return batches of examples sorted by length, longest first, so that memory peaks at once."""
    order = np.argsort(-lengths, kind="stable")
    return [order[i : i + batch_size].tolist() for i in range(0, len(order), batch_size)]


def share_of(batches: Sequence[list[int]], *, rank: int, ranks: int) -> list[list[int]]:
    """Return one process's batches, the same number for every process.

    Where the number does not divide, the last ones take batches from the beginning again.
    """
    rounds = math.ceil(len(batches) / ranks)
    return [batches[(turn * ranks + rank) % len(batches)] for turn in range(rounds)]


def grouped(batches: Sequence[list[int]], size: int) -> Iterator[list[list[int]]]:
    """Yield the batches of each update: `size` of them, the last group fewer."""
    for start in range(0, len(batches), size):
        yield list(batches[start : start + size])
