"""Plans of studies for tests, on tiny models and separable sentences."""

import json
from pathlib import Path
from typing import Any

from training_runs import TrainingGround

from mixout_export.stages.study.engine import Engine, Job, Outcome
from mixout_export.stages.study.engines.local import LocalEngine
from mixout_export.stages.study.run import StudyResult, run_study
from mixout_export.stages.study.worker import execute

HEAD = """
[study]
base = "{base}"
seeds = {seeds}
{more}
prepare = {{ task = "text-classification", labels = 2 }}
train = {{ lr = 3e-3, batch-size = 16, epochs = 1, save-every = 2 }}

[[task]]
name = "moods"
train-file = "{train}"
eval-file = "{dev}"
"""
ARMS = """
[[arm]]
name = "plain"
prepare = { p = 0 }

[[arm]]
name = "mixout 0.7"
"""


def write_plan(
    folder: Path, ground: TrainingGround, *, seeds: Any = 2, more: str = "", arms: str = ARMS
) -> Path:
    """Write a plan with one task, and return its path."""
    data = ground.data(train=64, dev=16)
    text = HEAD.format(
        base=ground.base(), seeds=seeds, more=more, train=data.train_file, dev=data.eval_file
    )
    path = folder / "plan.toml"
    path.write_text(text + arms, encoding="utf-8")
    return path


class InProcess:
    """An engine that does one job at a time in the test's own process."""

    workers = 1

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self._waiting: list[Job] = []

    def submit(self, job: Job) -> None:
        self.jobs.append(job)
        self._waiting.append(job)

    def wait(self, timeout: float) -> list[Outcome]:
        jobs, self._waiting = self._waiting, []
        return [Outcome(job, execute(job)) for job in jobs]

    def close(self) -> None:
        self._waiting.clear()


def study(plan: Path, out: Path, *, engine: Engine | None = None, **options: Any) -> StudyResult:
    """Run a study on the CPU, by default in the test's own process."""
    chosen = engine or InProcess()
    return run_study(plan, out, engine=lambda _: chosen, device="cpu", **options)


def workers(count: int = 1) -> LocalEngine:
    return LocalEngine(workers=count, threads=1)


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()]


def without_times(value: Any) -> Any:
    """Return a summary without what depends on how long runs took."""
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if "seconds" not in k and "time" not in k}
        return {k: without_times(v) for k, v in kept.items()}
    return [without_times(each) for each in value] if isinstance(value, list) else value


def summary(out: Path) -> Any:
    return without_times(json.loads((out / "summary.json").read_text()))
