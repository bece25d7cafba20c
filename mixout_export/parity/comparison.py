"""The comparison as a whole: what both sides say of themselves, their weights, their outputs."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mixout_export.checkpoint.interface import ModelInterface
from mixout_export.errors import ArgumentError, CheckpointError
from mixout_export.parity.battery import (
    LANGUAGE_MODEL_TOKENS,
    TOKENS_PER_BATCH,
    VOCABULARY_BUDGET,
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
from mixout_export.parity.decision_limits import DECISION_LIMITS, DecisionLimits
from mixout_export.parity.decisions import DATA_BATCH
from mixout_export.parity.description import find_mismatches, interfaces, shared_interface
from mixout_export.parity.epsilons import different_epsilons
from mixout_export.parity.generation import GenerationParity, compare_generation
from mixout_export.parity.graph_weights import audit_graph, audit_graphs
from mixout_export.parity.result import ParityResult
from mixout_export.parity.served_description import can_be_asked
from mixout_export.parity.served_version import served_mismatches
from mixout_export.parity.subject import (
    Candidate,
    OnnxSubject,
    ServedSubject,
    Subject,
    TorchSubject,
    unused_tensors,
)
from mixout_export.parity.weights import WeightAudit, audit_folders
from mixout_export.runners.cache import CachedRunner
from mixout_export.runners.cached_graph import open_graph
from mixout_export.runners.onnx_runner import OnnxRunner
from mixout_export.runners.runner import Array, Runner
from mixout_export.tasks import known_task

#: One side's outputs of a batch, by name.
Outputs = Mapping[str, Array]

#: Is given the number of a batch and both sides' outputs.
Watch = Callable[[int, Outputs, Outputs], None]


def _audit_file(folder: TorchSubject, graph: Path) -> WeightAudit:
    return audit_graph(
        folder.folder.tensors,
        graph,
        parameters=folder.weights.parameters,
        unused=lambda: unused_tensors(folder),
    )


def audit_subjects(
    reference: Subject,
    candidate: Subject,
    *,
    headless: bool = False,
    tolerance: Tolerance | None = None,
) -> WeightAudit:
    """Account for every weight of one side in the other.

    Args:
        reference: What the weights should be.
        candidate: What they are.
        headless: Whether one side has no head: then only the body is compared.
        tolerance: How far the values of two folders may differ; None means not at all.

    Raises:
        CheckpointError: A graph's weights cannot be read.
    """
    if isinstance(reference, OnnxSubject):
        if isinstance(candidate, OnnxSubject):
            return audit_graphs(reference.graph, candidate.graph)
        return _audit_file(candidate, reference.graph)
    if isinstance(candidate, OnnxSubject):
        return _audit_file(reference, candidate.graph)
    return audit_folders(
        reference.weights, candidate.weights, headless=headless, tolerance=tolerance
    )


#: From the most to the least exact.
_PRECISIONS = ("fp32", "fp16", "bf16", "int8")


def _recorded_precision(subject: Candidate) -> str:
    """Return what a graph says of itself, or a server of its model; "" if nothing."""
    if isinstance(subject, OnnxSubject):
        return subject.session.metadata.get("precision", "")
    return subject.session.facts.precision if isinstance(subject, ServedSubject) else ""


def _precision(audit: WeightAudit | None, *subjects: Candidate) -> str:
    """Name what is allowed for: what a side says of itself, else what the weights show."""
    recorded = [_recorded_precision(subject) for subject in subjects]
    counts = () if audit is None else audit.counts
    shown = {name: any(name in how for how in counts) for name in ("fp16", "bf16", "int8")}
    return next(
        (name for name in reversed(_PRECISIONS) if name in recorded or shown.get(name)), "fp32"
    )


def runner_of(subject: Candidate, inputs: tuple[str, ...], *, headless: bool = False) -> Runner:
    """Return something that runs a side on `inputs`, or only its body."""
    if isinstance(subject, OnnxSubject | ServedSubject):
        return subject.session
    return subject.runner(inputs, headless=headless)


def comparisons_of(
    outputs: Sequence[str], *, tolerance: Tolerance | None, limits: DecisionLimits, task: str | None
) -> dict[str, OutputComparison]:
    """Return a comparison for each output, by its name, in which nothing is compared yet.

    Args:
        outputs: The outputs' names.
        tolerance: What values are judged by.
        limits: What the outputs as a whole are judged by.
        task: The task that decides from them; None where only bodies are compared.
    """
    return {
        name: OutputComparison(
            name,
            tolerance,
            limits=limits,
            decision=decision_of(task, name),
            per_token=is_per_token(task, name),
        )
        for name in outputs
    }


def _run(
    reference: Runner,
    candidate: Runner,
    battery: Battery,
    *,
    tolerance: Tolerance | None,
    limits: DecisionLimits,
    task: str | None,
    watch: Watch | None,
) -> tuple[OutputDifference, ...]:
    comparisons = comparisons_of(reference.outputs, tolerance=tolerance, limits=limits, task=task)
    for number, batch in enumerate(battery.batches):
        ours, theirs = reference.run(batch.inputs), candidate.run(batch.inputs)
        compare_outputs(comparisons, batch, ours, theirs)
        if watch is not None:
            watch(number, ours, theirs)
    return tuple(comparison.result() for comparison in comparisons.values())


def _tolerance(precision: str, atol: float | None, rtol: float | None) -> Tolerance | None:
    """Return what each value is judged by; None where the precision judges none of them."""
    default = TOLERANCES.get(precision)
    if default is None:
        if atol is None and rtol is None:
            return None
        default = Tolerance(atol=0.0, rtol=0.0)
    return Tolerance(default.atol if atol is None else atol, default.rtol if rtol is None else rtol)


def _decision_limits(precision: str, min_agreement: float | None) -> DecisionLimits:
    default = DECISION_LIMITS.get(precision, DecisionLimits())
    return default if min_agreement is None else replace(default, agreement=min_agreement)


def _generators(candidate: Candidate) -> tuple[OnnxRunner | None, CachedRunner | None]:
    """Return what generates without a cache and what does with one, where there is either.

    A server without a cache is left out: all that it does is read, as it does in the battery.
    """
    if isinstance(candidate, ServedSubject):
        return None, candidate.session.cached
    if not isinstance(candidate, OnnxSubject):
        return None, None
    graphs = [candidate.session]
    if candidate.cached_graph is not None:
        graphs.append(open_graph(candidate.cached_graph, provider=candidate.provider))
    plain = next((graph for graph in graphs if isinstance(graph, OnnxRunner)), None)
    cached = next((graph for graph in graphs if isinstance(graph, CachedRunner)), None)
    return plain, cached


def _generate(
    reference: Subject,
    candidate: Candidate,
    *,
    tolerance: Tolerance | None,
    limits: DecisionLimits,
    examples: Sequence[Batch],
    seed: int,
) -> GenerationParity | None:
    """Let a causal language model generate against its graphs; None for anything else."""
    task = known_task(reference.task)
    if task is None or not task.generates or not isinstance(reference, TorchSubject):
        return None
    plain, cached = _generators(candidate)
    if plain is None and cached is None:
        return None
    found = compare_generation(
        reference.model,
        reference.interface,
        plain=plain,
        cached=cached,
        tolerance=tolerance,
        limits=limits,
        examples=examples,
        seed=seed,
    )
    path = candidate.cached_graph if isinstance(candidate, OnnxSubject) else None
    return found if path is None else replace(found, weights=_audit_file(reference, path))


def check_agreement(least: float | None) -> None:
    """Refuse a share of decisions that is none.

    Raises:
        ArgumentError: It is outside [0, 1].
    """
    if least is not None and not 0.0 <= least <= 1.0:
        raise ArgumentError(f"min-agreement: got {least!r}, expected a share in [0, 1]")


def make_battery(
    reference: Subject,
    interface: ModelInterface,
    *,
    seed: int = 0,
    examples: Sequence[Batch] = (),
    vocabulary_budget: int = VOCABULARY_BUDGET,
) -> Battery:
    """Build the battery for a subject, with what a language model's output takes in mind.

    Args:
        reference: What the task is read from.
        interface: What both sides take.
        seed: Of everything drawn at random.
        examples: The user's own inputs, appended.
        vocabulary_budget: Most vocabulary ids to cover.
    """
    task = known_task(reference.task)
    language_model = task is not None and task.over_vocabulary
    return build_battery(
        interface,
        seed=seed,
        examples=examples,
        vocabulary_budget=vocabulary_budget,
        tokens_per_batch=LANGUAGE_MODEL_TOKENS if language_model else TOKENS_PER_BATCH,
    )


def _check_heads(reference: Subject, candidate: Candidate) -> bool:
    """Tell whether one side alone has no head, and both are folders.

    Raises:
        CheckpointError: They are not: of a graph the body cannot be run alone.
    """
    if reference.headless == candidate.headless:
        return False
    if isinstance(reference, TorchSubject) and isinstance(candidate, TorchSubject):
        return True
    bare, other = (reference, candidate) if reference.headless else (candidate, reference)
    raise CheckpointError(
        f"{bare.path}: has no head, {other.path} has one; a graph can only be compared whole"
    )


def _can_compare(ours: ModelInterface, theirs: ModelInterface, candidate: Candidate) -> bool:
    """Tell whether the outputs that both sides give can be compared."""
    if isinstance(candidate, ServedSubject):
        return can_be_asked(candidate.session, ours)
    return set(ours.outputs) == set(theirs.outputs)


def _mismatches(
    reference: Subject, candidate: Candidate, ours: ModelInterface, theirs: ModelInterface
) -> tuple[str, ...]:
    found = find_mismatches(reference, candidate, ours, theirs)
    if not isinstance(candidate, ServedSubject):
        return found
    runner = runner_of(reference, ours.inputs)
    return (*served_mismatches(reference, runner, candidate.session, ours), *found)


def compare_subjects(
    reference: Subject,
    candidate: Candidate,
    *,
    battery: Battery | None = None,
    atol: float | None = None,
    rtol: float | None = None,
    min_agreement: float | None = None,
    seed: int = 0,
    watch: Watch | None = None,
) -> ParityResult:
    """Compare two sides: their descriptions, their weights, and their outputs on the battery.

    Args:
        reference: What the candidate should be.
        candidate: What is judged.
        battery: What to run; None makes one.
        atol: Absolute tolerance; None is the precision's. If either tolerance is given, the
            weights of two folders are judged by them too; otherwise they must be equal.
        rtol: Relative tolerance; None is the precision's.
        min_agreement: Least share of equal decisions; None is the precision's, which only int8 has.
        seed: Of the battery that is made, and of the prompts that a language model continues.
        watch: Is given the number of each batch and both sides' outputs, as they come.

    Raises:
        ArgumentError: A graph takes an input that the battery cannot make.
        CheckpointError: A side cannot run the battery.
    """
    start = time.perf_counter()
    ours, theirs = interfaces(reference, candidate)
    headless = _check_heads(reference, candidate)
    given = atol is not None or rtol is not None
    audit = None
    if not isinstance(candidate, ServedSubject):
        audit = audit_subjects(
            reference,
            candidate,
            headless=headless,
            tolerance=_tolerance("fp32", atol, rtol) if given else None,
        )
    precision = _precision(audit, reference, candidate)
    limits = _decision_limits(precision, min_agreement)
    tolerance = _tolerance(precision, atol, rtol)
    outputs: tuple[OutputDifference, ...] = ()
    coverage = generation = None
    if headless or _can_compare(ours, theirs, candidate):
        if battery is None:
            battery = make_battery(reference, shared_interface(ours, theirs), seed=seed)
        coverage = battery.coverage
        generation = _generate(
            reference,
            candidate,
            tolerance=tolerance,
            limits=limits,
            examples=[batch for batch in battery.batches if batch.name == DATA_BATCH],
            seed=seed,
        )
        outputs = _run(
            runner_of(reference, ours.inputs, headless=headless),
            runner_of(candidate, theirs.inputs, headless=headless),
            battery,
            tolerance=tolerance,
            limits=limits,
            task=None if headless else reference.task,
            watch=watch,
        )
    return ParityResult(
        reference=str(reference.path),
        candidate=str(candidate.path),
        mismatches=_mismatches(reference, candidate, ours, theirs),
        weights=audit,
        outputs=outputs,
        tolerance=tolerance,
        limits=limits,
        precision="given" if given else precision,
        coverage=coverage,
        headless=headless,
        generation=generation,
        settings=() if given else different_epsilons(reference, candidate),
        seconds=time.perf_counter() - start,
    )
