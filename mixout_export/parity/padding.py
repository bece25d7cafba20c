"""Measure how much the result of a row depends on its padding and on the other rows of its batch.

int8 graphs that quantize dynamically take the range of an activation from everything in a batch,
padding included. So the result of a row changes with its company.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mixout_export.checkpoint.interface import KNOWN_INPUTS, ModelInterface
from mixout_export.checkpoint.model_inputs import Batch, InputMaker
from mixout_export.files.json_files import fields_as_json
from mixout_export.parity.compare import (
    OutputComparison,
    OutputDifference,
    decision_of,
    is_per_token,
)
from mixout_export.rounding import difference
from mixout_export.runners.runner import Runner

Array = npt.NDArray[Any]

#: Rows that are run, and the lengths of random ones.
_ROWS, _LENGTHS = 32, (4, 24)

#: Lengths in tokens that rows are padded to. Longer than the model allows are left out.
WIDTHS = (64, 128, 512)


@dataclass(frozen=True)
class PaddingEffect:
    """How far results move when a row is padded, or run together with others.

    Attributes:
        rows: Number of rows.
        widths: The lengths in tokens that they were padded to.
        outputs: The difference of each output to that of the row alone without padding.
    """

    rows: int
    widths: tuple[int, ...]
    outputs: tuple[OutputDifference, ...]

    @property
    def sentences(self) -> tuple[str, ...]:
        """What was found, one sentence for each output."""
        return tuple(self._sentence(output) for output in self.outputs)

    def _sentence(self, output: OutputDifference) -> str:
        *first, last = map(str, self.widths)
        widths = f"{', '.join(first)} or {last}" if first else last
        how = f"padded to {widths} tokens or is in a batch with others"
        if not output.decisions:
            return f"{output.name} moves by up to {difference(output.max_abs)} when a text is {how}"
        return (
            f"{output.flips} of {output.decisions} predictions change when a text is {how}, and "
            f"probabilities move by up to {difference(output.max_shift)}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return fields_as_json(self, "sentences")


def _rows_of(batches: Sequence[Batch]) -> list[dict[str, Array]]:
    """Return the first rows of some batches, each alone and without padding."""
    rows: list[dict[str, Array]] = []
    for batch in batches:
        mask = batch.inputs["attention_mask"]
        for row in range(min(len(mask), _ROWS - len(rows))):
            real = np.flatnonzero((mask[row] != 0).reshape(-1, mask.shape[-1]).any(axis=0))
            if real.size:
                part = slice(real[0], real[-1] + 1)
                rows.append({n: v[row : row + 1, ..., part] for n, v in batch.inputs.items()})
    return rows


def _random_rows(interface: ModelInterface, seed: int) -> list[Batch]:
    maker = InputMaker(interface, seed)
    shortest, longest = _LENGTHS
    longest = max(shortest, min(longest, maker.longest // 2))  # which leaves room for padding
    lengths = maker.random.integers(shortest, longest + 1, size=_ROWS)
    return [
        maker.batch("row", maker.random_ids(1, maker.length(int(length)))) for length in lengths
    ]


def _padded(row: Mapping[str, Array], width: int, interface: ModelInterface) -> dict[str, Array]:
    """Return a row padded on the right to `width` tokens."""
    found = {}
    for name, value in row.items():
        fill = (interface.pad_token_id or 0) if name == "input_ids" else 0
        missing = [(0, 0)] * (value.ndim - 1) + [(0, width - value.shape[-1])]
        found[name] = np.pad(value, missing, constant_values=fill)
    return found


def measure_padding(
    runner: Runner,
    interface: ModelInterface,
    *,
    task: str | None,
    data: Sequence[Batch] = (),
    seed: int = 0,
) -> PaddingEffect | None:
    """Run rows alone, padded, and together, and compare the results.

    Args:
        runner: What runs the model.
        interface: Its inputs.
        task: Name of its task; None if it has no head.
        data: The user's own texts. Without them, rows are random.
        seed: Seed of random rows.

    Returns:
        The differences; None if the model's rows cannot be padded.
    """
    if "attention_mask" not in interface.inputs or set(interface.inputs) - set(KNOWN_INPUTS):
        return None
    rows = _rows_of(data or _random_rows(interface, seed))
    longest = max((row["attention_mask"].shape[-1] for row in rows), default=0)
    limit = interface.sequence_limit or max(WIDTHS)
    widths = tuple(width for width in WIDTHS if longest < width < limit)
    widths = (*widths, limit) if longest < limit <= max(WIDTHS) else widths
    if not rows or not widths:
        return None
    comparisons = {
        name: OutputComparison(
            name, None, decision=decision_of(task, name), per_token=is_per_token(task, name)
        )
        for name in runner.outputs
    }
    together = [_padded(row, longest, interface) for row in rows]
    joined = runner.run({name: np.concatenate([row[name] for row in together]) for name in rows[0]})
    for number, row in enumerate(rows):
        alone = runner.run(row)
        others = [runner.run(_padded(row, width, interface)) for width in widths]
        others.append({name: value[number : number + 1] for name, value in joined.items()})
        for found in others:
            for name, comparison in comparisons.items():
                tokens = tuple(slice(0, size) for size in alone[name].shape)
                comparison.add(Batch("padding", row), alone[name], found[name][tokens])
    outputs = tuple(comparison.result() for comparison in comparisons.values())
    return PaddingEffect(len(rows), widths, outputs)
