"""Which examples go into which batch, and which batches into which training step."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixout_export.training.options import TrainOptions

#: Batches whose examples are sorted by length together: wide enough to leave little padding,
#: narrow enough that batches still differ from epoch to epoch.
_POOL = 50


def training_batches(
    lengths: NDArray[np.int64], *, batch_size: int, seed: int, epoch: int
) -> list[list[int]]:
    """Return an epoch's batches: every example once, examples of similar length together.

    The order depends on nothing but the arguments, so a resumed run sees the same batches. The last
    batch may be smaller. `lengths` is the number of tokens of each example, `(examples,)`.
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


@dataclass(frozen=True)
class StepBatches:
    """The batches that one process computes in one training step.

    Attributes:
        epoch: Number of the epoch, from 0.
        batches: The indices of each batch's examples.
        targets: For each batch, the number of terms that its loss is the mean of, or the sum of
            their weights.
        mean_targets: The same for the whole step, averaged over the processes.
        ends_epoch: Whether this is the last step of its epoch.
    """

    epoch: int
    batches: tuple[list[int], ...]
    targets: tuple[float, ...]
    mean_targets: float
    ends_epoch: bool


@dataclass(frozen=True)
class StepPlan:
    """The batches of every training step, a function of these values alone.

    Attributes:
        lengths: Number of tokens of each example, shape (examples,).
        targets: Number of terms that each example adds to a batch's loss, or the sum of their
            weights, shape (examples,).
        options: Batch size, batches per step, and seed of the order.
        rank: Number of this process, from 0.
        ranks: Number of processes.
    """

    lengths: NDArray[np.int64]
    targets: NDArray[Any]
    options: TrainOptions
    rank: int = 0
    ranks: int = 1

    def _shares(self, epoch: int) -> list[list[list[int]]]:
        """Return the batches of each process in an epoch."""
        size, seed = self.options.batch_size, self.options.order_seed
        batches = training_batches(self.lengths, batch_size=size, seed=seed, epoch=epoch)
        return [share_of(batches, rank=rank, ranks=self.ranks) for rank in range(self.ranks)]

    @cached_property
    def steps_per_epoch(self) -> int:
        """Number of training steps in an epoch."""
        return math.ceil(len(self._shares(0)[0]) / self.options.gradient_accumulation)

    def steps(self, start: int, stop: int) -> Iterator[StepBatches]:
        """Yield the batches of the steps from `start`, counted from 0, up to but without `stop`."""
        size = self.options.gradient_accumulation
        shares: list[list[list[int]]] = []
        for step in range(start, stop):
            epoch, index = divmod(step, self.steps_per_epoch)
            if not shares or index == 0:
                shares = self._shares(epoch)
            first = index * size
            groups = [share[first : first + size] for share in shares]
            counts = [tuple(self.targets[b].sum().item() for b in group) for group in groups]
            yield StepBatches(
                epoch,
                tuple(groups[self.rank]),
                counts[self.rank],
                sum(map(sum, counts)) / self.ranks,
                ends_epoch=index + 1 == self.steps_per_epoch,
            )
