"""A study's statistics against brute force, closed forms and simulated data."""

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from mixout_export.study import statistics
from mixout_export.study.statistics import (
    best_of_weights,
    bootstrap,
    bootstrap_level,
    brown_forsythe_test,
    expected_best,
    failures,
    holm,
    mcnemar_test,
    sign_flip_test,
    smallest_p_value,
    standard_deviation,
)
from mixout_export.study.summary import Estimate

Floats = NDArray[np.float64]

#: Differences of accuracies on 277 rows: with zeros, ties, and sums that only rounding separates.
DIFFERENCES = [
    [0.1],
    [0.0, 0.0, 0.0],
    [0.3, -0.1, -0.2],
    [0.1, 0.2, -0.3, 0.3],
    [0.0, 0.0, 0.4, 0.0, -0.1],
    [4 / 277, 7 / 277, -3 / 277, 4 / 277, 0.0, 4 / 277, -1 / 277],
    [k / 277 for k in (-5, -12, -8, 39, -2, 48, -27, -33)],  # their sum is 0
    [0.6, 0.01, 0.02, -0.03, 0.0, 0.55, -0.01, 0.02],
    [1e-9, 2e-9, 3e-9, 4e-9, -5e-9, 6e-9],
    [2e5, 1e5, 3e5, 1e5, -1e5],
]


def all_sums(values: Sequence[float]) -> Floats:
    """Return the sums under all 2^n changes of signs."""
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums + value, sums - value])
    return sums


def exact_p_value(values: Sequence[float]) -> float:
    largest = max(map(abs, values)) or 1.0
    sums = np.abs(all_sums(np.asarray(values) / largest))
    return float(np.mean(sums >= abs(sum(values)) / largest - 1e-9))


@pytest.mark.parametrize("values", DIFFERENCES, ids=str)
def test_sign_flips_against_all_of_them(values: list[float]) -> None:
    assert sign_flip_test(values) == pytest.approx(exact_p_value(values), abs=1e-12)
    assert sign_flip_test([-v for v in values]) == sign_flip_test(values)


def test_14_pairs_are_exact_and_20_are_close() -> None:
    draw = np.random.default_rng(5)
    few, many = draw.normal(0.4, 1.0, 14), draw.normal(0.4, 1.0, 20)
    assert sign_flip_test(few) == pytest.approx(exact_p_value(few), abs=1e-12)
    exact = exact_p_value(many)
    # 5 standard errors of twice a share of 20,000 random patterns
    error = 2 * math.sqrt(exact / 2 * (1 - exact / 2) / 20_000)
    assert sign_flip_test(many) == pytest.approx(exact, abs=5 * error)


def test_sign_flips_are_valid_under_the_null() -> None:
    """Over all equally likely samples, p <= level has a probability of at most the level."""
    sizes = np.array([0.01, 0.02, 0.02, 0.05, 0.3, 0.31, 0.6])
    signs = itertools.product([-1, 1], repeat=len(sizes))
    p_values = np.array([sign_flip_test(sizes * pattern) for pattern in signs])
    for level in (0.02, 0.05, 0.1, 0.3):
        assert np.mean(p_values <= level) <= level


@pytest.mark.parametrize("pairs", range(1, 9))
def test_no_sample_has_a_smaller_p_value(pairs: int) -> None:
    assert smallest_p_value(pairs) == exact_p_value([0.1] * pairs)
    draw = np.random.default_rng(pairs)
    assert all(
        sign_flip_test(draw.exponential(size=pairs)) >= smallest_p_value(pairs) for _ in range(20)
    )


@pytest.mark.parametrize(("first", "second"), [*itertools.product(range(6), repeat=2)])
def test_mcnemar_against_all_outcomes(first: int, second: int) -> None:
    count = first + second
    outcomes = [sum(outcome) for outcome in itertools.product([0, 1], repeat=count)]
    extreme = [abs(n - count / 2) >= abs(first - count / 2) for n in outcomes]
    assert mcnemar_test(first, second) == pytest.approx(sum(extreme) / 2**count, abs=1e-12)


@pytest.mark.parametrize(("count", "runs"), [(0, 1), (1, 1), (0, 10), (3, 10), (20, 20), (7, 25)])
def test_wilson_against_the_formula(count: int, runs: int) -> None:
    z, share = stats.norm.ppf(0.975), count / runs
    center = (share + z**2 / (2 * runs)) / (1 + z**2 / runs)
    half = z / (1 + z**2 / runs) * math.sqrt(share * (1 - share) / runs + z**2 / (4 * runs**2))
    found = failures(count, runs).share
    expected = [share, max(0.0, center - half), min(1.0, center + half)]
    assert [found.value, found.low, found.high] == pytest.approx(expected, abs=1e-12)


def rejected(p_values: Sequence[float], level: float) -> set[int]:
    """Holm's procedure as he states it: from the smallest p-value on, until one is too large."""
    found: set[int] = set()
    for step, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if p_values[index] > level / (len(p_values) - step):
            break
        found.add(index)
    return found


@pytest.mark.parametrize("seed", range(20))
def test_holm_against_its_definition(seed: int) -> None:
    draw = np.random.default_rng(seed)
    p_values = [float(p) for p in draw.choice([0.001, 0.01, 0.02, 0.04, 0.3, 1.0], size=5)]
    corrected = holm(p_values)
    for level in (0.0049, 0.0051, 0.049, 0.051, 0.099, 0.101, 0.5, 0.99):
        assert {i for i, p in enumerate(corrected) if p <= level} == rejected(p_values, level)
    assert holm([]) == ()
    assert holm([0.04]) == (0.04,)


def test_brown_forsythe_against_an_analysis_of_variance() -> None:
    draw = np.random.default_rng(0)
    first, second = draw.normal(0, 1, 11), draw.normal(0, 3, 9)
    groups = [np.abs(group - np.median(group)) for group in (first, second)]
    grand = np.mean(np.concatenate(groups))
    between = sum(len(group) * (group.mean() - grand) ** 2 for group in groups)
    within = sum(((group - group.mean()) ** 2).sum() for group in groups) / 18
    expected = stats.f.sf(between / within, 1, 18)
    assert brown_forsythe_test(first, second) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("first", "second"),
    [([], []), ([1.0, 2.0], [1.0, 3.0]), ([0.5] * 6, [0.5] * 6), ([0.0, 1.0] * 3, [0.0, 2.0] * 3)],
    ids=["none", "two", "constant", "equal distances"],
)
def test_no_test_of_spread_without_a_variance(first: list[float], second: list[float]) -> None:
    assert brown_forsythe_test(np.array(first), np.array(second)) is None


SCORES = [[0.4], [0.2, 0.5, 0.5], [0.0, 0.0, 0.41, 0.38, 0.4, 0.1], [0.3] * 4, [-0.1, 0.7, 0.2]]


@pytest.mark.parametrize("lower_is_better", [False, True])
@pytest.mark.parametrize("scores", SCORES, ids=str)
def test_expected_best_against_all_subsets(scores: list[float], lower_is_better: bool) -> None:
    best = min if lower_is_better else max
    expected = [
        np.mean([best(chosen) for chosen in itertools.combinations(scores, n)])
        for n in range(1, len(scores) + 1)
    ]
    found = expected_best(scores, lower_is_better=lower_is_better)
    assert found == pytest.approx(expected, abs=1e-12)
    assert expected_best([], lower_is_better=lower_is_better) == ()


@pytest.mark.parametrize("runs", [1, 2, 5, 60])
def test_weights_are_shares_of_choices(runs: int) -> None:
    for n, row in enumerate(best_of_weights(runs), 1):
        exact = [Fraction(math.comb(i, n - 1), math.comb(runs, n)) for i in range(runs)]
        assert list(row) == pytest.approx([float(share) for share in exact], rel=1e-9)


def test_expected_best_is_unbiased() -> None:
    """Over all samples of 5 from 3 values, its mean is the best of n new draws.

    The estimator with replacement (Dodge et al. 2020) is lower.
    """
    values, chances = [0.0, 0.3, 0.5], [0.3, 0.5, 0.2]

    def mean_over_draws(count: int, statistic: Any) -> float:
        return math.fsum(
            math.prod(chances[i] for i in draw) * statistic([values[i] for i in draw])
            for draw in itertools.product(range(3), repeat=count)
        )

    def with_replacement(scores: list[float], n: int) -> float:
        share = np.arange(len(scores) + 1) / len(scores)
        return float(np.diff(share**n) @ np.sort(scores))

    for n in (1, 2, 3, 5):
        truth = mean_over_draws(n, max)
        ours = mean_over_draws(5, lambda s, n=n: expected_best(s, lower_is_better=False)[n - 1])
        theirs = mean_over_draws(5, lambda s, n=n: with_replacement(s, n))
        assert ours == pytest.approx(truth, abs=1e-12)
        assert theirs < truth - 0.001 or n == 1


def test_bca_against_all_resamples() -> None:
    """The interval's ends are the right quantiles of the means of all 6^6 resamples."""
    sample = np.array([0.0, 0.31, 0.35, 0.36, 0.41, 0.44])
    draws = np.array(list(itertools.product(range(6), repeat=6)), dtype=np.int8)
    means = sample[draws].mean(axis=1)
    # Efron (1987): bias from the share below the estimate, acceleration from the jackknife
    share = np.mean(means < sample.mean() - 1e-9) / 2 + np.mean(means <= sample.mean() + 1e-9) / 2
    bias = stats.norm.ppf(share)
    left_out = np.array([np.delete(sample, i).mean() for i in range(6)])
    pulls = left_out.mean() - left_out
    acceleration = (pulls**3).sum() / (6 * (pulls**2).sum() ** 1.5)
    tail = (1 - bootstrap_level(6)) / 2
    found = bootstrap(np.mean, sample)
    for end, level in ((found.low, tail), (found.high, 1 - tail)):
        z = bias + stats.norm.ppf(level)
        expected = stats.norm.cdf(bias + z / (1 - acceleration * z))
        # 9,999 resamples: 5 standard errors of the bias and of the quantile
        slope = stats.norm.pdf(stats.norm.ppf(expected)) * 2 / stats.norm.pdf(bias)
        error = (slope * math.sqrt(0.25) + math.sqrt(expected * (1 - expected))) / 99.99
        assert np.mean(means < end - 1e-9) - 5 * error <= expected
        assert np.mean(means <= end + 1e-9) + 5 * error >= expected


def test_the_level_gives_the_width_of_students_t() -> None:
    for runs in (5, 10, 100):
        z = stats.norm.ppf((1 + bootstrap_level(runs)) / 2)
        expected = stats.t.ppf(0.975, runs - 1) * math.sqrt(runs / (runs - 1))
        assert z == pytest.approx(expected, rel=1e-6)
    assert bootstrap_level(100_000) == pytest.approx(0.95, abs=1e-4)


@pytest.mark.parametrize(
    ("scores", "statistic"),
    [
        ([0.4], np.mean),
        ([0.4, 0.5], np.mean),
        ([0.4, 0.5, 0.6, 0.7], np.mean),
        ([0.4] * 10, np.mean),
        ([0.4] * 9 + [0.5], np.median),
        ([0.0] * 10, standard_deviation),
    ],
    ids=["1", "2", "4", "equal", "median of ties", "no spread"],
)
def test_no_interval_rather_than_a_false_one(scores: list[float], statistic: Any) -> None:
    assert bootstrap(statistic, scores) == Estimate(float(statistic(np.array(scores), axis=-1)))


def test_figures_are_repeatable() -> None:
    scores = np.random.default_rng(0).normal(size=20)
    assert bootstrap(np.mean, scores) == bootstrap(np.mean, list(scores))
    assert sign_flip_test(scores) == sign_flip_test(scores)


def normal(draw: np.random.Generator, runs: int) -> Floats:
    return draw.normal(0.4, 0.05, runs)


def with_failed_runs(draw: np.random.Generator, runs: int) -> Floats:
    return np.where(draw.random(runs) < 0.3, 0.0, normal(draw, runs))


@pytest.mark.parametrize(
    ("sample", "truth"), [(normal, 0.4), (with_failed_runs, 0.28)], ids=["normal", "failed runs"]
)
def test_intervals_cover_the_true_mean(
    sample: Any, truth: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 1,500 samples of 10 runs, at most 126 may miss it.

    If 94 % are covered, more misses have a probability below 1e-4. Without `bootstrap_level`, 90 %
    of the normal samples are covered.
    """
    monkeypatch.setattr(statistics, "_RESAMPLES", 999)
    draw = np.random.default_rng(1)
    found = [bootstrap(np.mean, sample(draw, 10)) for _ in range(1_500)]
    missed = sum(not (one.low or 1.0) <= truth <= (one.high or 0.0) for one in found)
    assert missed <= stats.binom.ppf(1 - 1e-4, 1_500, 0.06) == 126


def test_mosbachs_25_seeds() -> None:
    """RTE 70.1 ± 2.4 over 25 seeds: the interval of the mean is 69.1 to 71.1, as by Student's t."""
    quantiles = stats.norm.ppf((np.arange(25) + 0.5) / 25)
    scores = 70.1 + 2.4 * quantiles / standard_deviation(quantiles)
    half = stats.t.ppf(0.975, 24) * 2.4 / 5
    found = bootstrap(np.mean, scores)
    assert [found.value, found.low, found.high] == pytest.approx(
        [70.1, 70.1 - half, 70.1 + half], abs=0.1
    )
