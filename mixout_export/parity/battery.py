"""The inputs that both sides are run on: chosen to touch every row of every table.

One random batch misses a zeroed position row, a zeroed segment and the tail of a vocabulary. The
battery's coverage set holds every vocabulary id, every position up to the limit and every
segment; the rest sweeps shapes and padding. It is the same for the same interface and seed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mixout_export.checkpoint.interface import IMAGE_INPUT, KNOWN_INPUTS, ModelInterface
from mixout_export.errors import ArgumentError
from mixout_export.parity.images import make_images

Array = npt.NDArray[Any]
Ids = npt.NDArray[np.int64]

#: Tokens in a batch of the coverage set, and where each gives a number for every word.
TOKENS_PER_BATCH = 2048
LANGUAGE_MODEL_TOKENS = 256

#: Length of the rows that carry the vocabulary: short rows spend little on attention.
VOCABULARY_ROW = 32

#: Most vocabulary ids the coverage set holds; a larger vocabulary is sampled, its ends included.
VOCABULARY_BUDGET = 65_536

#: Longest sequence the battery makes, and what it makes where positions have no limit.
LONGEST_SEQUENCE = 4096
UNBOUNDED_SEQUENCE = 512

#: (batch, sequence) of the shape sweep; lengths above the limit are cut to it.
SWEEP_SHAPES = ((1, 1), (1, 2), (2, 1), (1, 7), (3, 5), (2, 16), (5, 33), (8, 64), (4, 128))

#: Choices in a batch of a multiple-choice model.
CHOICES = 3


@dataclass(frozen=True)
class Batch:
    """One batch of inputs.

    Attributes:
        name: What it is for.
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

        A softmax over nothing has no value: eager attention, PyTorch's fused attention and each
        runtime make something else of it, so such rows are run and reported, but not judged.
        """
        mask = self.inputs.get("attention_mask")
        if mask is None:
            return np.zeros(self.shape[0], dtype=bool)
        return np.asarray(~(mask != 0).any(axis=-1).reshape(len(mask), -1).all(axis=1))


@dataclass(frozen=True)
class Coverage:
    """What a battery touches, out of what there is.

    Attributes:
        vocabulary: Ids covered.
        vocabulary_size: Ids there are; 0 where the model takes images.
        positions: Positions covered, from the first.
        position_limit: Positions there are; None where unbounded.
        segments: Segments covered.
        batches: Number of batches.
        examples: Number of rows.
    """

    vocabulary: int
    vocabulary_size: int
    positions: int
    position_limit: int | None
    segments: int
    batches: int
    examples: int


@dataclass(frozen=True)
class Battery:
    """All batches, and what they cover."""

    batches: tuple[Batch, ...]
    coverage: Coverage


class _Maker:
    """Draws valid inputs for one interface."""

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
        """Draw ids of ordinary tokens, int64 `(rows, length)`: any but the padding id."""
        size = self.interface.vocabulary_size
        ids = self.random.integers(0, size, size=(rows, length), dtype=np.int64)
        for taken in {self.pad, self.final} - {None}:
            ids[ids == taken] = self._ordinary
        return ids

    @property
    def _ordinary(self) -> int:
        """An id that neither pads nor ends a row, where there is one."""
        size = self.interface.vocabulary_size
        return next((i for i in range(size) if i not in (self.pad, self.final)), 0)

    def _ended(self, ids: Ids, mask: Ids) -> Ids:
        """End each row with the final token, which occurs nowhere else, if rows must end so."""
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
        """Make a batch of `ids` with the inputs that the interface asks for."""
        mask = np.ones_like(ids) if mask is None else mask
        segments = self.segments(ids) if segments is None else segments
        ids = self._ended(ids, mask)
        if self.pad is not None:
            ids = np.where(mask == 0, self.pad, ids)
        made = {
            "input_ids": ids,
            "attention_mask": mask,
            "token_type_ids": np.where(mask == 0, 0, segments),
            "position_ids": np.broadcast_to(np.arange(ids.shape[1]), ids.shape).copy(),
        }
        inputs = {key: self._with_choices(made[key]) for key in self.interface.inputs}
        return Batch(name=name, inputs=inputs)

    def _with_choices(self, array: Ids) -> Ids:
        """Give `(batch, sequence)` its dimension of choices by pairing each row with others."""
        if not self.interface.choices:
            return array
        return np.stack([np.roll(array, shift, axis=0) for shift in range(CHOICES)], axis=1)


def _vocabulary(maker: _Maker, budget: int) -> Ids:
    """Return the ids to cover, shuffled: all, or both ends and a sample of too many."""
    size = maker.interface.vocabulary_size
    if size <= budget:
        ids = np.arange(size, dtype=np.int64)
    else:
        end = budget // 4
        middle = maker.random.choice(
            np.arange(end, size - end, dtype=np.int64), budget - 2 * end, replace=False
        )
        ids = np.concatenate([np.arange(end), middle, np.arange(size - end, size)])
    return maker.random.permutation(ids).astype(np.int64)


def _cover_vocabulary(maker: _Maker, budget: int, tokens: int) -> list[Batch]:
    """Put every vocabulary id into a row, both segments in use, nothing masked."""
    ids = _vocabulary(maker, budget)
    length = maker.length(VOCABULARY_ROW)
    room = length if maker.final is None else max(1, length - 1)
    missing = -len(ids) % room
    rows = np.concatenate([ids, maker.random_ids(1, missing)[0]]).reshape(-1, room)
    rows = np.pad(rows, ((0, 0), (0, length - room)))
    step = max(1, tokens // length)
    return [
        maker.batch("vocabulary", rows[start : start + step]) for start in range(0, len(rows), step)
    ]


def _cover_positions(maker: _Maker) -> list[Batch]:
    """Fill every position up to the limit, once in each segment."""
    length = maker.longest
    batches = []
    for segment in range(maker.interface.segments):
        ids = maker.random_ids(1, length)
        batches.append(maker.batch("positions", ids, segments=np.full_like(ids, segment)))
    return batches


def _sweep_shapes(maker: _Maker) -> list[Batch]:
    """Try batch sizes and lengths, the shortest and the longest among them."""
    shapes = dict.fromkeys((rows, maker.length(length)) for rows, length in SWEEP_SHAPES)
    return [maker.batch("shapes", maker.random_ids(*shape)) for shape in shapes]


def _pad_rows(maker: _Maker) -> list[Batch]:
    """Pad rows of mixed lengths, down to a single token; no row is all padding.

    On the right, as most tokenizers do, and of a decoder on the left, as its tokenizer may.
    """
    if "attention_mask" not in maker.interface.inputs and maker.pad is None:
        return []
    batches = []
    shapes = [(2, 8, False), (6, 32, False), (4, 100, False)]
    if maker.interface.left_padding:
        shapes.append((4, 24, True))
    for rows, width, left in shapes:
        length = maker.length(width)
        lengths = maker.random.integers(1, length + 1, size=rows)
        lengths[0], lengths[-1] = length, 1
        mask = (np.arange(length)[None, :] < lengths[:, None]).astype(np.int64)
        name, mask = ("left padding", mask[:, ::-1].copy()) if left else ("padding", mask)
        batches.append(maker.batch(name, maker.random_ids(rows, length), mask=mask))
    return batches


def _mask_rows(maker: _Maker) -> list[Batch]:
    """Put a row that is all padding between two that are not, which it must not change."""
    if "attention_mask" not in maker.interface.inputs or maker.interface.choices:
        return []  # a row of choices would have one that is all padding in every row
    if maker.final is not None:
        return []  # a row without tokens has no end to read
    length = maker.length(16)
    mask = np.ones((3, length), dtype=np.int64)
    mask[1] = 0
    return [maker.batch("masked", maker.random_ids(3, length), mask=mask)]


def _check_inputs(interface: ModelInterface) -> None:
    if interface.image is not None and interface.inputs == (IMAGE_INPUT,):
        return
    unknown = set(interface.inputs) - {*KNOWN_INPUTS, "position_ids"}
    if unknown:
        raise ArgumentError(
            f"input {sorted(unknown)[0]!r}: no values are known for it; the battery makes "
            f"{', '.join(KNOWN_INPUTS)} and position_ids, or {IMAGE_INPUT} alone"
        )


def smallest_batch(interface: ModelInterface) -> Batch:
    """Return one row of two tokens (each of `CHOICES`, with choices) that a model can run.

    Raises:
        ArgumentError: The model takes an input that the battery cannot make.
    """
    _check_inputs(interface)
    if interface.image is not None:
        return Batch("smallest", {IMAGE_INPUT: np.zeros((1, *interface.image), dtype=np.float32)})
    maker = _Maker(interface, seed=0)
    return maker.batch("smallest", maker.random_ids(1, maker.length(2)))


def shortest_batch(interface: ModelInterface) -> Batch:
    """Return one row of a model of texts that is as short as it takes.

    Raises:
        ArgumentError: The model takes an input that the battery cannot make.
    """
    _check_inputs(interface)
    maker = _Maker(interface, seed=0)
    return maker.batch("shortest", maker.random_ids(1, maker.length(1)))


def draw_batches(
    interface: ModelInterface, shapes: Sequence[tuple[int, int]], *, seed: int
) -> tuple[Batch, ...]:
    """Return batches of random rows without padding, one of each `(rows, tokens)`.

    Lengths that the model does not run on are replaced by the closest; images have their own size.

    Raises:
        ArgumentError: The model takes an input that the battery cannot make.
    """
    _check_inputs(interface)
    maker = _Maker(interface, seed)
    if interface.image is not None:
        sizes = [(rows, *interface.image) for rows, _ in shapes]
        images = [maker.random.standard_normal(size, dtype=np.float32) for size in sizes]
        return tuple(Batch("random", {IMAGE_INPUT: image}) for image in images)
    return tuple(
        maker.batch("random", maker.random_ids(rows, maker.length(tokens)))
        for rows, tokens in shapes
    )


def _touched(batches: Sequence[Batch], name: str) -> int:
    """Count the values of an input that occur where nothing is masked."""
    found: set[int] = set()
    for batch in batches:
        if name in batch.inputs:
            values, mask = batch.inputs[name], batch.inputs.get("attention_mask")
            found.update(np.unique(values if mask is None else values[mask != 0]).tolist())
    return len(found)


def measure_coverage(batches: Sequence[Batch], interface: ModelInterface) -> Coverage:
    """Count what batches touch, wherever they come from."""
    return Coverage(
        vocabulary=_touched(batches, "input_ids"),
        vocabulary_size=interface.vocabulary_size,
        positions=max((batch.shape[-1] for batch in batches if interface.image is None), default=0),
        position_limit=interface.sequence_limit,
        segments=_touched(batches, "token_type_ids") or 1,
        batches=len(batches),
        examples=sum(batch.shape[0] for batch in batches),
    )


def build_battery(
    interface: ModelInterface,
    *,
    seed: int = 0,
    examples: Sequence[Batch] = (),
    vocabulary_budget: int = VOCABULARY_BUDGET,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> Battery:
    """Build the battery for a model.

    Args:
        interface: What both sides take.
        seed: Of everything drawn at random.
        examples: The user's own inputs, appended as they are.
        vocabulary_budget: Most vocabulary ids to cover.
        tokens_per_batch: Tokens in a batch of the coverage set; fewer bound the memory that a
            language model's output takes.

    Raises:
        ArgumentError: The model takes an input that the battery cannot make.
    """
    _check_inputs(interface)
    if interface.image is not None:
        made = make_images(interface.image, np.random.default_rng(seed))
        images = (*(Batch(name, {IMAGE_INPUT: values}) for name, values in made), *examples)
        return Battery(images, measure_coverage(images, interface))
    maker = _Maker(interface, seed)
    vocabulary = _cover_vocabulary(maker, vocabulary_budget, tokens_per_batch)
    batches = (
        *_sweep_shapes(maker),
        *_pad_rows(maker),
        *_mask_rows(maker),
        *_cover_positions(maker),
        *vocabulary,
        *examples,
    )
    coverage = replace(
        measure_coverage(batches, interface),
        vocabulary=min(interface.vocabulary_size, vocabulary_budget),  # by plan, not by chance
    )
    return Battery(batches, coverage)
