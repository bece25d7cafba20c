"""The statistics of a study, from scipy, with a fixed seed.

Resampling draws from a generator of its own each time, so a figure depends on its sample alone.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from mixout_export.study.summary import Estimate, Failures

Floats = NDArray[np.float64]

#: Level of all intervals.
LEVEL = 0.95

#: A p-value up to this counts as evidence.
ALPHA = 0.05

#: Fewer runs have no interval: too few distinct resamples exist.
LEAST_RUNS = 5

#: The same for statistics that depend on the extreme runs: the standard deviation and the best of
#: several. Their intervals are too narrow for fewer runs: with 5, they cover 66 to 80 %.
LEAST_RUNS_FOR_EXTREMES = 10

_RESAMPLES = 9_999

#: Up to 14 pairs, all 2^n sign flips are tried.
_SIGN_FLIPS = 20_000


def bootstrap_level(runs: int) -> float:
    """Return the level to ask the bootstrap for, so that the interval covers about 95 %.

    The bootstrap's intervals are too narrow for small samples: it divides by n instead of n - 1
    and uses normal quantiles. This widens them to those of Student's t (Hesterberg 2015, "What
    Teachers Should Know About the Bootstrap", section 4.1: expanded percentile interval).
    """
    quantile = stats.t.ppf((1.0 + LEVEL) / 2.0, runs - 1)
    return float(1.0 - 2.0 * stats.norm.sf(math.sqrt(runs / (runs - 1)) * quantile))


def bootstrap(
    statistic: Callable[..., Any], *samples: Sequence[float] | Floats, least: int = LEAST_RUNS
) -> Estimate:
    """Return a statistic of one sample, or of several paired ones, with its BCa interval.

    Args:
        statistic: Computes it along `axis`.
        samples: One number per seed. Samples of the same seeds are resampled together.
        least: Fewer seeds than this give no interval.

    There is no interval either if all values are equal, or where BCa has none.
    """
    arrays = [np.asarray(sample, np.float64) for sample in samples]
    value, runs = float(statistic(*arrays, axis=-1)), len(arrays[0])
    if runs < least or all(np.ptp(array) == 0.0 for array in arrays):
        return Estimate(value)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # a NaN says the same
        found = stats.bootstrap(
            arrays,
            statistic,
            paired=len(arrays) > 1,
            vectorized=True,
            n_resamples=_RESAMPLES,
            confidence_level=bootstrap_level(runs),
            method="BCa",
            random_state=np.random.default_rng(0),
        ).confidence_interval
    low, high = float(found.low), float(found.high)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        return Estimate(value)
    return Estimate(value, low, high)


def standard_deviation(sample: Floats, axis: int = -1) -> Any:
    """Compute the standard deviation with n - 1."""
    return np.std(sample, axis=axis, ddof=1)


def failures(count: int, runs: int) -> Failures:
    """Return the share of failed runs with Wilson's interval; `runs` is at least 1."""
    found = stats.binomtest(count, runs).proportion_ci(LEVEL, method="wilson")
    share = Estimate(count / runs, max(0.0, float(found.low)), min(1.0, float(found.high)))
    return Failures(count, runs, share)


def sign_flip_test(differences: Sequence[float] | Floats) -> float:
    """Return the two-sided p-value of paired differences under random changes of their signs.

    If both arms are equally good, a seed's two scores could as well be swapped, which changes
    the sign of the difference. The p-value is the share of the 2^n sign patterns whose mean is at
    least as far from 0 as the measured one. It is exact up to 14 pairs, and from 20,000 random
    patterns above. Not Wilcoxon's test, because it ranks: an arm that prevents a few failed runs
    and is slightly lower elsewhere has the higher mean and the lower ranks. This test is about the
    mean, which is what we report. Zeros and ties need no special case.
    """
    values = np.asarray(differences, np.float64)
    if len(values) < 2 or not np.any(values):
        return 1.0
    values = values / np.max(np.abs(values))
    found = stats.permutation_test(
        (values,),
        lambda sample, axis: np.round(np.mean(sample, axis=axis), 9),  # ties, despite rounding
        permutation_type="samples",
        vectorized=True,
        n_resamples=_SIGN_FLIPS,
        random_state=np.random.default_rng(0),
    )
    return min(1.0, float(found.pvalue))


def smallest_p_value(pairs: int) -> float:
    """Return the smallest p-value that a sign-flip test of so many pairs can have."""
    return min(1.0, 2.0 ** (1 - pairs))


def mcnemar_test(first_only: int, second_only: int) -> float:
    """Return the exact two-sided p-value of the pairs in which one of two arms failed alone."""
    alone = first_only + second_only
    return float(stats.binomtest(first_only, alone).pvalue) if alone else 1.0


def brown_forsythe_test(first: Floats, second: Floats) -> float | None:
    """Return the p-value for equal spread.

    It takes the two samples as independent. On paired runs, whose scores may rise and fall
    together, it is an approximation.

    Returns:
        The p-value; None for fewer than 3 runs, or if each sample's distances from its median are
        all equal, because the test compares them with their own variance.
    """
    if min(len(first), len(second)) < 3:
        return None
    if all(np.ptp(np.abs(sample - np.median(sample))) < 1e-12 for sample in (first, second)):
        return None
    return float(stats.levene(first, second, center="median").pvalue)


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Correct p-values for their number (Holm 1979), in the given order."""
    count, largest, corrected = len(p_values), 0.0, [0.0] * len(p_values)
    for rank, index in enumerate(sorted(range(count), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (count - rank) * p_values[index]))
        corrected[index] = largest
    return tuple(corrected)


@lru_cache(maxsize=8)
def best_of_weights(runs: int) -> Floats:
    """Return the weight of each rank in the expected best of n runs, shape (n, rank).

    Row n - 1 has C(i - 1, n - 1) / C(runs, n) for the i-th lowest score: the share of all choices
    of n runs in which it is the best. This is the unbiased estimator. That of Dodge et al. (2020),
    which draws with replacement, is too low.
    """
    rank = np.arange(1, runs + 1)
    rows = [np.full(runs, 1.0 / runs)]
    for n in range(1, runs):
        row = rows[-1] * (rank - n).clip(0)  # C(i - 1, n) is C(i - 1, n - 1) · (i - n) / n
        rows.append(row / row.sum())
    return np.array(rows)


def expected_best(scores: Sequence[float] | Floats, *, lower_is_better: bool) -> tuple[float, ...]:
    """Return the score expected of the best of n of these runs, for n = 1 to their number."""
    sign = -1.0 if lower_is_better else 1.0
    ordered = np.sort(sign * np.asarray(scores, np.float64))
    if not len(ordered):
        return ()
    values = np.sum(best_of_weights(len(ordered)) * ordered, axis=1)
    return tuple(float(sign * value) for value in values)
