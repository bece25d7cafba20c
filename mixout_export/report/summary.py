"""Summarize a comparison: the verdict, and the reasons for it."""

from dataclasses import dataclass

from mixout_export.parity.result import ParityResult
from mixout_export.report.words import count, sentence
from mixout_export.rounding import difference


@dataclass(frozen=True)
class Summary:
    """What a reader needs to know first.

    Attributes:
        title: Whether parity holds.
        sentence: The most important reason.
        reasons: The other reasons, as sentences.
        inputs: Number of inputs that were compared.
    """

    title: str
    sentence: str
    reasons: tuple[str, ...]
    inputs: int


def _why_it_holds(result: ParityResult, inputs: int) -> str:
    outputs = "The output differs" if len(result.outputs) == 1 else "Outputs differ"
    if not result.max_abs:
        outputs = outputs.replace("differs", "is equal").replace("differ", "are equal")
        measured = f"{outputs} on {count(inputs)} inputs"
    else:
        measured = f"{outputs} by at most {difference(result.max_abs)} over {count(inputs)} inputs"
    concurrency = None if result.serving is None else result.serving.concurrency
    if result.weights is not None:
        first = f"All {count(result.weights.total)} weights were found"
    elif concurrency is not None:
        first = (
            f"{count(concurrency.own)} requests of {count(concurrency.clients)} concurrent clients "
            "got the right answers"
        )
    else:
        first = "The weights on a server cannot be compared"
    return f"{first}. {measured}. The criterion is {result.criteria()}."


def _of_graphs(result: ParityResult) -> str:
    """Return how many graphs of a bundle are the same model."""
    failed = [each.candidate for each in result.graphs if not each.graph_holds]
    total = len(result.graphs)
    if not failed:
        return f"All {total} graphs of the bundle are the same model as the reference."
    are = "is" if len(failed) == 1 else "are"
    return f"{len(failed)} of {total} graphs of the bundle {are} another model: {', '.join(failed)}"


def summarize(result: ParityResult) -> Summary:
    """Return the verdict and its reasons."""
    inputs = 0 if result.coverage is None else result.coverage.examples
    if result.holds:
        missed = result.self_test is not None and not result.self_test.passed
        but = ", but a manifest does not match" if result.manifests else ""
        but = but or (", but the self-test did not pass" if missed else "")
        why = tuple(sentence(reason) for reason in result.reasons())
        first = _of_graphs(result) if result.others else _why_it_holds(result, inputs)
        return Summary(f"Parity holds{but}", first, why, inputs)
    reasons = result.reasons() or ("no output could be compared",)
    first, *others = (_of_graphs(result), *reasons) if result.others else reasons
    return Summary(
        "Parity does not hold", sentence(first), tuple(sentence(r) for r in others), inputs
    )
