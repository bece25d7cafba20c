"""Choose the inputs that both sides run, so that every row of every table is used.

A single random batch misses damage to some position rows, segments and vocabulary rows. The battery
therefore contains every vocabulary id, every position up to the limit and every segment. Its other
batches vary shapes and padding. It depends on nothing but the interface, the task and the seed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mixout_export.checkpoint.interface import IMAGE_INPUT, ModelInterface
from mixout_export.checkpoint.model_inputs import Batch, Ids, InputMaker, check_inputs
from mixout_export.tasks import known_task

Array = npt.NDArray[Any]

#: Tokens in a batch that covers the vocabulary. For a language model they are fewer, because its
#: output has a value for each token and each word.
TOKENS_PER_BATCH = 2048
LANGUAGE_MODEL_TOKENS = 256

#: Length of the rows that cover the vocabulary. Attention is cheap for short rows.
VOCABULARY_ROW = 32

#: Largest number of vocabulary ids to cover. A larger vocabulary is sampled, including its ends.
VOCABULARY_BUDGET = 65_536

#: (batch, sequence) of batches that vary the shape. Lengths above the limit are reduced to it.
SWEEP_SHAPES = ((1, 1), (1, 2), (2, 1), (1, 7), (3, 5), (2, 16), (5, 33), (8, 64), (4, 128))

#: Number of images in each batch of noise.
NOISE_BATCHES = (1, 2, 3, 5)

#: Values of images of one shade. The values of normalized images are within about ±2.6.
SHADES = (-2.0, -0.5, 0.0, 0.5, 2.0)


@dataclass(frozen=True)
class Coverage:
    """What a battery covers.

    Attributes:
        vocabulary: Number of vocabulary ids covered.
        vocabulary_size: Size of the vocabulary; 0 if the model takes images.
        positions: Number of positions covered, from the first.
        position_limit: Number of positions that the model has; None if it has no limit.
        segments: Number of segments covered.
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
    """The batches and what they cover."""

    batches: tuple[Batch, ...]
    coverage: Coverage


def _vocabulary(maker: InputMaker, budget: int) -> Ids:
    """Return the ids to cover, shuffled: all, or both ends and a sample if there are too many."""
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


def _cover_vocabulary(maker: InputMaker, budget: int, tokens: int) -> list[Batch]:
    """Put every vocabulary id into a row, using all segments and no padding."""
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


def _cover_positions(maker: InputMaker) -> list[Batch]:
    """Fill every position up to the limit, once in each segment."""
    length = maker.longest
    batches = []
    for segment in range(maker.interface.segments):
        ids = maker.random_ids(1, length)
        batches.append(maker.batch("positions", ids, segments=np.full_like(ids, segment)))
    return batches


def _sweep_shapes(maker: InputMaker) -> list[Batch]:
    """Vary batch sizes and lengths, including the shortest and the longest."""
    shapes = dict.fromkeys((rows, maker.length(length)) for rows, length in SWEEP_SHAPES)
    return [maker.batch("shapes", maker.random_ids(*shape)) for shape in shapes]


def _pad_rows(maker: InputMaker) -> list[Batch]:
    """Pad rows of different lengths, down to a single token. No row is all padding.

    Padding is on the right, as with most tokenizers, and for decoders also on the left.
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


def _mask_rows(maker: InputMaker) -> list[Batch]:
    """Put a row that is all padding between two others, whose results it must not change."""
    if "attention_mask" not in maker.interface.inputs or maker.interface.choices:
        return []  # every row of choices would have a choice that is all padding
    if maker.final is not None:
        return []  # the result is read at the last token, which such a row does not have
    length = maker.length(16)
    mask = np.ones((3, length), dtype=np.int64)
    mask[1] = 0
    return [maker.batch("masked", maker.random_ids(3, length), mask=mask)]


def _make_images(shape: tuple[int, int, int], seed: int) -> list[Batch]:
    """Make batches of images, each of `shape` (channels, height, width)."""
    random = np.random.default_rng(seed)
    channels, height, width = shape
    noise = [random.standard_normal((rows, *shape)) for rows in NOISE_BATCHES]
    extremes = np.where(random.random((2, *shape)) < 0.5, -3.0, 3.0)
    halves = random.standard_normal((4, *shape))  # noise in one half only, to test positions
    halves[0, :, height // 2 :] = 0.0
    halves[1, :, : height // 2] = 0.0
    halves[2, :, :, width // 2 :] = 0.0
    halves[3, :, :, : width // 2] = 0.0
    images = [
        *(("images", batch) for batch in noise),
        ("halves", halves),
        ("shades", np.stack([np.full(shape, shade) for shade in SHADES])),
        ("channels", np.eye(channels)[:, :, None, None] * np.ones(shape)),
        ("extremes", extremes),
    ]
    return [Batch(name, {IMAGE_INPUT: values.astype(np.float32)}) for name, values in images]


def _touched(batches: Sequence[Batch], name: str) -> int:
    """Count the different values of an input outside the padding."""
    found: set[int] = set()
    for batch in batches:
        if name in batch.inputs:
            values, mask = batch.inputs[name], batch.inputs.get("attention_mask")
            found.update(np.unique(values if mask is None else values[mask != 0]).tolist())
    return len(found)


def measure_coverage(batches: Sequence[Batch], interface: ModelInterface) -> Coverage:
    """Return what batches cover."""
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
    task: str | None = None,
    seed: int = 0,
    examples: Sequence[Batch] = (),
    vocabulary_budget: int = VOCABULARY_BUDGET,
) -> Battery:
    """Build the battery for a model.

    Args:
        interface: The inputs that both sides take.
        task: Name of the task, if known. It limits the memory that outputs take.
        seed: Random seed.
        examples: The user's own inputs, which are appended.
        vocabulary_budget: Largest number of vocabulary ids to cover.

    Raises:
        ArgumentError: The model takes an input that the battery cannot make.
    """
    check_inputs(interface)
    if interface.image is not None:
        images = (*_make_images(interface.image, seed), *examples)
        return Battery(images, measure_coverage(images, interface))
    maker = InputMaker(interface, seed)
    known = known_task(task)
    language_model = known is not None and known.over_vocabulary
    tokens = LANGUAGE_MODEL_TOKENS if language_model else TOKENS_PER_BATCH
    vocabulary = _cover_vocabulary(maker, vocabulary_budget, tokens)
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
