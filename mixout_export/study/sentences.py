"""Say in plain words what a comparison shows, and no more."""

from collections.abc import Sequence

from mixout_export.study.statistics import ALPHA
from mixout_export.study.summary import (
    NO_DIFFERENCE,
    TOO_FEW,
    Comparison,
    Estimate,
    FailureTest,
    OneOrSeveral,
    SpreadTest,
)


def number(value: float) -> str:
    """Write a score or a difference of scores."""
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3f}" if size == 0 or size >= 0.0005 else f"{value:.1g}"


def listed(names: Sequence[str]) -> str:
    """Write names as a list in a sentence."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def counted(count: int, one: str, several: str | None = None) -> str:
    """Write a number of things."""
    return f"{count} {one if count == 1 else several or one + 's'}"


def pairs_of_seeds(count: int) -> str:
    """Write a number of pairs of seeds."""
    return counted(count, "pair of seeds", "pairs of seeds")


def directed(gain: float, lower_is_better: bool) -> str:
    """Write a gain and its direction, for example "0.031 higher"."""
    return f"{number(abs(gain))} {_words(lower_is_better)[gain < 0]}"


def _words(lower_is_better: bool) -> tuple[str, str]:
    return ("better", "worse") if lower_is_better else ("higher", "lower")


def _p(value: float) -> str:
    return f"p {'< 0.001' if value < 0.001 else f'= {value:.2g}'} after Holm's correction"


def _interval(gain: Estimate, lower_is_better: bool) -> str:
    """Write the interval of a gain, with directions if an end has another than the gain."""
    if gain.low is None or gain.high is None:
        return "no interval"
    if min(gain.low * gain.value, gain.high * gain.value) < 0.0 or gain.value == 0.0:
        ends = [directed(end, lower_is_better) for end in (gain.low, gain.high)]
    else:
        ends = [number(end) for end in sorted((abs(gain.low), abs(gain.high)))]
    return f"95 % interval {' to '.join(ends)}"


def gain_sentence(found: Comparison, needed_pairs: int, *, lower_is_better: bool) -> str:
    """Say how an arm's scores differ from the baseline's.

    Args:
        found: The comparison, without its sentence.
        needed_pairs: Smallest number of pairs that can show a difference.
        lower_is_better: Whether a lower value of the metric is better.
    """
    arm, baseline = found.arm, found.baseline
    if found.gain is None or found.p_corrected is None:
        return f"There is no seed with a run of both {arm} and {baseline} yet."
    amount = directed(found.gain.value, lower_is_better) if found.gain.value else "the same"
    if found.finding == TOO_FEW:
        verb = "is" if found.pairs == 1 else "are"
        return (
            f"{pairs_of_seeds(found.pairs)} {verb} too few to compare {arm} with {baseline}; at "
            f"least {needed_pairs} are needed. So far {arm} scored {amount} on average."
        )
    evidence = (
        f"({_interval(found.gain, lower_is_better)}, {pairs_of_seeds(found.pairs)}, "
        f"{_p(found.p_corrected)})"
    )
    if found.finding == NO_DIFFERENCE:
        if found.gain.value == 0.0 and found.gain.low is None:
            return (
                f"No difference found between {arm} and {baseline}: both scored the same on "
                f"average ({pairs_of_seeds(found.pairs)})."
            )
        return (
            f"No difference found between {arm} and {baseline}: {arm} scored {amount} on average "
            f"{evidence}."
        )
    return f"{arm} scored {amount} than {baseline} on average {evidence}."


def failure_sentence(
    found: FailureTest, arm: str, baseline: str, both: int, pairs: int, *, few: bool
) -> str:
    """Say whether an arm failed more or less often than the baseline.

    Args:
        found: The test, without its sentence.
        arm: Name of the arm.
        baseline: Name of the baseline.
        both: Number of pairs in which both runs failed.
        pairs: Number of pairs.
        few: Whether there are too few pairs to show a difference.
    """
    ours, theirs = found.arm_only + both, found.baseline_only + both
    if ours == theirs == 0:
        return f"No run of {arm} or {baseline} failed in {pairs_of_seeds(pairs)}."
    counts = (
        f"{ours} of {counted(pairs, 'run')} of {arm} failed, and {theirs} of {pairs} of {baseline}"
    )
    if few:
        return f"Too few runs to compare how often runs fail: {counts}."
    if found.p_corrected > ALPHA:
        return f"No difference found in how often runs fail: {counts} ({_p(found.p_corrected)})."
    word = "less" if ours < theirs else "more"
    return f"{arm} failed {word} often than {baseline}: {counts} ({_p(found.p_corrected)})."


def spread_sentence(found: SpreadTest, arm: str, baseline: str, *, few: bool) -> str:
    """Say whether an arm's scores spread more or less than the baseline's."""
    values = (
        f"their standard deviation is {number(found.arm)} for {arm} and {number(found.baseline)} "
        f"for {baseline}"
    )
    if few:
        return f"Too few runs to compare the spread of the scores: {values}."
    values += f" ({_p(found.p_corrected)})"
    if found.p_corrected > ALPHA:
        return f"No difference found in the spread of the scores: {values}."
    word = "less" if found.arm < found.baseline else "more"
    return f"The scores of {arm} spread {word} than those of {baseline}: {values}."


def one_or_several_sentence(
    found: OneOrSeveral, arm: str, baseline: str, *, pairs: int, lower_is_better: bool
) -> str:
    """Answer whether one run of an arm or the best of several of the baseline scores higher."""
    interval = _interval(found.gain, lower_is_better)
    text = (
        f"One run of {arm} is expected to score {number(found.one)}. The best of {found.runs} runs "
        f"of {baseline} is expected to score {number(found.best_of_several)}. "
    )
    if found.gain.excludes_zero:
        text += f"The one run is {directed(found.gain.value, lower_is_better)} ({interval}). "
    else:
        text += f"The data do not show which of them is {_words(lower_is_better)[0]} ({interval}). "
    reach = f"expected to reach the score of one run of {arm}."
    if found.equal_runs is None:
        return text + f"Not even the best of all {pairs} runs of {baseline} is {reach}"
    if found.equal_runs == 1:
        return text + f"One run of {baseline} is already {reach}"
    return text + f"The best of {found.equal_runs} runs of {baseline} is {reach}"


def all_failed_sentence(runs: int, baseline: str) -> str:
    """Say that no run has learned anything, and what to do first."""
    what = "The only run has" if runs == 1 else f"All {runs} runs have"
    return (
        f"{what} failed, so they do not show which arm is better. First find a learning rate and a "
        f"number of epochs with which {baseline} learns."
    )


def time_sentence(ratio: float | None, many: str, one: str) -> str:
    """Say how many times longer something trains; "" if it is not known."""
    return "" if ratio is None else f"{many} {ratio:.1f} times the training time of {one}."
