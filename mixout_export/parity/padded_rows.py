"""Choose the rows, the padding and the neighbors that show what the result of a row depends on."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mixout_export.checkpoint.interface import ModelInterface
from mixout_export.checkpoint.model_inputs import Batch, InputMaker, draw_batches
from mixout_export.tasks import known_task

Array = npt.NDArray[Any]
Inputs = Mapping[str, Array]

#: Lengths in tokens of random rows, and of rows that have the same length.
_LENGTHS, _SAME_LENGTH = (4, 24), 12

#: Number of rows of the same length, which stand beside each other without padding.
_NEIGHBORS = 4

#: Largest number of tokens in a batch. For a language model they are fewer, because its output has
#: a value for each token and each word.
_TOKENS, _LANGUAGE_MODEL_TOKENS = 512, 256

#: Lengths in tokens that rows are padded to. Longer than the model allows are left out.
WIDTHS = (64, 128, 512)

#: What may be around a row: other rows, or padding on a side.
NEIGHBORS, RIGHT, LEFT = "neighbors", "right", "left"
SIDES = (RIGHT, LEFT)


@dataclass(frozen=True)
class Surrounded:
    """A batch of rows that were also run alone.

    Attributes:
        around: What is around the rows: `NEIGHBORS`, `RIGHT` or `LEFT`.
        rows: Which rows are in it.
        width: Their length in tokens with padding; 0 for images.
    """

    around: str
    rows: tuple[int, ...]
    width: int


@dataclass(frozen=True)
class Plan:
    """The rows to run, each alone and then with something around it.

    Attributes:
        rows: The rows, each a batch of its own without padding.
        batches: The same rows with padding, and together.
        interface: What the models take.
        no_padding: Why no row is padded, as the end of a sentence; "" if some are.
    """

    rows: tuple[Inputs, ...]
    batches: tuple[Surrounded, ...]
    interface: ModelInterface
    no_padding: str = ""

    def count(self, around: str) -> int:
        """Return the number of rows that have something around them."""
        return len({row for batch in self._batches(around) for row in batch.rows})

    def widths(self, around: str) -> tuple[int, ...]:
        """Return the lengths that rows are padded to, besides that of the longest row."""
        wider = (batch.width for batch in self._batches(around) if batch.width > self._longest)
        return tuple(dict.fromkeys(wider)) if around in SIDES else ()

    def one_by_one(self, arounds: Collection[str]) -> "Plan":
        """Return the plan with these surroundings only, and each padded row a batch of its own.

        Rows that are padded to the longest one stay together. The others are padded to more widths.
        """
        found = []
        for around in arounds:
            wider = self.widths(around)
            for batch in (each for each in self._batches(around) if each.width not in wider):
                found.append(replace(batch, rows=tuple(self._texts)) if around in SIDES else batch)
            every = dict.fromkeys((*(w for w in WIDTHS if wider and w < wider[-1]), *wider))
            found += [
                Surrounded(around, (row,), width)
                for width in every
                if width > self._longest
                for row in self._texts
            ]
        return replace(self, batches=tuple(found))

    @property
    def _texts(self) -> range:
        """Which rows are padded: all but those that stand beside each other without padding."""
        return range(self.count(NEIGHBORS), len(self.rows))

    @property
    def _longest(self) -> int:
        return max((_length(self.rows[row]) for row in self._texts), default=0)

    def _batches(self, around: str) -> list[Surrounded]:
        return [batch for batch in self.batches if batch.around == around]

    def inputs(self, batch: Surrounded) -> Inputs:
        """Return the inputs of a batch."""
        rows = [self._padded(self.rows[row], batch) for row in batch.rows]
        return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}

    def _padded(self, row: Inputs, batch: Surrounded) -> Inputs:
        if batch.around == NEIGHBORS:
            return row
        found = {}
        for name, value in row.items():
            fill = (self.interface.pad_token_id or 0) if name == "input_ids" else 0
            missing = batch.width - value.shape[-1]
            place = (missing, 0) if batch.around == LEFT else (0, missing)
            widths = [(0, 0)] * (value.ndim - 1) + [place]
            found[name] = np.pad(value, widths, constant_values=fill)
        if "position_ids" in found:
            found["position_ids"] = np.maximum(np.cumsum(found["attention_mask"], axis=-1) - 1, 0)
        return found

    def own_part(self, batch: Surrounded, row: int, alone: Array, value: Array) -> Array:
        """Return a row's part of a batch's output, without the values of its padding.

        Args:
            batch: The batch.
            row: Which of its rows, counted in the batch.
            alone: The output of the row alone, `(1, ...)`.
            value: The output of the batch, `(rows, ...)`.
        """
        part = value[row : row + 1]
        if part.shape == alone.shape or part.ndim < 2 or part.shape[1] != batch.width:
            return part
        first = batch.width - alone.shape[1] if batch.around == LEFT else 0
        return part[:, first : first + alone.shape[1]]


def _rows_of(batches: Sequence[Batch], count: int) -> list[Inputs]:
    """Return the first rows of some batches, each alone and without padding."""
    rows: list[Inputs] = []
    for batch in batches:
        mask = batch.inputs["attention_mask"]
        for row in range(min(len(mask), count - len(rows))):
            real = np.flatnonzero((mask[row] != 0).reshape(-1, mask.shape[-1]).any(axis=0))
            if real.size:
                part = slice(real[0], real[-1] + 1)
                rows.append({n: v[row : row + 1, ..., part] for n, v in batch.inputs.items()})
    return rows


def _random_rows(interface: ModelInterface, count: int, seed: int) -> list[Inputs]:
    shortest, longest = _LENGTHS
    longest = max(shortest, min(longest, InputMaker(interface, seed).longest // 2))
    lengths = np.random.default_rng(seed).integers(shortest, longest + 1, size=count)
    shapes = [(3 if interface.choices else 1, int(length)) for length in lengths]  # 3 that differ
    return [
        {name: value[:1] for name, value in batch.inputs.items()}
        for batch in draw_batches(interface, shapes, seed=seed)
    ]


def _neighbors(interface: ModelInterface, seed: int) -> list[Inputs]:
    """Return rows of the same length, or images."""
    (batch,) = draw_batches(interface, [(_NEIGHBORS, _SAME_LENGTH)], seed=seed)
    return [
        {name: value[row : row + 1] for name, value in batch.inputs.items()}
        for row in range(_NEIGHBORS)
    ]


def _length(row: Inputs) -> int:
    return int(next(iter(row.values())).shape[-1])


def _pad_batches(rows: Sequence[Inputs], first: int, limit: int, tokens: int) -> list[Surrounded]:
    """Return batches of rows with padding, which are numbered from `first`.

    `limit` is the longest sequence that the model takes, `tokens` the most tokens of a batch.
    """
    longest = max(map(_length, rows))
    widths = [width for width in (*WIDTHS, limit) if longest < width <= min(limit, max(WIDTHS))]
    widths = [width for width in widths if width <= tokens]
    widths = [widths[0], widths[-1]] if widths else []
    if any(_length(row) < longest for row in rows):
        widths.insert(0, longest)
    numbers = tuple(range(first, first + len(rows)))
    return [
        Surrounded(side, numbers[: tokens // width], width)
        for side in SIDES
        for width in dict.fromkeys(widths)
    ]


def _why_not_padded(interface: ModelInterface) -> str:
    if interface.image is not None:
        return "the model takes images, which are not padded"
    if "attention_mask" not in interface.inputs:
        return "the model takes no attention_mask, so padding would count as text"
    if interface.sequence_limit == interface.shortest_sequence:
        return f"the model takes only sequences of {interface.sequence_limit} tokens"
    return ""


def make_plan(
    interface: ModelInterface,
    *,
    task: str | None,
    data: Sequence[Batch],
    count: int,
    seed: int,
) -> Plan:
    """Choose rows, and what is put around them.

    Args:
        interface: What the models take.
        task: Name of the task; None for a model without a head. It limits the memory of outputs.
        data: The user's own texts. Without them, rows are random.
        count: Number of rows that are padded.
        seed: Seed of random rows.

    Raises:
        ArgumentError: The model takes an input for which no values are known.
    """
    alike = _neighbors(interface, seed)
    length = 0 if interface.image is not None else _length(alike[0])
    together = Surrounded(NEIGHBORS, tuple(range(len(alike))), length)
    why = _why_not_padded(interface)
    if why:
        return Plan(tuple(alike), (together,), interface, why)
    known = known_task(task)
    language_model = known is not None and known.over_vocabulary
    tokens = _LANGUAGE_MODEL_TOKENS if language_model else _TOKENS
    rows = _rows_of(data, count) or _random_rows(interface, count, seed)
    limit = InputMaker(interface, seed).longest
    padded = _pad_batches(rows, len(alike), limit, tokens)
    why = "" if padded else "the texts are as long as the model allows"
    return Plan((*alike, *rows), (together, *padded), interface, why)
