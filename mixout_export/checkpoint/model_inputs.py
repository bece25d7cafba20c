"""Make inputs that a model can run, from the description of its interface."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mixout_export.checkpoint.interface import IMAGE_INPUT, KNOWN_INPUTS, ModelInterface
from mixout_export.errors import ArgumentError

Array = npt.NDArray[Any]
Ids = npt.NDArray[np.int64]

#: Longest sequence that is made, and the longest if positions have no limit.
LONGEST_SEQUENCE = 4096
UNBOUNDED_SEQUENCE = 512

#: Choices in a batch of a multiple-choice model.
CHOICES = 3

#: Lengths that are tried until a model runs. Models that pool need as many tokens as they pool.
_SHORTEST_SEQUENCES = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Batch:
    """One batch of inputs.

    Attributes:
        name: Purpose of the batch.
        inputs: int64 arrays `(batch, sequence)`, or `(batch, choice, sequence)`, by input name; or
            images alone, float32 `(batch, channels, height, width)`.
    """

    name: str
    inputs: Mapping[str, Array]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape that all inputs share."""
        return next(iter(self.inputs.values())).shape

    @property
    def undefined_rows(self) -> npt.NDArray[np.bool_]:
        """Which rows have a sequence that is all padding, bool `(batch,)`.

        A softmax over nothing is not defined. Eager attention, PyTorch's fused attention and each
        runtime give different results, so such rows are run and reported but not judged.
        """
        mask = self.inputs.get("attention_mask")
        if mask is None:
            return np.zeros(self.shape[0], dtype=bool)
        return np.asarray(~(mask != 0).any(axis=-1).reshape(len(mask), -1).all(axis=1))


class InputMaker:
    """Draw valid inputs for one interface."""

    def __init__(self, interface: ModelInterface, seed: int) -> None:
        self.interface = interface
        self.random = np.random.default_rng(seed)
        self.pad = interface.pad_token_id
        self.final = interface.final_token_id
        self.shortest = interface.shortest_sequence
        longest = interface.sequence_limit or UNBOUNDED_SEQUENCE
        self.longest = longest if longest <= LONGEST_SEQUENCE else UNBOUNDED_SEQUENCE

    def length(self, wanted: int) -> int:
        """Return the length closest to `wanted` that the model runs on."""
        return max(self.shortest, min(wanted, self.longest))

    def random_ids(self, rows: int, length: int) -> Ids:
        """Draw ids of ordinary tokens, int64 `(rows, length)`, without padding and final ids."""
        size = self.interface.vocabulary_size
        ids = self.random.integers(0, size, size=(rows, length), dtype=np.int64)
        for taken in {self.pad, self.final} - {None}:
            ids[ids == taken] = self._ordinary
        return ids

    @property
    def _ordinary(self) -> int:
        """An id that neither pads nor ends a row, if there is one."""
        size = self.interface.vocabulary_size
        return next((i for i in range(size) if i not in (self.pad, self.final)), 0)

    def _ended(self, ids: Ids, mask: Ids) -> Ids:
        """End each row with the final token if the model needs it. It occurs nowhere else then."""
        if self.final is None:
            return ids
        ids = np.where(ids == self.final, self._ordinary, ids)
        last = ids.shape[1] - 1 - np.argmax(mask[:, ::-1] != 0, axis=1)
        ids[np.arange(len(ids)), last] = self.final
        return ids

    def segments(self, ids: Ids) -> Ids:
        """Split each row at a random place into consecutive segments, as pairs of texts are."""
        rows, length = ids.shape
        count = self.interface.segments
        cuts = np.sort(self.random.integers(0, length + 1, size=(rows, count - 1)), axis=1)
        positions = np.arange(length)[None, :, None]
        segments: Ids = (positions >= cuts[:, None, :]).sum(axis=2).astype(np.int64)
        return segments

    def batch(
        self, name: str, ids: Ids, *, mask: Ids | None = None, segments: Ids | None = None
    ) -> Batch:
        """Make a batch of `ids` with the inputs of the interface."""
        mask = np.ones_like(ids) if mask is None else mask
        segments = self.segments(ids) if segments is None else segments
        ids = self._ended(ids, mask)
        if self.pad is not None:
            ids = np.where(mask == 0, self.pad, ids)
        made = {
            "input_ids": ids,
            "attention_mask": mask,
            "token_type_ids": np.where(mask == 0, 0, segments),
            "position_ids": np.maximum(np.cumsum(mask, axis=1) - 1, 0),  # padding takes none
        }
        inputs = {key: self._with_choices(made[key]) for key in self.interface.inputs}
        return Batch(name=name, inputs=inputs)

    def _with_choices(self, array: Ids) -> Ids:
        """Add the axis of choices to `(batch, sequence)` by combining each row with others."""
        if not self.interface.choices:
            return array
        return np.stack([np.roll(array, shift, axis=0) for shift in range(CHOICES)], axis=1)


def check_inputs(interface: ModelInterface) -> None:
    """Refuse a model that takes an input for which no values are known."""
    if interface.image is not None and interface.inputs == (IMAGE_INPUT,):
        return
    unknown = set(interface.inputs) - {*KNOWN_INPUTS, "position_ids"}
    if unknown:
        raise ArgumentError(
            f"input {sorted(unknown)[0]!r}: no values are known for it; the test inputs have only "
            f"{', '.join(KNOWN_INPUTS)} and position_ids, or {IMAGE_INPUT} alone"
        )


def smallest_batch(interface: ModelInterface) -> Batch:
    """Return one row of two tokens (each of `CHOICES`, with choices) that a model can run."""
    check_inputs(interface)
    if interface.image is not None:
        return Batch("smallest", {IMAGE_INPUT: np.zeros((1, *interface.image), dtype=np.float32)})
    maker = InputMaker(interface, seed=0)
    return maker.batch("smallest", maker.random_ids(1, maker.length(2)))


def shortest_batches(interface: ModelInterface) -> Iterator[tuple[ModelInterface, Batch]]:
    """Yield interfaces with a growing shortest sequence, each with one row of that length.

    No configuration says how many tokens a model needs that pools along the sequence. Models of
    images have none to try.
    """
    for length in _SHORTEST_SEQUENCES if interface.image is None else ():
        check_inputs(interface)
        tried = replace(interface, shortest_sequence=length)
        maker = InputMaker(tried, seed=0)
        yield tried, maker.batch("shortest", maker.random_ids(1, maker.length(1)))


def draw_batches(
    interface: ModelInterface, shapes: Sequence[tuple[int, int]], *, seed: int
) -> tuple[Batch, ...]:
    """Return batches of random rows without padding, one of each `(rows, tokens)`.

    Lengths that the model does not run on are replaced by the closest; images have their own size.
    """
    check_inputs(interface)
    maker = InputMaker(interface, seed)
    if interface.image is not None:
        sizes = [(rows, *interface.image) for rows, _ in shapes]
        images = [maker.random.standard_normal(size, dtype=np.float32) for size in sizes]
        return tuple(Batch("random", {IMAGE_INPUT: image}) for image in images)
    return tuple(
        maker.batch("random", maker.random_ids(rows, maker.length(tokens)))
        for rows, tokens in shapes
    )
