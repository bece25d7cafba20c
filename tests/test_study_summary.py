"""From records to the summary: what is counted, found, said and recommended."""

import dataclasses
import json
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from pages import ROOT
from scipy import stats
from study_records import record

from mixout_export.errors import ArgumentError
from mixout_export.study import statistics
from mixout_export.study.analysis import summarize
from mixout_export.study.comparisons import Pairs, compare, finding, needed_pairs, one_or_several
from mixout_export.study.records import CRASHED, DIVERGED, RunRecord, Seeds
from mixout_export.study.summary import (
    BETTER,
    NO_DIFFERENCE,
    TOO_FEW,
    WORSE,
    Comparison,
    Estimate,
    Recommendation,
    StudySummary,
)

Scores = Mapping[str, Sequence[float | None]]

#: Ten scores with some spread.
PLAIN = (0.40, 0.41, 0.39, 0.42, 0.38, 0.40, 0.43, 0.37, 0.41, 0.40)


def run(arm: str, seed: int, score: float | None, **changes: Any) -> RunRecord:
    """Return a run that ended with a score, after 100 steps and 60 seconds."""
    values = {"curve": (), "distance": 2.0, "steps": 100, "training_seconds": 60.0} | changes
    return record(values.pop("task", "CoLA"), arm, seed, score, **values)


def runs(scores: Scores, **changes: Any) -> list[RunRecord]:
    """Return the runs of several arms, one for each score, with seeds 0, 1, …"""
    return [
        run(arm, seed, score, **changes) for arm in scores for seed, score in enumerate(scores[arm])
    ]


def study(scores: Scores, **changes: Any) -> StudySummary:
    """Summarize a study of one task whose first arm is the baseline."""
    arms = list(scores)
    return summarize(runs(scores, **changes), tasks=["CoLA"], arms=arms, baseline=arms[0])


def only(scores: Scores, **changes: Any) -> Comparison:
    """Return the comparison of a study of two arms."""
    (comparison,) = study(scores, **changes).tasks[0].comparisons
    return comparison


def shifted(amount: float, wave: float = 0.0) -> tuple[float, ...]:
    """Return scores that are higher than `PLAIN` by an amount, more or less."""
    return tuple(s + amount + wave * ((7 * i) % 5 - 2) for i, s in enumerate(PLAIN))


def test_an_arms_figures() -> None:
    scores = [0.3, None, 0.5, 0.0, 0.4]
    summary = study({"plain": scores}).tasks[0].arms[0]
    counted = [0.3, 0.0, 0.5, 0.0, 0.4]
    assert summary.mean is not None
    assert summary.median is not None
    assert summary.spread is not None
    assert summary.failed is not None
    assert summary.mean.value == pytest.approx(np.mean(counted))
    assert summary.median.value == 0.3
    assert summary.spread.value == pytest.approx(np.std(counted, ddof=1))
    assert (summary.best, summary.worst, summary.runs) == (0.5, 0.0, 5)
    assert (summary.failed.count, summary.failed.runs, summary.failed.share.value) == (2, 5, 0.4)
    assert summary.distance is not None
    assert summary.distance.value == 2.0
    assert summary.distance.low is None
    assert summary.training_seconds == 60.0
    assert summary.expected_best[0] == pytest.approx(summary.mean.value)
    assert summary.expected_best[-1] == summary.best


def test_a_run_at_chance_has_failed() -> None:
    """MRPC's majority class has F1 81.2 and accuracy 68.4: the threshold belongs to the metric."""
    majority = 279 / 408
    f1 = 2 * majority / (1 + majority)
    assert (round(majority, 3), round(f1, 3)) == (0.684, 0.812)
    for chance, failed in ((majority, 1), (f1, 3)):
        found = study({"plain": [majority, 0.7, f1, 0.9]}, chance=chance).tasks[0].arms[0].failed
        assert found is not None
        assert found.count == failed


def test_diverged_runs_count_and_crashed_ones_do_not() -> None:
    records = runs({"plain": PLAIN[:3]})
    records.append(run("plain", 3, None, status=DIVERGED, chance=0.1, distance=None))
    records.append(run("plain", 4, None, status=CRASHED))
    records.append(run("a former arm", 0, 0.9))
    records.append(run("plain", 0, 0.9, task="a former task"))
    arm = summarize(records, tasks=["CoLA"], arms=["plain"], baseline="plain").tasks[0].arms[0]
    assert (arm.runs, arm.worst) == (4, 0.1)
    assert arm.failed is not None
    assert arm.failed.count == 1


def test_a_score_that_is_not_finite_counts_as_chance() -> None:
    scores = {"plain": [12.0, float("inf"), 14.0]}
    arm = study(scores, lower_is_better=True, chance=900.0, metric="perplexity").tasks[0].arms[0]
    assert (arm.best, arm.worst) == (12.0, 900.0)
    json.dumps(dataclasses.asdict(arm), allow_nan=False)


def test_the_order_of_records_does_not_matter() -> None:
    records = runs({"plain": PLAIN, "a": shifted(0.02, 0.01), "b": shifted(-0.1, 0.03)})
    for index, one in enumerate(records):
        records[index] = dataclasses.replace(one, training_seconds=60 + 0.1 * index)

    def text(order: list[RunRecord]) -> str:
        found = summarize(order, tasks=["CoLA"], arms=["plain", "a", "b"], baseline="plain")
        return json.dumps(found.to_dict(), allow_nan=False)

    expected = text(records)
    for seed in range(3):
        random.Random(seed).shuffle(records)
        assert text(records) == expected
    assert expected.startswith('{"recommendation": {"sentence": ')


def test_only_named_fields_depend_on_the_time() -> None:
    scores = {"plain": PLAIN, "mixout": shifted(0.05, 0.01)}

    def timeless(value: Any) -> Any:
        if isinstance(value, dict):
            kept = {k: v for k, v in value.items() if not ("time" in k or "seconds" in k)}
            return {k: timeless(v) for k, v in kept.items()}
        return [timeless(v) for v in value] if isinstance(value, list) else value

    slow = runs(scores)
    fast = [dataclasses.replace(r, training_seconds=r.seeds.head + 1.0) for r in slow]
    found = [
        summarize(records, tasks=["CoLA"], arms=list(scores), baseline="plain").to_dict()
        for records in (slow, fast)
    ]
    assert found[0] != found[1]
    assert timeless(found[0]) == timeless(found[1])


def test_seeds_without_a_partner_are_left_out() -> None:
    records = runs({"plain": PLAIN, "mixout": shifted(0.1, 0.01)})
    records = [r for r in records if (r.arm, r.seeds.head) not in (("plain", 3), ("mixout", 5))]
    records.append(run("mixout", 77, 0.0))
    found = summarize(records, tasks=["CoLA"], arms=["plain", "mixout"], baseline="plain")
    (comparison,) = found.tasks[0].comparisons
    assert (comparison.pairs, comparison.unpaired) == (8, 3)
    assert comparison.gain is not None
    gains = [0.1 + 0.01 * ((7 * i) % 5 - 2) for i in range(10) if i not in (3, 5)]
    assert comparison.gain.value == pytest.approx(np.mean(gains))
    assert comparison.p_value == smallest(8)


def smallest(pairs: int) -> float:
    return 2.0 ** (1 - pairs)


def test_lower_is_better_mirrors_everything() -> None:
    scores: dict[str, Sequence[float]] = {"plain": PLAIN, "mixout": shifted(0.03, 0.02)}
    mirrored = {arm: [-score for score in its] for arm, its in scores.items()}
    up, down = only(scores), only(mirrored, lower_is_better=True)
    assert up.gain is not None
    assert down.gain is not None
    assert dataclasses.astuple(up.gain) == pytest.approx(dataclasses.astuple(down.gain))
    assert (up.p_value, up.finding) == (down.p_value, down.finding) == (up.p_value, BETTER)
    assert up.failures == down.failures
    assert up.one_or_several is not None
    assert down.one_or_several is not None
    assert down.one_or_several.gain.value == pytest.approx(up.one_or_several.gain.value)
    assert down.one_or_several.equal_runs == up.one_or_several.equal_runs
    arm = study(mirrored, lower_is_better=True).tasks[0].arms[0]
    assert (arm.best, arm.worst) == (-max(PLAIN), -min(PLAIN))
    assert "0.030 higher than plain" in up.sentence
    assert "0.030 better than plain" in down.sentence


def test_p_values_are_corrected_within_each_kind_of_test() -> None:
    scores: dict[str, Sequence[float | None]] = {
        "plain": [*PLAIN[:5], *([None] * 5)],
        "a": shifted(0.03, 0.02),
        "b": PLAIN,
        "c": shifted(0.1, 0.3),
    }
    comparisons = study(scores).tasks[0].comparisons
    kinds = [comparisons, [c.failures for c in comparisons], [c.spread for c in comparisons]]
    for tests in kinds:
        p_values = [test.p_value for test in tests if test and test.p_value is not None]
        assert len(p_values) == 3
        corrected = [test.p_corrected for test in tests if test]
        assert corrected == pytest.approx(statistics.holm(p_values))


def test_failures_and_spread_are_those_of_the_pairs() -> None:
    failing: list[float | None] = [*PLAIN[:3], *([0.0] * 7)]
    found = only({"plain": failing, "mixout": [*PLAIN[:9], None]})
    assert found.failures is not None
    assert (found.failures.arm_only, found.failures.baseline_only) == (0, 6)
    assert found.failures.p_value == 2 / 2**6
    assert found.failures.sentence == (
        "mixout failed less often than plain: 1 of 10 runs of mixout failed, and 7 of 10 of plain "
        "(p = 0.031 after Holm's correction)."
    )
    assert found.spread is not None
    assert found.spread.baseline == pytest.approx(np.std([*PLAIN[:3], *([0] * 7)], ddof=1))


@pytest.mark.parametrize(
    ("arm", "expected", "sentence"),
    [
        (
            shifted(0.03, 0.005),
            BETTER,
            "mixout scored 0.030 higher than plain on average (95 % interval 0.025 to 0.035, "
            "10 pairs of seeds, p = 0.002 after Holm's correction).",
        ),
        (
            shifted(-0.03, 0.005),
            WORSE,
            "mixout scored 0.030 lower than plain on average (95 % interval 0.025 to 0.035, "
            "10 pairs of seeds, p = 0.002 after Holm's correction).",
        ),
        (
            shifted(0.001, 0.01),
            NO_DIFFERENCE,
            "No difference found between mixout and plain: mixout scored 0.001 higher on average "
            "(95 % interval 0.010 lower to 0.011 higher, 10 pairs of seeds, p = 0.83 after Holm's "
            "correction).",
        ),
        (
            PLAIN,
            NO_DIFFERENCE,
            "No difference found between mixout and plain: both scored the same on average "
            "(10 pairs of seeds).",
        ),
        (
            PLAIN[:3],
            TOO_FEW,
            "3 pairs of seeds are too few to compare mixout with plain; at least 6 are needed. So "
            "far mixout scored the same on average.",
        ),
        (
            PLAIN[:1],
            TOO_FEW,
            "1 pair of seeds is too few to compare mixout with plain; at least 6 are needed. So "
            "far mixout scored the same on average.",
        ),
        ((), TOO_FEW, "There is no seed with a run of both mixout and plain yet."),
    ],
    ids=["better", "worse", "no difference", "the same", "3 seeds", "1 seed", "none"],
)
def test_what_a_comparison_says(arm: Sequence[float], expected: str, sentence: str) -> None:
    found = only({"plain": PLAIN, "mixout": arm})
    assert (found.finding, found.sentence) == (expected, sentence)


@pytest.mark.parametrize(
    ("gain", "corrected", "expected"),
    [
        (Estimate(0.1, 0.01, 0.2), 0.05, BETTER),
        (Estimate(-0.1, -0.2, -0.01), 0.05, WORSE),
        (Estimate(0.1, 0.01, 0.2), 0.051, NO_DIFFERENCE),
        (Estimate(0.1, -0.01, 0.2), 0.01, NO_DIFFERENCE),
        (Estimate(-0.1, -0.2, 0.0), 0.01, NO_DIFFERENCE),
        (Estimate(0.1), 0.05, BETTER),
        (Estimate(0.0), 0.01, NO_DIFFERENCE),
    ],
)
def test_the_test_and_the_interval_must_agree(
    gain: Estimate, corrected: float, expected: str
) -> None:
    assert finding(gain, corrected) == expected


def test_equal_gains_have_no_interval_but_count() -> None:
    """On easy data one arm may always fail and the other always succeed."""
    found = only({"plain": [0.5] * 6, "mixout": [1.0] * 6})
    assert found.finding == BETTER
    assert found.sentence == (
        "mixout scored 0.500 higher than plain on average (no interval, 6 pairs of seeds, "
        "p = 0.031 after Holm's correction)."
    )


def test_rounding_errors_are_no_difference() -> None:
    plain = [n / 10 for n in range(1, 9)]
    equal = only({"plain": plain, "mixout": [score + 0.1 for score in plain]})
    assert (equal.finding, equal.gain) == (BETTER, Estimate(0.1))
    scores = {
        "plain": [0.3, 0.8, 0.7, 0.2, 0.1, 0.3],
        "mixout": [0.1 + 0.2, 0.7, 0.8, 0.1, 0.2, 0.3],
    }
    swapped = only(scores)
    assert swapped.gain is not None
    assert swapped.gain.value == 0.0
    assert "mixout scored the same on average" in swapped.sentence


@pytest.mark.parametrize("arms", [1, 2, 4, 5])
def test_as_many_seeds_as_needed_can_tell(arms: int) -> None:
    """With the stated number of pairs a constant gain is found, with one less it cannot be."""
    needed = needed_pairs(arms)
    for count, expected in ((needed, BETTER), (needed - 1, TOO_FEW)):
        scores = {"plain": [0.4] * count}
        scores |= {f"arm {n}": [0.4 + 0.1 * n] * count for n in range(1, arms + 1)}
        assert {c.finding for c in study(scores).tasks[0].comparisons} == {expected}


def test_the_page_states_the_needed_pairs() -> None:
    page = (ROOT / "docs" / "statistics.md").read_text("utf-8")
    arms, pairs = (
        re.findall(rf"^\| {name} \| (.+) \|$", page, re.MULTILINE)[0].split(" | ")
        for name in ("arms besides the baseline", "smallest number of pairs")
    )
    assert len(arms) == 4
    for span, needed in zip(arms, pairs, strict=True):
        first, last = span.split("–")[0], span.split("–")[-1]
        counts = range(int(first) - 1, int(last) + 2)
        found = [needed_pairs(count) == int(needed) for count in counts if count]
        assert found == [count in range(int(first), int(last) + 1) for count in counts if count]


def test_arms_without_runs_count_in_the_correction() -> None:
    """Otherwise a difference could vanish when their runs end."""
    scores = {"plain": [0.4] * 7, "a": [0.5] * 7} | {name: [] for name in "bcde"}
    first, *others = study(scores).tasks[0].comparisons
    assert (first.finding, first.p_corrected) == (TOO_FEW, 5 * smallest(7))
    assert "at least 8 are needed" in first.sentence
    assert {(c.finding, c.p_value, c.failures, c.spread) for c in others} == {
        (TOO_FEW, None, None, None)
    }


def test_one_run_or_several() -> None:
    plain = [0.0, 0.0, 0.0, 0.41, 0.42, 0.40, 0.0, 0.43, 0.41, 0.40]
    found = only({"plain": plain, "mixout": PLAIN}).one_or_several
    assert found is not None
    best_of_2, best_of_3 = statistics.expected_best(plain, lower_is_better=False)[1:3]
    assert best_of_2 < np.mean(PLAIN) < best_of_3
    assert (found.runs, found.one) == (3, pytest.approx(np.mean(PLAIN)))
    assert found.best_of_several == best_of_3
    assert found.gain.value == pytest.approx(np.mean(PLAIN) - best_of_3)
    assert (found.equal_runs, found.time_ratio) == (3, 3.0)
    assert found.sentence.startswith(
        "One run of mixout is expected to score 0.401. The best of 3 runs of plain is expected to "
        "score 0.403. The data do not show which of them is higher (95 % interval "
    )
    assert found.sentence.endswith(
        "The best of 3 runs of plain is expected to reach the score of one run of mixout."
    )
    assert found.time_sentence == (
        "3 runs of plain take 3.0 times the training time of one run of mixout."
    )


@pytest.mark.parametrize(
    ("arm", "ending"),
    [
        (PLAIN, "One run of plain is already expected to reach the score of one run of mixout."),
        (
            shifted(1.0),
            "Not even the best of all 10 runs of plain is expected to reach the score of one run "
            "of mixout.",
        ),
    ],
    ids=["one", "none"],
)
def test_how_many_runs_reach_one_run(arm: Sequence[float], ending: str) -> None:
    found = only({"plain": PLAIN, "mixout": arm}).one_or_several
    assert found is not None
    assert found.sentence.endswith(ending)


def test_rounding_does_not_add_a_run() -> None:
    """Equal means are equal, even if they were added up in another order."""
    draw = np.random.default_rng(0)
    order = tuple(Seeds(n, n, n) for n in range(7))
    for scores in draw.uniform(0.3, 0.5, (50, 7)):
        pairs = Pairs("arm", "plain", order, scores, draw.permutation(scores), 0, False)
        found = one_or_several(pairs, None)
        assert found is not None
        assert found.equal_runs == 1


def recommended(scores: Scores, **changes: Any) -> Recommendation:
    return study(scores, **changes).recommendation


def test_recommend_an_arm_with_its_gain_and_cost() -> None:
    records = [
        dataclasses.replace(record, training_seconds=90.0) if record.arm == "mixout" else record
        for record in runs({"plain": PLAIN, "mixout": shifted(0.03, 0.005)})
    ]
    found = summarize(records, tasks=["CoLA"], arms=["plain", "mixout"], baseline="plain")
    assert found.recommendation.supported
    assert found.recommendation.gain == found.tasks[0].comparisons[0].gain
    assert found.recommendation.line == (
        "Use mixout: it scored 0.030 higher than plain on average (95 % interval 0.025 to "
        "0.035, 10 pairs of seeds, p = 0.002 after Holm's correction). It takes 1.5 times the "
        "training time of plain."
    )
    several = found.tasks[0].comparisons[0].one_or_several
    assert several is not None
    assert several.time_ratio == pytest.approx(3 * 60 / 90)


@pytest.mark.parametrize(
    ("scores", "line"),
    [
        ({"plain": PLAIN}, "There is no other arm to compare plain with."),
        (
            {"plain": PLAIN, "mixout": shifted(0.001, 0.01)},
            "No arm was found to be better than plain, the baseline. Use plain.",
        ),
        (
            {"plain": PLAIN, "a": shifted(-0.2, 0.01), "b": shifted(0.001, 0.01), "c": PLAIN[:2]},
            "No arm was found to be better than plain, the baseline. Use plain. a scored worse. "
            "Too few runs of c to compare.",
        ),
        ({"plain": PLAIN, "a": shifted(-0.2, 0.01)}, "Use plain: a scored worse."),
        (
            {"plain": PLAIN[:3], "a": PLAIN[:3]},
            "Too few runs to compare the arms (3 seeds so far). Until there are more, use plain, "
            "the baseline.",
        ),
        (
            {"plain": [], "a": []},
            "Too few runs to compare the arms (0 seeds so far). Until there are more, use plain, "
            "the baseline.",
        ),
    ],
    ids=["alone", "no difference", "mixed", "worse", "few", "no runs"],
)
def test_recommend_the_baseline(scores: Scores, line: str) -> None:
    found = recommended(scores)
    assert (found.line, found.arm, found.supported) == (line, "plain", False)


def test_the_recommendation_says_if_all_runs_failed() -> None:
    note = " All 6 runs have failed, so they do not show which arm is better. "
    note += "First find a learning rate and a number of epochs with which plain learns."
    scores = {"plain": PLAIN[:3], "a": (*PLAIN[:2], None)}
    assert recommended(scores, chance=0.5).sentence.endswith(note)
    assert "failed" not in recommended({**scores, "b": (0.6,)}, chance=0.5).sentence
    assert "The only run has failed" in recommended({"plain": PLAIN[:1]}, chance=0.5).sentence


def test_the_highest_mean_wins_if_it_can_be_distinguished() -> None:
    found = recommended(
        {"plain": PLAIN, "a": shifted(0.03, 0.005), "b": shifted(0.1, -0.005)}, steps=100
    )
    assert (found.arm, found.equivalent) == ("b", ())


@pytest.mark.parametrize(
    ("steps", "arm"), [((100, 100), "b"), ((50, 100), "a"), ((100, 50), "b")], ids=str
)
def test_of_arms_that_are_alike_the_cheaper_is_recommended(
    steps: tuple[int, int], arm: str
) -> None:
    scores = {"plain": PLAIN, "a": shifted(0.03, 0.005), "b": shifted(0.031, -0.005)}
    cost = dict(zip("ab", steps, strict=True))
    records = [
        dataclasses.replace(record, steps=cost.get(record.arm, 100)) for record in runs(scores)
    ]
    found = summarize(records, tasks=["CoLA"], arms=list(scores), baseline="plain").recommendation
    other = "b" if arm == "a" else "a"
    assert (found.arm, found.equivalent) == (arm, (other,))
    assert f" {other} could not be distinguished from it" in found.sentence
    assert ("a takes fewer training steps than b" in found.sentence) == (arm == "a")


def several_tasks(scores: Mapping[str, Scores], **metrics: str) -> StudySummary:
    records = []
    for task, its in scores.items():
        metric = metrics.get(task, "accuracy")
        records += runs(its, task=task, metric=metric, lower_is_better=metric == "mse")
    arms = list(next(iter(scores.values())))
    return summarize(records, tasks=list(scores), arms=arms, baseline=arms[0])


def test_over_all_tasks_a_seeds_scores_are_averaged() -> None:
    found = several_tasks(
        {
            "RTE": {"plain": PLAIN, "mixout": shifted(0.06, 0.01), "bad": shifted(-0.1)},
            "CoLA": {"plain": PLAIN, "mixout": shifted(-0.02, -0.002)[:9], "bad": PLAIN},
        }
    )
    comparison, bad = found.comparisons
    assert bad.finding == WORSE
    assert (comparison.pairs, comparison.unpaired) == (9, 1)
    assert comparison.gain is not None
    waves = [0.004 * ((7 * i) % 5 - 2) for i in range(9)]
    assert comparison.gain.value == pytest.approx(0.02 + np.mean(waves))
    assert [task.recommendation.arm for task in found.tasks] == ["mixout", "plain"]
    assert found.recommendation.arm == "mixout"
    assert found.recommendation.sentence.startswith(
        "Over all 2 tasks: use mixout: it scored 0.020 higher than plain on average"
    )
    assert found.recommendation.sentence.endswith(" But mixout scored worse on CoLA.")


def test_metrics_of_different_scales_are_not_averaged() -> None:
    its = {"plain": PLAIN, "mixout": shifted(-0.06, 0.01)}
    found = several_tasks({"STS-B": its, "RTE": its}, **{"STS-B": "mse"})
    assert found.comparisons == ()
    assert "no common scale" in found.recommendation.sentence
    assert [t.comparisons[0].finding for t in found.tasks] == [BETTER, WORSE]


def null_study(draw: np.random.Generator, arms: int, seeds: int) -> tuple[Comparison, ...]:
    """Compare arms whose runs fail alike: 30 % at chance, the others around 0.4."""
    scores = draw.normal(0.4, 0.05, (arms + 1, seeds))
    scores[draw.random(scores.shape) < 0.3] = 0.0
    order = tuple(Seeds(n, n, n) for n in range(seeds))
    return compare([Pairs("arm", "plain", order, ours, scores[0], 0, False) for ours in scores[1:]])


def test_equal_arms_are_rarely_recommended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 150 studies of 4 equal arms, at most 19 may find an arm that is better.

    Holm's correction promises 5 % for "better or worse"; more than 19 have a probability below
    1e-4 even then.
    """
    monkeypatch.setattr(statistics, "_RESAMPLES", 199)
    draw = np.random.default_rng(0)
    studies = [null_study(draw, 4, 9) for _ in range(150)]
    found = sum(any(c.finding in (BETTER, WORSE) for c in its) for its in studies)
    assert found <= stats.binom.ppf(1 - 1e-4, 150, 0.05) == 19


#: CoLA in Table 1 of the paper: mean and maximum of 20 restarts.
TABLE_1 = {"Devlin": (0.388, 0.633), "mixout 0.7": (0.574, 0.621), "mixout 0.8": (0.579, 0.638)}


def restarts(mean: float, best: float) -> list[float]:
    """Return 20 scores with this mean and maximum, with as many failed runs as they allow."""
    failed = int(20 * (1 - mean / best))
    rest = (20 * mean - best) / (19 - failed)
    return [0.0] * failed + [rest] * (19 - failed) + [best]


def test_table_1_of_the_paper() -> None:
    """Mean and maximum are the expected best of 1 and of 20; they bound the failed runs."""
    draw = random.Random(0)
    scores = {arm: restarts(*figures) for arm, figures in TABLE_1.items()}
    for its in scores.values():
        draw.shuffle(its)
    (task,) = study(scores).tasks
    for arm, (mean, best) in zip(task.arms, TABLE_1.values(), strict=True):
        assert arm.mean is not None
        assert (arm.mean.value, arm.best) == (pytest.approx(mean), best)
        assert (arm.expected_best[0], arm.expected_best[19]) == (pytest.approx(mean), best)
    assert [arm.failed and arm.failed.count for arm in task.arms] == [7, 1, 1]
    assert task.recommendation.arm in ("mixout 0.7", "mixout 0.8")


def test_wrong_records_are_refused() -> None:
    with pytest.raises(ArgumentError, match="baseline: got 'x', expected one of plain"):
        summarize([], tasks=["CoLA"], arms=["plain"], baseline="x")
    with pytest.raises(ArgumentError, match="records: found two of task 'CoLA', arm 'plain'"):
        summarize(
            [run("plain", 0, 0.1), run("plain", 0, 0.2)],
            tasks=["CoLA"],
            arms=["plain"],
            baseline="plain",
        )
