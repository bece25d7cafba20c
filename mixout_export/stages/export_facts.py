"""What an export tells its model card."""

from collections.abc import Iterator

from mixout_export.card.facts import ExportFacts, OutputParity, ParityFacts
from mixout_export.checkpoint.plain import PlainCheckpoint
from mixout_export.export.document import Declared
from mixout_export.parity.battery import Coverage
from mixout_export.parity.compare import OutputDifference
from mixout_export.parity.padding import PaddingCheck
from mixout_export.parity.result import ParityResult


def export_facts(
    source: PlainCheckpoint,
    precision: str,
    declared: Declared,
    parity: ParityResult | None,
    padding: PaddingCheck | None = None,
) -> ExportFacts:
    """Return what a card says of a graph.

    Args:
        source: The model it was captured from.
        precision: "fp32", "fp16" or "int8".
        declared: What the graph needs to run.
        parity: The comparison with PyTorch; None where there was none.
        padding: Whether results depend on padding and on other rows; None if not measured.
    """
    return ExportFacts(
        task=source.task,
        architecture=type(source.model).__name__,
        precision=precision,
        opset=declared.opset,
        needs=declared.oldest.sentence,
        inputs=source.interface.inputs,
        parity=None if parity is None else _parity_facts(parity),
        padding=() if padding is None else padding.sentences,
    )


def _parity_facts(parity: ParityResult) -> ParityFacts:
    generated = () if parity.generation is None else parity.generation.outputs
    weights = parity.weights
    covered = {} if parity.coverage is None else dict(_covered(parity.coverage))
    if parity.generation is not None:
        covered["generated tokens"] = str(parity.generation.tokens)
    for output in () if parity.limits.agreement is None else parity.outputs:
        if output.judged is not None and output.judged.decisions:
            which = "equal decisions on the data" if output.on_data else "equal clear decisions"
            equal = output.judged.decisions - output.judged.flips
            covered[f"{output.name}: {which} (these count)"] = (
                f"{equal} of {output.judged.decisions}"
            )
    return ParityFacts(
        outputs=[
            *(_output(output, parity.agreement(output)) for output in parity.all_outputs),
            *(_output(output, output.agreement, " while generating") for output in generated),
        ],
        criteria=parity.criteria(),
        weights=None if weights is None else (weights.accounted, weights.total),
        covered=covered,
    )


def _output(output: OutputDifference, agreement: float | None, note: str = "") -> OutputParity:
    return OutputParity(f"{output.name}{note}", output.max_abs, output.mean_abs, agreement)


def _covered(coverage: Coverage) -> Iterator[tuple[str, str]]:
    yield "inputs", f"{coverage.examples} rows in {coverage.batches} batches"
    if coverage.vocabulary_size:
        yield "vocabulary ids", f"{coverage.vocabulary} of {coverage.vocabulary_size}"
        limit = "" if coverage.position_limit is None else f" of {coverage.position_limit}"
        yield "positions", f"{coverage.positions}{limit}"
        yield "segments", str(coverage.segments)
