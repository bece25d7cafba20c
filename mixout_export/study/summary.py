"""What a study shows: the values of `summary.json`."""

from dataclasses import dataclass
from typing import Any

from mixout_export.files.json_files import fields_as_json

#: What a comparison of an arm with the baseline found.
BETTER, WORSE, NO_DIFFERENCE, TOO_FEW = "better", "worse", "no difference", "too few runs"


@dataclass(frozen=True)
class Estimate:
    """A statistic of some runs, with its 95 % interval over seeds.

    Attributes:
        value: The statistic of these runs.
        low: Lower end of the interval; None if there is no interval.
        high: Upper end of the interval; None if there is no interval.
    """

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def excludes_zero(self) -> bool:
        """Whether there is an interval, and zero is not in it."""
        if self.low is None or self.high is None:
            return False
        return self.low > 0.0 or self.high < 0.0


@dataclass(frozen=True)
class Failures:
    """How many runs of an arm failed.

    Attributes:
        count: Number of failed runs.
        runs: Number of runs.
        share: count ÷ runs with its Wilson interval.
    """

    count: int
    runs: int
    share: Estimate


@dataclass(frozen=True)
class ArmSummary:
    """The runs of one arm on one task. A run without a score has that of chance.

    Attributes:
        name: Name of the arm in the plan.
        runs: Number of runs that ended or diverged. The other fields are None if it is 0.
        mean: Mean score.
        median: Median score.
        spread: Standard deviation of the scores (n - 1); None for fewer than 2 runs.
        best: The best score. It has no interval: resampling cannot yield a better run.
        worst: The worst score.
        failed: Failed runs.
        distance: Mean ‖w - u‖ of the runs that have one.
        steps: Training steps of one run that did not diverge.
        training_seconds: Mean wall-clock seconds of the training steps of one run.
        expected_best: Score expected of the best of n runs, for n = 1 to `runs`. The n runs take
            n · training_seconds.
    """

    name: str
    runs: int
    mean: Estimate | None = None
    median: Estimate | None = None
    spread: Estimate | None = None
    best: float | None = None
    worst: float | None = None
    failed: Failures | None = None
    distance: Estimate | None = None
    steps: int | None = None
    training_seconds: float | None = None
    expected_best: tuple[float, ...] = ()


@dataclass(frozen=True)
class FailureTest:
    """McNemar's exact test: do the two arms fail equally often on the same seeds?

    Attributes:
        arm_only: Pairs in which only the arm's run failed.
        baseline_only: Pairs in which only the baseline's run failed.
        p_value: The two-sided p-value.
        p_corrected: The same after Holm's correction over the task's comparisons.
        sentence: What it says, in words.
    """

    arm_only: int
    baseline_only: int
    p_value: float
    p_corrected: float
    sentence: str


@dataclass(frozen=True)
class SpreadTest:
    """The test of Brown and Forsythe: do the two arms' scores spread equally?

    Attributes:
        arm: Standard deviation of the arm's scores in the pairs.
        baseline: Standard deviation of the baseline's.
        p_value: The p-value.
        p_corrected: The same after Holm's correction over the task's comparisons.
        sentence: What it says, in words.
    """

    arm: float
    baseline: float
    p_value: float
    p_corrected: float
    sentence: str


@dataclass(frozen=True)
class OneOrSeveral:
    """One run of the arm, or several of the baseline of which the best is kept?

    Attributes:
        runs: Number of runs of the baseline.
        one: Expected score of one run of the arm.
        best_of_several: Expected score of the best of the baseline's runs.
        gain: How much better the one run is, with its interval; negative if it is worse.
        equal_runs: Smallest number of runs of the baseline whose best is expected to be at least
            as good as one run of the arm; None if not even all its runs suffice.
        time_ratio: Training time of the baseline's runs ÷ that of the one run.
        sentence: What it says, in words, without the time.
        time_sentence: The time, in words.
    """

    runs: int
    one: float
    best_of_several: float
    gain: Estimate
    equal_runs: int | None
    time_ratio: float | None
    sentence: str
    time_sentence: str


@dataclass(frozen=True)
class Comparison:
    """An arm against the baseline on the same seeds.

    Attributes:
        arm: Name of the arm.
        baseline: Name of the baseline.
        pairs: Number of seeds with a run of both arms. Only these are compared.
        unpaired: Number of runs that were left out because the other arm lacks theirs.
        finding: "better", "worse", "no difference" or "too few runs".
        gain: Mean paired difference of the scores, positive if the arm is better, whichever
            direction the metric has; None without pairs.
        p_value: Two-sided p-value of the sign-flip permutation test; None without pairs.
        p_corrected: The same after Holm's correction over the task's comparisons.
        sentence: What the comparison says, in words.
        failures: Test of the failed runs; None over all tasks, or without pairs.
        spread: Test of the spread; None where there is none.
        one_or_several: One run of the arm against several of the baseline.
    """

    arm: str
    baseline: str
    pairs: int
    unpaired: int
    finding: str
    gain: Estimate | None
    p_value: float | None
    p_corrected: float | None
    sentence: str
    failures: FailureTest | None = None
    spread: SpreadTest | None = None
    one_or_several: OneOrSeveral | None = None


@dataclass(frozen=True)
class Recommendation:
    """The arm that the evidence supports.

    Attributes:
        sentence: The recommendation in words, without the time.
        time_sentence: What the arm costs in training time, in words; "" for the baseline.
        arm: Name of the recommended arm; the baseline if no other arm is supported.
        supported: Whether an arm other than the baseline is supported.
        gain: Its expected gain over the baseline; None for the baseline.
        time_ratio: Its training time ÷ that of the baseline; None for the baseline.
        equivalent: Other supported arms that cannot be distinguished from it.
    """

    sentence: str
    time_sentence: str
    arm: str
    supported: bool
    gain: Estimate | None = None
    time_ratio: float | None = None
    equivalent: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """The recommendation with its cost, on one line."""
        return f"{self.sentence} {self.time_sentence}".rstrip()


@dataclass(frozen=True)
class TaskSummary:
    """What a study shows on one task.

    Attributes:
        name: Name of the task in the plan.
        metric: The metric that is compared; None before the first run.
        lower_is_better: Whether a lower value of the metric is better.
        chance: Score of a model that always predicts the majority class.
        recommendation: The arm that the evidence supports on this task.
        arms: The arms in the plan's order.
        comparisons: Every arm but the baseline against the baseline, in the plan's order.
    """

    name: str
    metric: str | None
    lower_is_better: bool
    chance: float | None
    recommendation: Recommendation
    arms: tuple[ArmSummary, ...]
    comparisons: tuple[Comparison, ...]


@dataclass(frozen=True)
class StudySummary:
    """What a study shows.

    Fields whose names contain "seconds" or "time" depend on how long the runs took. All others
    depend on the plan and the runs' results alone.

    Attributes:
        recommendation: The arm that the evidence supports over all tasks.
        baseline: Name of the arm that the others are compared with.
        tasks: The tasks in the plan's order.
        comparisons: With several tasks, every arm against the baseline by the mean score over all
            tasks; empty with one task, or where metrics have no common scale.
        notes: What a reader has to know to read the figures.
    """

    recommendation: Recommendation
    baseline: str
    tasks: tuple[TaskSummary, ...]
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the values of `summary.json`; the recommendation comes first."""
        return fields_as_json(self)
