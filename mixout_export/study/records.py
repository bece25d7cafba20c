"""`runs.jsonl`: one record per finished run of a study."""

from dataclasses import dataclass, field
from typing import Any

DONE, DIVERGED, CRASHED = "done", "diverged", "crashed"


@dataclass(frozen=True)
class Seeds:
    """The seeds of one run. All arms of a study share them.

    Attributes:
        head: Initializes a fresh head (`prepare --seed`).
        data: Sets the order of the training examples (`train --data-seed`).
        masks: Draws masks and dropout (`train --seed`).
    """

    head: int
    data: int
    masks: int


@dataclass(frozen=True)
class RunRecord:
    """One run: what was run, and what came out.

    Attributes:
        key: Identifies the run: a SHA-256 over the base, the data and all options that are not
            defaults.
        task: Name of the task in the plan.
        arm: Name of the arm in the plan.
        seeds: The seeds.
        status: "done"; "diverged" if the loss became NaN, which counts as a failed run; or
            "crashed", which says nothing about the arm and is tried again, unless `refused`.
        prepare: Options of `prepare` that are not defaults, by their names in Python.
        train: Options of `train` that are not defaults, by their names in Python.
        commands: The two commands that repeat the run.
        metric: The metric that is compared.
        lower_is_better: Whether a lower value of the metric is better.
        score: The metric at the end of the run; None if it is NaN or the run did not end.
        chance: The metric of a model that always predicts the majority class of the evaluation
            data; 0 for correlations; that before the first step for language models.
        metrics: All metrics at the end; NaN is None.
        metrics_before: All metrics before the first step.
        distance: ‖w - u‖ over all parameters that came from the base (Frobenius norm).
        steps: Training steps done.
        curve: The records of the run's `metrics.jsonl`.
        weights_sha256: SHA-256 of the trained checkpoint's weights.
        seconds: Wall-clock seconds of the whole run in the study.
        training_seconds: Wall-clock seconds of the training steps alone. In a resumed run, those
            before the interruption are estimated.
        evaluation_seconds: The same of the evaluations.
        threads: Number of CPU threads.
        device: "cpu" or the name of the GPU.
        versions: Package → version.
        attempt: Which attempt this is, from 1.
        error: What went wrong; None if nothing did.
        refused: Whether it crashed because its options or data were refused. Another attempt, or
            another seed, would end in the same way.
        warnings: What the library warned of.
    """

    key: str
    task: str
    arm: str
    seeds: Seeds
    status: str
    prepare: dict[str, Any]
    train: dict[str, Any]
    commands: tuple[str, ...]
    metric: str
    lower_is_better: bool
    score: float | None
    chance: float
    metrics: dict[str, float | None] = field(default_factory=dict)
    metrics_before: dict[str, float | None] = field(default_factory=dict)
    distance: float | None = None
    steps: int = 0
    curve: tuple[dict[str, Any], ...] = ()
    weights_sha256: str = ""
    seconds: float = 0.0
    training_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    threads: int = 1
    device: str = "cpu"
    versions: dict[str, str] = field(default_factory=dict)
    attempt: int = 1
    error: str | None = None
    refused: bool = False
    warnings: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether the run ended at or below chance level, or diverged."""
        if self.score is None:
            return True
        return self.score >= self.chance if self.lower_is_better else self.score <= self.chance

    @property
    def compared_score(self) -> float:
        """The score that statistics use: that of chance if the run has none."""
        return self.chance if self.score is None else self.score

    @property
    def p(self) -> float:
        """The mix probability, in [0, 1)."""
        given = self.train.get("p")
        return float(self.prepare.get("p", 0.7) if given is None else given)
