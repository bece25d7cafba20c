"""Made-up runs of a study, of the shape of real ones."""

import random
from collections.abc import Sequence
from typing import Any

from mixout_export.study.records import CRASHED, DIVERGED, DONE, RunRecord, Seeds


def curve(metric: str, score: float | None, *, steps: int = 160, failed: bool = False) -> Any:
    """Return the records of a `metrics.jsonl`: a loss every 10 steps, an evaluation every 40."""
    for step in range(0, steps + 1, 10):
        level = 0.69 if failed else 0.69 - 0.4 * step / steps
        if step:
            wave = 0.02 * ((step * 7919) % 11 - 5) / 5
            yield {"step": step, "epoch": step / 40, "loss": level + wave, "lr": 1e-4}
        if step % 40 == 0:
            value = None if score is None else score * step / steps
            yield {
                "step": step,
                "epoch": step / 40,
                "eval_loss": level,
                f"eval_{metric}": value,
            }


def record(
    task: str = "CoLA",
    arm: str = "plain",
    seed: int = 0,
    score: float | None = 0.4,
    **changes: Any,
) -> RunRecord:
    """Return a run that ended with a score."""
    values: dict[str, Any] = {
        "key": f"{task}-{arm}-{seed}",
        "task": task,
        "arm": arm,
        "seeds": Seeds(seed, seed, seed),
        "status": DONE,
        "prepare": {"task": "text-classification", "p": 0.0, **({"seed": seed} if seed else {})},
        "train": {"lr": 1e-4, **({"seed": seed, "data_seed": seed} if seed else {})},
        "commands": (
            f"mixout-export prepare demo-base prepared --p 0 --seed {seed}",
            f"mixout-export train prepared trained --train-file train.tsv --seed {seed}",
        ),
        "metric": "matthews",
        "lower_is_better": False,
        "score": score,
        "chance": 0.0,
        "distance": 3.0 + 0.1 * seed,
        "steps": 160,
        "weights_sha256": "0123456789abcdef" * 4,
        "seconds": 62.0,
        "training_seconds": 58.0 + seed,
        "versions": {"mixout-export": "0.1.0", "torch": "2.13.0"},
    } | changes
    failed = values["score"] is None or values["score"] <= values["chance"]
    if "curve" not in values:
        values["curve"] = tuple(curve(values["metric"], values["score"], failed=failed))
    return RunRecord(**values)


def sweep(
    task: str = "CoLA", seeds: int = 10, arms: Sequence[tuple[str, float]] = (), **changes: Any
) -> list[RunRecord]:
    """Return runs of arms with names and values of p, a part of which fail."""
    draw = random.Random(task)
    records = []
    for seed in range(seeds):
        for arm, p in arms or (("plain", 0.0), ("mixout 0.5", 0.5), ("mixout 0.9", 0.9)):
            score: float | None = draw.gauss(0.35 + 0.1 * p, 0.04)
            if draw.random() < 0.3 * (1 - p):
                score = 0.0
            given = {"prepare": {"p": p, "seed": seed}, "distance": 5.0 - 2 * p + draw.random()}
            records.append(record(task, arm, seed, score, **(given | changes)))
    return records


def crashed(arm: str = "plain", seed: int = 0) -> RunRecord:
    return record(arm=arm, seed=seed, score=None, status=CRASHED, curve=(), error="out of memory")


def diverged(arm: str = "plain", seed: int = 0) -> RunRecord:
    points = tuple({"step": s, "epoch": s / 40, "loss": 0.7 * 10 ** (s // 10)} for s in (10, 20))
    error = "step 27: the loss is nan"
    return record(arm=arm, seed=seed, score=None, status=DIVERGED, curve=points, error=error)
