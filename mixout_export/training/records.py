"""How far a run is: its progress, its `metrics.jsonl`, and whoever observes it."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from mixout_export.errors import TrainingError
from mixout_export.files.json_files import as_json

#: Entry of a record of `metrics.jsonl`: the figures of each label, as `LabelReport` has them.
LABELS = "labels"


class Observer:
    """Is told how a run goes, for example to display it. These methods do nothing.

    Attributes:
        wants_estimate: Whether to estimate the time and memory of the run before its first step.
    """

    wants_estimate = False

    def noticed(self, note: str) -> None:
        """Something about the data that a user should know before the run."""

    def estimated(self, *, seconds: float, memory: int) -> None:
        """The run will take about so many seconds, and so many bytes of memory."""

    def started(self, *, steps: int, done: int, examples: int) -> None:
        """Training starts: number of steps, of steps already done, and of training examples."""

    def stepped(self, *, step: int, examples: int, loss: float | None) -> None:
        """A step over so many examples is done. The loss is None if it was not read."""

    def evaluated(self, *, step: int, metrics: Mapping[str, float]) -> None:
        """An evaluation is done."""

    def saved(self, *, step: int, path: Path) -> None:
        """A checkpoint is complete."""


@dataclass
class LossWindow:
    """Losses and gradient norms since the last record.

    Values stay tensors on their device until a number is needed, so that a step never waits for the
    device.

    Attributes:
        steps: Number of each step.
        losses: Mean loss of each step.
        norms: Norm of each step's gradient before clipping.
    """

    steps: list[int] = field(default_factory=list)
    losses: list[Any] = field(default_factory=list)
    norms: list[Any] = field(default_factory=list)

    def add(self, step: int, loss: Any, norm: Any) -> None:
        """Add a step's loss and gradient norm (floats or zero-dimensional tensors)."""
        self.steps.append(step)
        self.losses.append(loss)
        self.norms.append(norm)

    def check(self, advice: str) -> None:
        """Convert the entries to numbers and stop the run if one is not finite.

        Raises:
            TrainingError: A loss or gradient norm is NaN or infinite. `advice` ends the message.
        """
        self.losses = [float(loss) for loss in self.losses]
        self.norms = [float(norm) for norm in self.norms]
        for step, loss, norm in zip(self.steps, self.losses, self.norms, strict=True):
            for what, value in (("loss", loss), ("gradient norm", norm)):
                if not math.isfinite(value):
                    raise TrainingError(f"the {what} became {value} at step {step}; {advice}")

    def summary(self, max_norm: float) -> dict[str, float]:
        """Return the means since the last record and remove the entries. Call `check` first."""
        count = len(self.losses)
        clipped = sum(norm > max_norm for norm in self.norms) if max_norm else 0
        result = {
            "loss": sum(self.losses) / count,
            "grad_norm": sum(self.norms) / count,
            "clip_rate": clipped / count,
        }
        self.steps, self.losses, self.norms = [], [], []
        return result


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        step: Training steps done.
        best_step: Step of the best evaluation, None before the first.
        best_value: Its metric.
        stale: Number of evaluations since the best one.
        records: Number of records in `metrics.jsonl`.
        window: Losses since the last record.
    """

    step: int = 0
    best_step: int | None = None
    best_value: float | None = None
    stale: int = 0
    records: int = 0
    window: LossWindow = field(default_factory=LossWindow)

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> Self:
        """Build it from what `dataclasses.asdict` returned."""
        return cls(**{**state, "window": LossWindow(**state["window"])})


@dataclass(frozen=True)
class MetricsLog:
    """The file `metrics.jsonl`: one JSON object per line.

    It holds no times, so that equal runs write equal files.
    """

    path: Path

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a record; NaN becomes null."""
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(as_json(dict(record))) + "\n")

    def records(self) -> list[dict[str, Any]]:
        """Return the complete records. A line that a killed run left unfinished is skipped."""
        if not self.path.exists():
            return []
        text = self.path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        return [json.loads(line) for line in whole.split("\n") if line]

    def evaluation(self, step: int) -> dict[str, float]:
        """Return the evaluation after a step, metric → value; empty if there was none."""
        for record in self.records():
            if record["step"] == step and "eval_loss" in record:
                return {
                    name.removeprefix("eval_"): math.nan if value is None else value
                    for name, value in record.items()
                    if name.startswith("eval_")
                }
        return {}

    def label_report(self, step: int) -> dict[str, list[dict[str, Any]]]:
        """Return the figures of each label after a step, as `LabelReport` has them; {} if none."""
        found = (record for record in self.records() if record["step"] == step)
        return next((record[LABELS] for record in found if LABELS in record), {})

    def truncate(self, count: int) -> None:
        """Keep only the first `count` records."""
        lines = [json.dumps(record) + "\n" for record in self.records()[:count]]
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(lines), encoding="utf-8")
        temporary.replace(self.path)
