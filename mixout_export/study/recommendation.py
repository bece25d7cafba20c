"""Recommend the arm that the evidence supports."""

from collections.abc import Mapping, Sequence

from mixout_export.study.comparisons import Scores, compare, pair
from mixout_export.study.sentences import counted, listed, time_sentence
from mixout_export.study.summary import (
    BETTER,
    NO_DIFFERENCE,
    TOO_FEW,
    WORSE,
    Comparison,
    Recommendation,
)


def recommend(
    comparisons: Sequence[Comparison],
    scores: Mapping[str, Scores],
    *,
    baseline: str,
    steps: Mapping[str, int],
    seconds: Mapping[str, float],
    lower_is_better: bool,
) -> Recommendation:
    """Recommend an arm that was found better than the baseline, else the baseline.

    Among several such arms, the one with the highest gain leads. It may lead by luck, so each other
    one is compared with it. Of those that cannot be distinguished from it, the one with the fewest
    training steps is recommended; with equal steps, the one with the highest gain.

    Args:
        comparisons: Every other arm against the baseline.
        scores: The scores of all arms.
        baseline: Name of the baseline.
        steps: Training steps of one run of each arm.
        seconds: Mean training time of one run of each arm.
        lower_is_better: Whether a lower score is better.
    """
    gains = {c.arm: c.gain for c in comparisons if c.finding == BETTER and c.gain is not None}
    if not gains:
        return _baseline(comparisons, baseline)
    best = max(gains, key=lambda arm: gains[arm].value)  # the first in the plan of equal ones
    others = [
        pair(scores, best, arm, lower_is_better=lower_is_better) for arm in gains if arm != best
    ]
    equivalent = [
        found.baseline for found in compare(others) if found.finding in (NO_DIFFERENCE, TOO_FEW)
    ]
    # `max` above and `min` here keep the plan's order where all else is equal
    chosen = min(
        (arm for arm in gains if arm == best or arm in equivalent),
        key=lambda arm: (steps[arm], -gains[arm].value),
    )
    alike = tuple(arm for arm in gains if arm != chosen and arm in (best, *equivalent))
    evidence = next(c.sentence for c in comparisons if c.arm == chosen)
    ratio = seconds[chosen] / seconds[baseline] if seconds[baseline] else None
    return Recommendation(
        f"Use {chosen}: it{evidence.removeprefix(chosen)}{_alike(chosen, best, alike)}",
        time_sentence(ratio, "It takes", baseline),
        chosen,
        supported=True,
        gain=gains[chosen],
        time_ratio=ratio,
        equivalent=alike,
    )


def _alike(chosen: str, best: str, alike: Sequence[str]) -> str:
    if not alike:
        return ""
    text = f" {listed(alike)} could not be distinguished from it."
    if chosen != best:
        text += f" {chosen} takes fewer training steps than {best}, which has the highest mean."
    return text


def _baseline(comparisons: Sequence[Comparison], baseline: str) -> Recommendation:
    """Recommend the baseline, and say whether more runs could change that."""
    worse = [found.arm for found in comparisons if found.finding == WORSE]
    unknown = [found for found in comparisons if found.finding == TOO_FEW]
    if not comparisons:
        text = f"There is no other arm to compare {baseline} with."
    elif len(unknown) == len(comparisons):
        pairs = max(found.pairs for found in unknown)
        text = (
            f"Too few runs to compare the arms ({counted(pairs, 'seed')} so far). Until there are "
            f"more, use {baseline}, the baseline."
        )
    elif len(worse) == len(comparisons):
        text = f"Use {baseline}: {listed(worse)} scored worse."
    else:
        text = f"No arm was found to be better than {baseline}, the baseline. Use {baseline}."
        text += f" {listed(worse)} scored worse." if worse else ""
        if unknown:
            text += f" Too few runs of {listed([found.arm for found in unknown])} to compare."
    return Recommendation(text, "", baseline, supported=False)
