"""Compare arms on the same seeds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mixout_export.study.records import RunRecord, Seeds
from mixout_export.study.sentences import (
    failure_sentence,
    gain_sentence,
    one_or_several_sentence,
    spread_sentence,
    time_sentence,
)
from mixout_export.study.statistics import (
    ALPHA,
    LEAST_RUNS_FOR_EXTREMES,
    Floats,
    best_of_weights,
    bootstrap,
    brown_forsythe_test,
    expected_best,
    holm,
    mcnemar_test,
    sign_flip_test,
    smallest_p_value,
    standard_deviation,
)
from mixout_export.study.summary import (
    BETTER,
    NO_DIFFERENCE,
    TOO_FEW,
    WORSE,
    Comparison,
    Estimate,
    FailureTest,
    OneOrSeveral,
    SpreadTest,
)

#: One arm's scores, by seed.
Scores = Mapping[Seeds, float]

#: One arm's runs, by seed.
Runs = Mapping[Seeds, RunRecord]

#: "One run of the arm, or so many of the baseline and keep the best?"
SEVERAL = 3

#: Digits of a difference of scores. The others are rounding errors.
_DIGITS = 12

#: Scores that are all closer to 0 than this count as equal.
_SMALLEST_SCORE = 1e-100


@dataclass(frozen=True)
class Pairs:
    """The scores of two arms on the seeds that both have.

    Attributes:
        arm: Name of the arm.
        baseline: Name of the arm that it is compared with.
        seeds: The seeds that both have, in order.
        ours: The arm's scores.
        theirs: The baseline's scores.
        unpaired: Number of scores that only one of the two has.
        lower_is_better: Whether a lower score is better.
    """

    arm: str
    baseline: str
    seeds: tuple[Seeds, ...]
    ours: Floats
    theirs: Floats
    unpaired: int
    lower_is_better: bool

    @property
    def gains(self) -> Floats:
        """How much better the arm is on each seed."""
        gains = self.theirs - self.ours if self.lower_is_better else self.ours - self.theirs
        return np.asarray(self.rounded(gains))

    def rounded(self, gain: Any) -> Any:
        """Remove rounding errors: 0.8 - 0.7 and 0.9 - 0.8 are the same gain.

        Twelve digits of the largest score are kept.
        """
        scores = np.concatenate([self.ours, self.theirs])
        largest = np.max(np.abs(scores), initial=_SMALLEST_SCORE)
        return np.round(gain, _DIGITS - math.ceil(math.log10(largest))) + 0.0  # no -0.0


def pair(scores: Mapping[str, Scores], arm: str, baseline: str, *, lower_is_better: bool) -> Pairs:
    """Pair the scores of two arms by seed."""
    ours, theirs = scores[arm], scores[baseline]
    seeds = in_order(set(ours) & set(theirs))
    return Pairs(
        arm,
        baseline,
        seeds,
        np.array([ours[seed] for seed in seeds], np.float64),
        np.array([theirs[seed] for seed in seeds], np.float64),
        len(ours) + len(theirs) - 2 * len(seeds),
        lower_is_better,
    )


def in_order(seeds: set[Seeds]) -> tuple[Seeds, ...]:
    """Sort seeds, so that no figure depends on the order in which runs ended."""
    return tuple(sorted(seeds, key=lambda seed: (seed.head, seed.data, seed.masks)))


def needed_pairs(comparisons: int) -> int:
    """Return the smallest number of pairs that can show a difference after Holm's correction."""
    pairs = 1
    while comparisons * smallest_p_value(pairs) > ALPHA:
        pairs += 1
    return pairs


def too_few(pairs: Sequence[Pairs]) -> list[bool]:
    """Return which comparisons have too few pairs to show a difference, however large it is."""
    return [p > ALPHA for p in holm([smallest_p_value(len(found.seeds)) for found in pairs])]


def compare(pairs: Sequence[Pairs]) -> tuple[Comparison, ...]:
    """Compare the mean scores of arms, with Holm's correction over all of these comparisons.

    Those without pairs count too, so that p-values do not rise when their runs end.
    """
    p_values = [sign_flip_test(found.gains) for found in pairs]
    needed = needed_pairs(len(pairs))
    return tuple(
        _compare(found, p_value, corrected, few=few, needed=needed)
        for found, p_value, corrected, few in zip(
            pairs, p_values, holm(p_values), too_few(pairs), strict=True
        )
    )


def _compare(
    pairs: Pairs, p_value: float, corrected: float, *, few: bool, needed: int
) -> Comparison:
    def mean_gain(gains: Floats, axis: int) -> Any:
        return pairs.rounded(np.mean(gains, axis=axis))

    gain = bootstrap(mean_gain, pairs.gains) if pairs.seeds else None
    found = Comparison(
        pairs.arm,
        pairs.baseline,
        len(pairs.seeds),
        pairs.unpaired,
        TOO_FEW if few or gain is None else finding(gain, corrected),
        gain,
        p_value if pairs.seeds else None,
        corrected if pairs.seeds else None,
        sentence="",
    )
    text = gain_sentence(found, needed, lower_is_better=pairs.lower_is_better)
    return replace(found, sentence=text)


def finding(gain: Estimate, corrected: float) -> str:
    """Judge a difference: the test and the interval must agree.

    Pairs that all differ by the same amount have no interval. Then the test decides.
    """
    includes_zero = gain.low is not None and not gain.excludes_zero
    if corrected > ALPHA or includes_zero or gain.value == 0.0:
        return NO_DIFFERENCE
    return BETTER if gain.value > 0 else WORSE


def failure_tests(pairs: Sequence[Pairs], runs: Mapping[str, Runs]) -> list[FailureTest | None]:
    """Compare how often arms fail, with Holm's correction; None without pairs."""
    counts = [_failed_pairs(found, runs) for found in pairs]
    p_values = [mcnemar_test(ours, theirs) for ours, theirs, _ in counts]
    tests: list[FailureTest | None] = []
    for found, (ours, theirs, both), p_value, corrected, few in zip(
        pairs, counts, p_values, holm(p_values), too_few(pairs), strict=True
    ):
        test = FailureTest(ours, theirs, p_value, corrected, sentence="")
        count = len(found.seeds)
        text = failure_sentence(test, found.arm, found.baseline, both, count, few=few)
        tests.append(replace(test, sentence=text) if count else None)
    return tests


def _failed_pairs(pairs: Pairs, runs: Mapping[str, Runs]) -> tuple[int, int, int]:
    """Count the pairs in which only the arm failed, only the baseline, and both."""
    ours, theirs = runs[pairs.arm], runs[pairs.baseline]
    failed = [(ours[seed].failed, theirs[seed].failed) for seed in pairs.seeds]
    return failed.count((True, False)), failed.count((False, True)), failed.count((True, True))


def spread_tests(pairs: Sequence[Pairs]) -> list[SpreadTest | None]:
    """Compare how far arms' scores spread, with Holm's correction; None where there is no test."""
    p_values = [brown_forsythe_test(found.ours, found.theirs) for found in pairs]
    every = holm([1.0 if p_value is None else p_value for p_value in p_values])
    tests: list[SpreadTest | None] = []
    for found, p_value, corrected, few in zip(pairs, p_values, every, too_few(pairs), strict=True):
        if p_value is None:
            tests.append(None)
            continue
        ours, theirs = (float(standard_deviation(its)) for its in (found.ours, found.theirs))
        test = SpreadTest(ours, theirs, p_value, corrected, sentence="")
        text = spread_sentence(test, found.arm, found.baseline, few=few)
        tests.append(replace(test, sentence=text))
    return tests


def one_or_several(pairs: Pairs, time_ratio: float | None) -> OneOrSeveral | None:
    """Compare one run of the arm with the best of several of the baseline; None for too few runs.

    Args:
        pairs: The scores of both.
        time_ratio: Training time of a run of the baseline ÷ that of a run of the arm.
    """
    count = len(pairs.seeds)
    if count < SEVERAL:
        return None
    sign = -1.0 if pairs.lower_is_better else 1.0

    def gain(ours: Floats, theirs: Floats, axis: int) -> Floats:
        weights = best_of_weights(theirs.shape[axis])[SEVERAL - 1]
        # not `@`, whose last bits depend on the number of threads
        best = np.sum(np.sort(sign * theirs, axis=axis) * weights, axis=axis)
        return np.asarray(np.mean(sign * ours, axis=axis) - best)

    one = float(np.mean(pairs.ours))
    curve = expected_best(pairs.theirs, lower_is_better=pairs.lower_is_better)
    reach = (
        n
        for n, score in enumerate(curve, 1)
        if sign * (score - one) >= 0.0 or math.isclose(score, one, rel_tol=1e-9, abs_tol=1e-12)
    )
    found = OneOrSeveral(
        SEVERAL,
        one,
        curve[SEVERAL - 1],
        bootstrap(gain, pairs.ours, pairs.theirs, least=LEAST_RUNS_FOR_EXTREMES),
        next(reach, None),
        None if time_ratio is None else SEVERAL * time_ratio,
        sentence="",
        time_sentence="",
    )
    text = one_or_several_sentence(
        found, pairs.arm, pairs.baseline, pairs=count, lower_is_better=pairs.lower_is_better
    )
    time = time_sentence(
        found.time_ratio,
        f"{SEVERAL} runs of {pairs.baseline} take",
        f"one run of {pairs.arm}",
    )
    return replace(found, sentence=text, time_sentence=time)
