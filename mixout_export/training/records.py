"""What a run says of itself while it goes on: `metrics.jsonl`, and whoever watches."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from mixout_export.errors import TrainingError


class Observer(Protocol):
    """Somebody who watches a run: a progress display, say."""

    def started(self, *, updates: int, done: int, examples: int) -> None:
        """The run starts: updates in all, updates already done, training examples."""

    def updated(self, *, step: int, examples: int, loss: float | None) -> None:
        """An update is done, over so many examples; the loss where it is known."""

    def evaluated(self, *, step: int, metrics: Mapping[str, float]) -> None:
        """An evaluation is done."""

    def saved(self, *, step: int, path: Path) -> None:
        """A checkpoint is complete."""

    def finished(self) -> None:
        """The run is over."""


class NullObserver:
    """An observer that does nothing."""

    def started(self, *, updates: int, done: int, examples: int) -> None:
        """Do nothing."""

    def updated(self, *, step: int, examples: int, loss: float | None) -> None:
        """Do nothing."""

    def evaluated(self, *, step: int, metrics: Mapping[str, float]) -> None:
        """Do nothing."""

    def saved(self, *, step: int, path: Path) -> None:
        """Do nothing."""

    def finished(self) -> None:
        """Do nothing."""


@dataclass
class LossWindow:
    """Losses and gradient norms since the last record.

    Values stay tensors on their device until somebody needs numbers, so that a training step
    never waits for the device.

    Attributes:
        steps: Number of the update of each entry.
        losses: Mean loss of each update.
        norms: Norm of the gradient of each update before clipping.
    """

    steps: list[int] = field(default_factory=list)
    losses: list[Any] = field(default_factory=list)
    norms: list[Any] = field(default_factory=list)

    def add(self, step: int, loss: Any, norm: Any) -> None:
        """Add an update's loss and gradient norm (floats or zero-dimensional tensors)."""
        self.steps.append(step)
        self.losses.append(loss)
        self.norms.append(norm)

    def check(self, advice: str) -> None:
        """Turn the entries into numbers and stop the run if one is not finite.

        Args:
            advice: What the user can do, for the message.

        Raises:
            TrainingError: A loss or gradient norm is NaN or infinite.
        """
        self.losses = [float(loss) for loss in self.losses]
        self.norms = [float(norm) for norm in self.norms]
        for step, loss, norm in zip(self.steps, self.losses, self.norms, strict=True):
            for what, value in (("loss", loss), ("gradient norm", norm)):
                if not math.isfinite(value):
                    raise TrainingError(f"the {what} became {value} at step {step}; {advice}")

    def summary(self, max_norm: float) -> dict[str, float]:
        """Return the means since the last record, after `check`, and forget the entries."""
        count = len(self.losses)
        clipped = sum(norm > max_norm for norm in self.norms) if max_norm else 0
        result = {
            "loss": sum(self.losses) / count,
            "grad_norm": sum(self.norms) / count,
            "clip_rate": clipped / count,
        }
        self.steps, self.losses, self.norms = [], [], []
        return result

    def state(self) -> dict[str, list[float]]:
        """Return the entries as numbers, after `check`."""
        return {"steps": list(self.steps), "losses": list(self.losses), "norms": list(self.norms)}


@dataclass(frozen=True)
class MetricsLog:
    """`metrics.jsonl`: one JSON object a line, without times, so that equal runs write equal files.

    Attributes:
        path: The file.
    """

    path: Path

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a record; NaN becomes null."""
        clean = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in record.items()
        }
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(clean) + "\n")

    def records(self) -> list[dict[str, Any]]:
        """Return the complete records; a line that a killed run left unfinished is none."""
        if not self.path.exists():
            return []
        text = self.path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        return [json.loads(line) for line in whole.split("\n") if line]

    def truncate(self, count: int) -> None:
        """Keep the first `count` records: what a resumed run had written at its checkpoint."""
        lines = [json.dumps(record) + "\n" for record in self.records()[:count]]
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(lines), encoding="utf-8")
        temporary.replace(self.path)
