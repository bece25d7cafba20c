"""The comparison as a whole: what both sides say of themselves, their weights, their outputs."""

import time
from collections.abc import Sequence

from mixout_export.checkpoint.interface import ModelInterface
from mixout_export.errors import CheckpointError
from mixout_export.parity.battery import (
    LANGUAGE_MODEL_TOKENS,
    TOKENS_PER_BATCH,
    Batch,
    Battery,
    build_battery,
)
from mixout_export.parity.compare import (
    TOLERANCES,
    OutputComparison,
    OutputDifference,
    Tolerance,
    compare_outputs,
    decision_of,
    is_per_token,
)
from mixout_export.parity.description import find_mismatches, interfaces, shared_interface
from mixout_export.parity.graph_weights import audit_graph, audit_graphs
from mixout_export.parity.result import ParityResult
from mixout_export.parity.runners import Runner
from mixout_export.parity.subject import OnnxSubject, Subject, TorchSubject, unused_parameters
from mixout_export.parity.weights import WeightAudit, audit_folders


def _audit_graph(folder: TorchSubject, graph: OnnxSubject) -> WeightAudit:
    return audit_graph(
        folder.folder.tensors,
        graph.graph,
        parameters=folder.weights.parameters,
        unused=lambda: unused_parameters(folder),
    )


def _audit(
    reference: Subject, candidate: Subject, *, headless: bool, tolerance: Tolerance | None
) -> WeightAudit:
    if isinstance(reference, OnnxSubject):
        if isinstance(candidate, OnnxSubject):
            return audit_graphs(reference.graph, candidate.graph)
        return _audit_graph(candidate, reference)
    if isinstance(candidate, OnnxSubject):
        return _audit_graph(reference, candidate)
    return audit_folders(
        reference.weights, candidate.weights, headless=headless, tolerance=tolerance
    )


def _precision(audit: WeightAudit) -> str:
    """Name the tolerance: rounded weights allow for more than an order of summation."""
    if any("bf16" in how for how in audit.counts):
        return "bf16"
    return "fp16" if any("fp16" in how for how in audit.counts) else "fp32"


def _runner(subject: Subject, inputs: tuple[str, ...], *, headless: bool) -> Runner:
    if isinstance(subject, OnnxSubject):
        return subject.session
    return subject.runner(inputs, headless=headless)


def _run(
    reference: Runner,
    candidate: Runner,
    battery: Battery,
    *,
    tolerance: Tolerance,
    task: str | None,
) -> tuple[OutputDifference, ...]:
    comparisons = {
        name: OutputComparison(
            name,
            tolerance,
            decision=decision_of(task, name),
            per_token=is_per_token(task, name),
        )
        for name in reference.outputs
    }
    for batch in battery.batches:
        compare_outputs(
            comparisons, batch, reference.run(batch.inputs), candidate.run(batch.inputs)
        )
    return tuple(comparison.result() for comparison in comparisons.values())


def _tolerance(precision: str, atol: float | None, rtol: float | None) -> Tolerance:
    default = TOLERANCES[precision]
    return Tolerance(default.atol if atol is None else atol, default.rtol if rtol is None else rtol)


def make_battery(
    reference: Subject,
    interface: ModelInterface,
    *,
    seed: int = 0,
    examples: Sequence[Batch] = (),
) -> Battery:
    """Build the battery for a subject, with what a language model's output takes in mind.

    Args:
        reference: What the task is read from.
        interface: What both sides take.
        seed: Of everything drawn at random.
        examples: The user's own inputs, appended.
    """
    language_model = reference.task in ("masked-lm", "causal-lm")
    return build_battery(
        interface,
        seed=seed,
        examples=examples,
        tokens_per_batch=LANGUAGE_MODEL_TOKENS if language_model else TOKENS_PER_BATCH,
    )


def compare_subjects(
    reference: Subject,
    candidate: Subject,
    *,
    battery: Battery | None = None,
    atol: float | None = None,
    rtol: float | None = None,
    seed: int = 0,
) -> ParityResult:
    """Compare two sides: their descriptions, their weights, and their outputs on the battery.

    Args:
        reference: What the candidate should be.
        candidate: What is judged.
        battery: What to run; None makes one.
        atol: Absolute tolerance; None is the precision's. If either tolerance is given, the
            weights of two folders are judged by them too; otherwise they must be equal.
        rtol: Relative tolerance; None is the precision's.
        seed: Of the battery that is made.

    Raises:
        ArgumentError: A graph takes an input that the battery cannot make.
        CheckpointError: A side cannot run the battery.
    """
    start = time.perf_counter()
    ours, theirs = interfaces(reference, candidate)
    headless = reference.headless != candidate.headless
    if headless and (isinstance(reference, OnnxSubject) or isinstance(candidate, OnnxSubject)):
        bare, other = (reference, candidate) if reference.headless else (candidate, reference)
        raise CheckpointError(
            f"{bare.path}: has no head, {other.path} has one; a graph can only be compared whole"
        )
    given = atol is not None or rtol is not None
    audit = _audit(
        reference,
        candidate,
        headless=headless,
        tolerance=_tolerance("fp32", atol, rtol) if given else None,
    )
    precision = _precision(audit)
    tolerance = _tolerance(precision, atol, rtol)
    outputs: tuple[OutputDifference, ...] = ()
    coverage = None
    if headless or set(ours.outputs) == set(theirs.outputs):
        if battery is None:
            battery = make_battery(reference, shared_interface(ours, theirs), seed=seed)
        coverage = battery.coverage
        outputs = _run(
            _runner(reference, ours.inputs, headless=headless),
            _runner(candidate, theirs.inputs, headless=headless),
            battery,
            tolerance=tolerance,
            task=None if headless else reference.task,
        )
    return ParityResult(
        reference=str(reference.path),
        candidate=str(candidate.path),
        mismatches=find_mismatches(reference, candidate, ours, theirs),
        weights=audit,
        outputs=outputs,
        tolerance=tolerance,
        precision="given" if given else precision,
        coverage=coverage,
        headless=headless,
        seconds=time.perf_counter() - start,
    )
