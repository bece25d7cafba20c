"""Checkpoints of an unfinished run, from which it can be resumed exactly."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mixout_export.files.sidecar_files import link_or_copy
from mixout_export.mask_schedule import MaskSchedule

_STATE = "trainer_state.pt"
_PREFIX = "step-"


def rng_state(device: torch.device) -> dict[str, Any]:
    """Return the states of the CPU's and the device's random generators."""
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def restore_rng(state: dict[str, Any], device: torch.device) -> None:
    """Restore the random generators from `rng_state`'s result for the same kind of device."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
    elif device.type == "mps" and "mps" in state:
        torch.mps.set_rng_state(state["mps"])


@dataclass(frozen=True)
class TrainerState:
    """The state that determines the next steps, apart from the weights and the progress."""

    accelerator: Accelerator
    optimizer: Optimizer
    scheduler: LRScheduler
    masks: MaskSchedule | None

    def take(self) -> dict[str, Any]:
        """Return the state, with the random generators and the held masks of all processes."""
        scaler = self.accelerator.scaler
        held = {} if self.masks is None else self.masks.state_dict()
        anchors = held.pop("anchors", {})
        return {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "generators": gather_object([rng_state(self.accelerator.device)]),
            "masks": gather_object([held]),
            "anchors": anchors,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what `take` returned."""
        rank = self.accelerator.process_index
        if self.masks is not None:
            self.masks.load_state_dict({**state["masks"][rank], "anchors": state["anchors"]})
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if state["scaler"] is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        restore_rng(state["generators"][rank], self.accelerator.device)


def _save_state(state: dict[str, Any], path: Path) -> None:
    try:
        with path.open("wb") as stream:
            torch.save(state, stream)
    except RuntimeError as error:  # what PyTorch makes of a full disk, or of Ctrl-C
        if isinstance(error.__context__, OSError | KeyboardInterrupt):
            raise error.__context__ from error
        raise


@dataclass(frozen=True)
class Snapshots:
    """The checkpoints in an unfinished run's folder, and its best model so far.

    Attributes:
        root: The run's folder, `OUT.partial`.
        keep: Number of checkpoints to keep.
    """

    root: Path
    keep: int

    @property
    def folder(self) -> Path:
        """The folder of the checkpoints."""
        return self.root / "checkpoints"

    @property
    def best(self) -> Path:
        """The folder of the best model."""
        return self.root / "best"

    def paths(self) -> list[Path]:
        """Return the complete checkpoints, oldest first."""
        if not self.folder.exists():
            return []
        found = [p for p in self.folder.iterdir() if p.name[len(_PREFIX) :].isdigit()]
        return sorted(found, key=lambda path: path.name)

    def write(
        self, step: int, write_model: Callable[[Path], object], state: dict[str, Any]
    ) -> Path:
        """Write a checkpoint that appears complete or not at all, then remove the oldest.

        `write_model` writes the mixout checkpoint. `state` is all else that a resumed run needs.
        """
        path = self.folder / f"{_PREFIX}{step:08d}"

        def fill(directory: Path) -> None:
            write_model(directory)
            _save_state(state, directory / _STATE)

        replace_folder(path, fill)
        for old in self.paths()[: -self.keep]:
            shutil.rmtree(old)
        return path

    def write_best(self, write_model: Callable[[Path], object]) -> None:
        """Replace the best model."""
        replace_folder(self.best, write_model)

    def recover(self) -> None:
        """Put back the best model if the run was killed while it replaced it."""
        old = _old(self.best)
        if old.exists() and not self.best.exists():
            os.rename(old, self.best)

    def latest(self) -> tuple[Path, dict[str, Any]] | None:
        """Return the newest checkpoint and its state, or None if there is none."""
        paths = self.paths()
        if not paths:
            return None
        return paths[-1], torch.load(paths[-1] / _STATE, weights_only=True)

    def promote(self, chosen: Path) -> None:
        """Link the files of the chosen model into the run's folder."""
        for file in chosen.iterdir():
            if file.name == _STATE:
                continue
            target = self.root / file.name
            target.unlink(missing_ok=True)
            link_or_copy(file, target)

    def clear(self) -> None:
        """Remove the checkpoints and the best model. Linked files stay."""
        for folder in (self.folder, self.best):
            shutil.rmtree(folder, ignore_errors=True)


def _old(path: Path) -> Path:
    return path.with_name(path.name + ".old")


def replace_folder(path: Path, fill: Callable[[Path], object]) -> None:
    """Fill a new folder beside `path`, then put it in its place."""
    fresh = path.with_name(path.name + ".new")
    old = _old(path)
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh.mkdir(parents=True)
    fill(fresh)
    if path.exists():
        os.rename(path, old)
    os.rename(fresh, path)
    shutil.rmtree(old, ignore_errors=True)
