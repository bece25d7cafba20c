"""Summarize the records of a study."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from mixout_export.errors import ArgumentError
from mixout_export.study.comparisons import (
    Runs,
    Scores,
    compare,
    failure_tests,
    in_order,
    one_or_several,
    pair,
    spread_tests,
)
from mixout_export.study.recommendation import recommend
from mixout_export.study.records import CRASHED, RunRecord, Seeds
from mixout_export.study.sentences import all_failed_sentence, listed
from mixout_export.study.statistics import (
    LEAST_RUNS_FOR_EXTREMES,
    bootstrap,
    expected_best,
    failures,
    standard_deviation,
)
from mixout_export.study.summary import (
    WORSE,
    ArmSummary,
    Comparison,
    Recommendation,
    StudySummary,
    TaskSummary,
)

NOTES = (
    "Intervals and p-values say what other seeds would give with the same data. They do not "
    "include the error that comes from a small evaluation file.",
    "A run without a score, for example because its loss became NaN, counts as if it had scored at "
    "chance level.",
    "The best of several runs or arms is chosen on the evaluation data, so its score is too high "
    "on average.",
    "Decide on the number of seeds before the start. If you stop as soon as a difference appears, "
    "you will often find a difference that does not exist.",
)


def summarize(
    records: Iterable[RunRecord], *, tasks: Sequence[str], arms: Sequence[str], baseline: str
) -> StudySummary:
    """Summarize a study. The result does not depend on the order of the records.

    Args:
        records: One for each task, arm and seeds, under the plan's current names. Crashed runs, and
            those of other tasks and arms, are left out.
        tasks: Names of the tasks in the plan's order.
        arms: Names of the arms in the plan's order.
        baseline: The arm that the others are compared with.

    Raises:
        ArgumentError: The baseline is no arm, or there are two records of one run.
    """
    if baseline not in arms:
        raise ArgumentError(f"baseline: got {baseline!r}, expected one of {', '.join(arms)}")
    runs = _by_place(records, tasks, arms)
    summaries = tuple(_task(name, runs[name], baseline) for name in tasks)
    if len(tasks) == 1:
        return StudySummary(summaries[0].recommendation, baseline, summaries, (), NOTES)
    comparisons, recommendation = _over_tasks(summaries, runs, baseline)
    return StudySummary(recommendation, baseline, summaries, comparisons, NOTES)


def _by_place(
    records: Iterable[RunRecord], tasks: Sequence[str], arms: Sequence[str]
) -> dict[str, dict[str, Runs]]:
    """Return task → arm → seeds → record, all in the plan's order."""
    found: dict[str, dict[str, dict[Seeds, RunRecord]]] = {
        task: {arm: {} for arm in arms} for task in tasks
    }
    for record in records:
        runs = found.get(record.task, {}).get(record.arm)
        if runs is None or record.status == CRASHED:
            continue
        if record.seeds in runs:
            raise ArgumentError(
                f"records: found two of task {record.task!r}, arm {record.arm!r}, {record.seeds}"
            )
        runs[record.seeds] = record
    return {
        task: {arm: {s: runs[s] for s in in_order(set(runs))} for arm, runs in by_arm.items()}
        for task, by_arm in found.items()
    }


def _scores(runs: Runs) -> dict[Seeds, float]:
    """Return the scores to compare; one that is not finite counts as chance."""
    scores = {seeds: record.compared_score for seeds, record in runs.items()}
    return {s: v if math.isfinite(v) else runs[s].chance for s, v in scores.items()}


def _arm(name: str, runs: Runs) -> ArmSummary:
    records, scores = list(runs.values()), list(_scores(runs).values())
    if not records:
        return ArmSummary(name, 0)
    lower_is_better = records[0].lower_is_better
    ordered = sorted(scores, reverse=not lower_is_better)
    distances = [
        r.distance for r in records if r.distance is not None and math.isfinite(r.distance)
    ]
    return ArmSummary(
        name,
        len(records),
        mean=bootstrap(np.mean, scores),
        median=bootstrap(np.median, scores),
        spread=bootstrap(standard_deviation, scores, least=LEAST_RUNS_FOR_EXTREMES)
        if len(scores) > 1
        else None,
        best=ordered[0],
        worst=ordered[-1],
        failed=failures(sum(record.failed for record in records), len(records)),
        distance=bootstrap(np.mean, distances) if distances else None,
        steps=max(record.steps for record in records),
        training_seconds=_seconds(runs),
        expected_best=expected_best(scores, lower_is_better=lower_is_better),
    )


def _seconds(runs: Runs) -> float:
    return math.fsum(r.training_seconds for r in runs.values()) / len(runs) if runs else 0.0


def _task(name: str, runs: Mapping[str, Runs], baseline: str) -> TaskSummary:
    first = next((record for its in runs.values() for record in its.values()), None)
    lower_is_better = first is not None and first.lower_is_better
    scores = {arm: _scores(its) for arm, its in runs.items()}
    seconds = {arm: _seconds(its) for arm, its in runs.items()}
    pairs = [
        pair(scores, arm, baseline, lower_is_better=lower_is_better)
        for arm in runs
        if arm != baseline
    ]
    compared = zip(
        compare(pairs), pairs, failure_tests(pairs, runs), spread_tests(pairs), strict=True
    )
    comparisons = tuple(
        replace(
            found,
            failures=failed,
            spread=spread,
            one_or_several=one_or_several(
                its, seconds[baseline] / seconds[its.arm] if seconds[its.arm] else None
            ),
        )
        for found, its, failed, spread in compared
    )
    arms = tuple(_arm(arm, its) for arm, its in runs.items())
    found = recommend(
        comparisons,
        scores,
        baseline=baseline,
        steps={arm: _steps(its) for arm, its in runs.items()},
        seconds=seconds,
        lower_is_better=lower_is_better,
    )
    return TaskSummary(
        name,
        metric=None if first is None else first.metric,
        lower_is_better=lower_is_better,
        chance=None if first is None else first.chance,
        recommendation=_noting_that_all_failed(found, arms, baseline),
        arms=arms,
        comparisons=comparisons,
    )


def _noting_that_all_failed(
    found: Recommendation, arms: Sequence[ArmSummary], baseline: str
) -> Recommendation:
    """Add a sentence to a recommendation if no run of any arm has learned anything."""
    counts = [arm.failed for arm in arms if arm.failed is not None]
    if not counts or any(count.count < count.runs for count in counts):
        return found
    note = all_failed_sentence(sum(count.runs for count in counts), baseline)
    return replace(found, sentence=f"{found.sentence} {note}")


def _steps(runs: Runs) -> int:
    """Return the steps of a run that did not diverge."""
    return max((record.steps for record in runs.values()), default=0)


def _over_tasks(
    tasks: Sequence[TaskSummary], runs: Mapping[str, Mapping[str, Runs]], baseline: str
) -> tuple[tuple[Comparison, ...], Recommendation]:
    """Compare the arms by each seed's mean score over all tasks."""
    if len({task.metric for task in tasks}) > 1 and any(task.lower_is_better for task in tasks):
        text = (
            "The metrics of the tasks have no common scale, so there is no recommendation over "
            "all tasks. See the recommendation for each task."
        )
        return (), Recommendation(text, "", baseline, supported=False)
    lower_is_better = tasks[0].lower_is_better
    scores = {
        arm.name: _mean_scores([its[arm.name] for its in runs.values()]) for arm in tasks[0].arms
    }
    pairs = [
        pair(scores, arm, baseline, lower_is_better=lower_is_better)
        for arm in scores
        if arm != baseline
    ]
    comparisons = compare(pairs)
    found = recommend(
        comparisons,
        scores,
        baseline=baseline,
        steps={arm: sum(_steps(its[arm]) for its in runs.values()) for arm in scores},
        seconds={arm: math.fsum(_seconds(its[arm]) for its in runs.values()) for arm in scores},
        lower_is_better=lower_is_better,
    )
    worse = [
        task.name
        for task in tasks
        for comparison in task.comparisons
        if comparison.arm == found.arm and comparison.finding == WORSE
    ]
    warning = f" But {found.arm} scored worse on {listed(worse)}." if worse else ""
    sentence = found.sentence[0].lower() + found.sentence[1:]
    text = f"Over all {len(tasks)} tasks: {sentence}{warning}"
    return comparisons, replace(found, sentence=text)


def _mean_scores(tasks: Sequence[Runs]) -> Scores:
    """Return the mean score over all tasks, for the seeds that have a run on each."""
    scores = [_scores(runs) for runs in tasks]
    shared = set.intersection(*(set(its) for its in scores))
    return {seeds: math.fsum(its[seeds] for its in scores) / len(scores) for seeds in shared}
