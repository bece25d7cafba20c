"""What is asked of a run that is complete already, compared with what it did."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mixout_export.checkpoint.folder import open_checkpoint
from mixout_export.errors import ArgumentError, CheckpointError
from mixout_export.files.streams import data_digest
from mixout_export.stages.train.data import DataOptions
from mixout_export.stages.train.record import RunRecord, recorded_values
from mixout_export.training.options import TrainOptions

logger = logging.getLogger(__name__)

#: Options that do not matter any more when a run is complete.
_SPENT = ("device", "keep", "tracker")


def check_finished(
    record: RunRecord, out: Path, prepared: Path, data: DataOptions, options: TrainOptions
) -> None:
    """Refuse to take a complete run for the result of other settings.

    What is gone cannot be compared. A warning names it.

    Raises:
        ArgumentError: The run was made with other options, data or weights.
    """
    found = [
        *_other_options(record.content, options),
        *_other_columns(record.content, data),
        *_other_data(record.content, data, out),
        *_other_weights(record.content, prepared, out),
    ]
    if found:
        raise ArgumentError(
            f"{out}: the run is complete, so there is nothing to resume, but the run differs from "
            f"this command: {'; '.join(found)}. To train its model further, run train {out} NEW, a "
            "new run with the anchors of the base. To start again from "
            f"{prepared}, give --overwrite. To keep {out} as it is, leave these options out"
        )


def _other_options(content: Mapping[str, Any], options: TrainOptions) -> Iterator[str]:
    before = recorded_values(content)
    for name, value in asdict(options).items():
        if name not in _SPENT and before[name] != value:
            yield f"--{name.replace('_', '-')} was {_shown(before[name])}, got {_shown(value)}"


def _other_columns(content: Mapping[str, Any], data: DataOptions) -> Iterator[str]:
    for name, before in content.get("columns", {}).items():
        value = getattr(data, name, None)
        if value is not None and value != before:
            yield f"--{name.replace('_', '-')} was {_shown(before)}, got {_shown(value)}"


def _other_data(content: Mapping[str, Any], data: DataOptions, out: Path) -> Iterator[str]:
    known = content.get("data_files", ())
    before = {file["sha256"] for file in known if file["sha256"]}
    names = ", ".join(file["name"] for file in known) or "other data"
    if data.dataset is not None and data.dataset not in [file["name"] for file in known]:
        yield f"it was trained on {names}, got {data.dataset}"
    for file in data.files():
        try:
            same = data_digest(file) in before
        except OSError as error:
            _not_compared(out, file, error.strerror or str(error))
            continue
        if not same and before:
            yield f"it was trained on {names}, and {file} is another file"


def _other_weights(content: Mapping[str, Any], prepared: Path, out: Path) -> Iterator[str]:
    try:
        same = content["settings"]["prepared_sha256"] == open_checkpoint(prepared).weights_sha256()
    except (CheckpointError, OSError) as error:
        _not_compared(out, prepared, str(error).removeprefix(f"{prepared}: "))
        return
    if not same:
        yield f"it began with other weights than those of {prepared}"


def _not_compared(out: Path, path: Path, why: str) -> None:
    logger.warning("%s: is complete, and was not compared with %s (%s)", out, path, why)


def _shown(value: object) -> object:
    return "not given" if value is None else value
