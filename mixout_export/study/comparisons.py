"""Compare arms on the same seeds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

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
        return self.theirs - self.ours if self.lower_is_better else self.ours - self.theirs


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
    """Compare the mean scores of arms, with Holm's correction over all of these comparisons."""
    tested = [number for number, found in enumerate(pairs) if len(found.seeds)]
    p_values = [sign_flip_test(pairs[number].gains) for number in tested]
    found = [_without_pairs(one) for one in pairs]
    few = too_few(pairs)
    for number, p_value, corrected in zip(tested, p_values, holm(p_values), strict=True):
        found[number] = _compare(pairs[number], p_value, corrected, few[number])
    needed = needed_pairs(len(tested))
    return tuple(
        replace(
            one,
            sentence=gain_sentence(one, needed, lower_is_better=its.lower_is_better),
        )
        for one, its in zip(found, pairs, strict=True)
    )


def _without_pairs(pairs: Pairs) -> Comparison:
    return Comparison(
        pairs.arm, pairs.baseline, 0, pairs.unpaired, TOO_FEW, None, None, None, sentence=""
    )


def _compare(pairs: Pairs, p_value: float, corrected: float, few: bool) -> Comparison:
    gain = bootstrap(np.mean, pairs.gains)
    return Comparison(
        pairs.arm,
        pairs.baseline,
        len(pairs.seeds),
        pairs.unpaired,
        TOO_FEW if few else finding(gain, corrected),
        gain,
        p_value,
        corrected,
        sentence="",
    )


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
    counts = []
    for found in pairs:
        ours = [runs[found.arm][seed].failed for seed in found.seeds]
        theirs = [runs[found.baseline][seed].failed for seed in found.seeds]
        failed = list(zip(ours, theirs, strict=True))
        counts.append([failed.count(kind) for kind in ((True, False), (False, True), (True, True))])
    tested = [number for number, found in enumerate(pairs) if len(found.seeds)]
    p_values = [mcnemar_test(*counts[number][:2]) for number in tested]
    tests: list[FailureTest | None] = [None] * len(pairs)
    few = too_few(pairs)
    for number, p_value, corrected in zip(tested, p_values, holm(p_values), strict=True):
        found, (ours_only, theirs_only, both) = pairs[number], counts[number]
        test = FailureTest(ours_only, theirs_only, p_value, corrected, sentence="")
        text = failure_sentence(
            test, found.arm, found.baseline, both, len(found.seeds), few=few[number]
        )
        tests[number] = replace(test, sentence=text)
    return tests


def spread_tests(pairs: Sequence[Pairs]) -> list[SpreadTest | None]:
    """Compare how far arms' scores spread, with Holm's correction; None where there is no test."""
    p_values = [brown_forsythe_test(found.ours, found.theirs) for found in pairs]
    tested = [number for number, p_value in enumerate(p_values) if p_value is not None]
    known = [p_value for p_value in p_values if p_value is not None]
    tests: list[SpreadTest | None] = [None] * len(pairs)
    few = too_few(pairs)
    for number, p_value, corrected in zip(tested, known, holm(known), strict=True):
        found = pairs[number]
        deviations = (
            float(standard_deviation(found.ours)),
            float(standard_deviation(found.theirs)),
        )
        test = SpreadTest(*deviations, p_value, corrected, sentence="")
        text = spread_sentence(test, found.arm, found.baseline, few=few[number])
        tests[number] = replace(test, sentence=text)
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
