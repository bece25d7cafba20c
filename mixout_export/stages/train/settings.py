"""What a resumed run must have in common with the one it goes on from."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mixout_export.checkpoint.artifact import Artifact, require_metadata
from mixout_export.errors import ArgumentError
from mixout_export.files.json_files import read_json
from mixout_export.stages.train.data import TrainingData
from mixout_export.training.options import TrainOptions

_WEIGHTS = ("prepared_sha256", "pretrained_sha256")

#: Options by the names that records of earlier versions have.
_RENAMED = {"blocks": "pack_sequences"}


def run_settings(
    folder: Artifact, options: TrainOptions, data: TrainingData, *, processes: int
) -> dict[str, Any]:
    """Return what a resumed run must have in common with the one it goes on from.

    Args:
        folder: The prepared checkpoint.
        options: Settings of the run.
        data: Its data.
        processes: How many processes share it.
    """
    return {
        "options": {**options.to_dict(), "processes": processes},
        "prepared_sha256": folder.weights_sha256(),
        "pretrained_sha256": require_metadata(folder).pretrained_sha256,
        "data": data.identity,
        "data_name": data.name,
    }


def check_settings(path: Path, settings: dict[str, Any]) -> None:
    """Refuse to resume a run under other settings, which would be neither run.

    Args:
        path: The record of the run to resume; nothing is refused where there is none.
        settings: What `run_settings` returned for this run.

    Raises:
        ArgumentError: A setting, the data or the prepared weights differ.
    """
    if not path.exists():
        return
    earlier = read_json(path)["settings"]
    earlier["options"] = {_RENAMED.get(k, k): v for k, v in earlier["options"].items()}
    for group in ("options", "data"):
        for key in sorted({*earlier[group], *settings[group]}):
            was, now = earlier[group].get(key), settings[group].get(key)
            if was != now:
                raise ArgumentError(
                    f"{path.parent}: was started with {key.replace('_', '-')} {was}, got {now}; "
                    "resume with the same, or give --overwrite to start afresh"
                )
    if any(earlier[key] != settings[key] for key in _WEIGHTS):
        raise ArgumentError(
            f"{path.parent}: was started from other weights; give --overwrite to start afresh"
        )


def check_agreement(settings: Sequence[dict[str, Any]]) -> None:
    """Refuse to share a run between processes that do not do the same.

    Args:
        settings: What `run_settings` returned in each process.

    Raises:
        ArgumentError: Weights, anchors, data or options differ.
    """
    for rank, other in enumerate(settings):
        differing = [key for key, value in settings[0].items() if other[key] != value]
        if differing:
            raise ArgumentError(
                f"process {rank}: has other {differing[0].replace('_', ' ')} than process 0; give "
                "every process the same files and options"
            )
