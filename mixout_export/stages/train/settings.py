"""What a resumed run must have in common with the one it goes on from."""

from pathlib import Path
from typing import Any

from mixout_export.checkpoint.folder import Folder, read_json
from mixout_export.errors import ArgumentError
from mixout_export.stages.train.data import TrainingData
from mixout_export.training.options import TrainOptions


def run_settings(folder: Folder, options: TrainOptions, data: TrainingData) -> dict[str, Any]:
    """Return what a resumed run must have in common with the one it goes on from."""
    return {
        "options": options.to_dict(),
        "prepared_sha256": folder.weights_sha256(),
        "data_sha256": data.sha256,
        "data": data.name,
    }


def check_settings(path: Path, settings: dict[str, Any]) -> None:
    """Refuse to resume a run under other settings, which would be neither run."""
    if not path.exists():
        return
    earlier = read_json(path)["settings"]
    for group in ("options", "data_sha256"):
        for key in sorted({*earlier[group], *settings[group]}):
            was, now = earlier[group].get(key), settings[group].get(key)
            if was != now:
                raise ArgumentError(
                    f"{path.parent}: was started with {key.replace('_', '-')} {was}, got {now}; "
                    "resume with the same, or give --overwrite to start afresh"
                )
    if earlier["prepared_sha256"] != settings["prepared_sha256"]:
        raise ArgumentError(
            f"{path.parent}: was started from other weights; give --overwrite to start afresh"
        )
