"""Measure how long the parts of a training run take."""

import time
from collections.abc import Mapping
from pathlib import Path

from mixout_export.training.records import Observer


class Stopwatch(Observer):
    """Measures how long a run's steps, evaluations and checkpoints take.

    The time between two events counts as that of what the second one reports.

    Attributes:
        steps: Number of all steps of the run.
        steps_done: Number of steps that were measured.
    """

    def __init__(self) -> None:
        self.steps = self.steps_done = 0
        self._already_done = 0
        self._first_step = 0.0
        self._seconds = {"steps": 0.0, "evaluations": 0.0, "checkpoints": 0.0}
        self._last = time.monotonic()

    def started(self, *, steps: int, done: int, examples: int) -> None:
        """Start the watch."""
        self.steps, self._already_done = steps, done
        self._last = time.monotonic()

    def stepped(self, *, step: int, examples: int, loss: float | None) -> None:
        """Count a step."""
        self.steps_done += 1
        seconds = self._add("steps")
        if self.steps_done == 1:
            self._first_step = seconds

    def evaluated(self, *, step: int, metrics: Mapping[str, float]) -> None:
        """Count an evaluation."""
        self._add("evaluations")

    def saved(self, *, step: int, path: Path) -> None:
        """Count a checkpoint."""
        self._add("checkpoints")

    def _add(self, kind: str) -> float:
        now = time.monotonic()
        seconds, self._last = now - self._last, now
        self._seconds[kind] += seconds
        return seconds

    def seconds_of(self, kind: str) -> float:
        """Return the measured seconds of "steps", "evaluations" or "checkpoints"."""
        return self._seconds[kind]

    @property
    def measured_seconds(self) -> float:
        """All measured seconds."""
        return sum(self._seconds.values())

    @property
    def seconds_of_step(self) -> float:
        """Seconds of a step, without the first one, which is slower, if there are others."""
        if self.steps_done < 2:
            return self._first_step
        return (self._seconds["steps"] - self._first_step) / (self.steps_done - 1)

    @property
    def training_seconds(self) -> float:
        """Seconds of all steps; those before the run was resumed are estimated."""
        return self._seconds["steps"] * self._scale()

    @property
    def evaluation_seconds(self) -> float:
        """Seconds of all evaluations; those before the run was resumed are estimated."""
        return self._seconds["evaluations"] * self._scale()

    def _scale(self) -> float:
        done = self._already_done + self.steps_done
        return done / self.steps_done if self.steps_done else 1.0
