"""What the pictures of one task show: its arms, their runs and their statistics."""

import json
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from mixout_export.plotting import Look, look
from mixout_export.printable import printable
from mixout_export.study.records import CRASHED, RunRecord
from mixout_export.study.summary import ArmSummary, TaskSummary

#: Options that are the seeds of a run, by their names in Python.
_SEEDS = frozenset(("seed", "data_seed"))

#: Characters of a line in the name of an arm, and lines.
_CHARACTERS, _LINES = 26, 5


@dataclass(frozen=True)
class ArmSeries:
    """One arm of a task.

    Attributes:
        name: Its name in the plan.
        number: Its place in the plan, from 0. An arm has the same look in all pictures.
        runs: Its runs in the order of the seeds.
        summary: Its statistics.
    """

    name: str
    number: int
    runs: tuple[RunRecord, ...]
    summary: ArmSummary

    @cached_property
    def ended(self) -> tuple[RunRecord, ...]:
        """The runs that count: all but those that crashed."""
        return tuple(run for run in self.runs if run.status != CRASHED)

    @property
    def look(self) -> Look:
        """Color, marker and dashes."""
        return look(self.number)

    @property
    def label(self) -> str:
        """The name in lines that fit beside a picture."""
        return wrapped(self.name)

    @property
    def p(self) -> float:
        """The mix probability of its runs."""
        return self.ended[0].p

    @property
    def other_options(self) -> str:
        """All options of its runs except p and the seeds, as a text to compare."""
        options = []
        for given in (self.ended[0].prepare, self.ended[0].train):
            options.append({k: v for k, v in given.items() if k != "p" and k not in _SEEDS})
        return json.dumps(options, sort_keys=True, default=str)


@dataclass(frozen=True)
class TaskSeries:
    """One task of a study.

    Attributes:
        name: Its name in the plan.
        metric: The metric that is compared.
        lower_is_better: Whether a lower value of the metric is better.
        chance: The metric of a model that always predicts the majority class.
        arms: The arms in the order of the plan.
    """

    name: str
    metric: str
    lower_is_better: bool
    chance: float
    arms: tuple[ArmSeries, ...]

    @cached_property
    def shown(self) -> tuple[ArmSeries, ...]:
        """The arms of which a run has ended."""
        return tuple(arm for arm in self.arms if arm.ended)

    @property
    def score_label(self) -> str:
        """What a score is, for an axis."""
        better = "lower is better" if self.lower_is_better else "higher is better"
        return f"{self.metric.replace('_', ' ')} ({better})"


def task_series(task: TaskSummary, records: Sequence[RunRecord]) -> TaskSeries:
    """Return what the pictures of a task show. A task without runs has the metric "score"."""
    runs: dict[str, list[RunRecord]] = {}
    for record in records:
        if record.task == task.name:
            runs.setdefault(record.arm, []).append(record)
    arms = tuple(
        ArmSeries(arm.name, number, tuple(runs.get(arm.name, ())), arm)
        for number, arm in enumerate(task.arms)
    )
    metric, chance = task.metric or "score", task.chance or 0.0
    return TaskSeries(task.name, metric, task.lower_is_better, chance, arms)


def wrapped(name: str, characters: int = _CHARACTERS) -> str:
    """Return a name in at most five lines. A longer one loses lines in its middle."""
    lines = textwrap.wrap(" ".join(printable(name).split()), characters) or ["–"]
    if len(lines) > _LINES:
        lines = [*lines[: _LINES - 3], "…", *lines[-2:]]
    return "\n".join(lines)


def sweeps(task: TaskSeries) -> list[tuple[ArmSeries, ...]]:
    """Return groups of arms that differ only in p, each in the order of p."""
    groups: dict[str, dict[float, ArmSeries]] = {}
    for arm in task.shown:
        groups.setdefault(arm.other_options, {}).setdefault(arm.p, arm)
    return [tuple(group[p] for p in sorted(group)) for group in groups.values()]


def drawn_score(run: RunRecord) -> float:
    """Return where a run is drawn: a run without a score at chance level."""
    score = run.compared_score
    return score if math.isfinite(score) else run.chance


def finite(values: Sequence[float | None]) -> list[float]:
    """Return the values that are numbers."""
    return [value for value in values if value is not None and math.isfinite(value)]
