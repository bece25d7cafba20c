"""Compare two artifacts: their descriptions, their weights and their outputs."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mixout_export.checkpoint.artifact import Artifact, Generators, LocalArtifact
from mixout_export.checkpoint.folder import PlainCheckpoint
from mixout_export.checkpoint.interface import ModelInterface, shared_interface
from mixout_export.checkpoint.model_inputs import Batch
from mixout_export.errors import ArgumentError, CheckpointError
from mixout_export.parity.battery import (
    LANGUAGE_MODEL_TOKENS,
    TOKENS_PER_BATCH,
    VOCABULARY_BUDGET,
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
from mixout_export.parity.description import different_epsilons, find_mismatches, interfaces
from mixout_export.parity.generation import GenerationParity, compare_generation
from mixout_export.parity.graph_weights import audit_graph, audit_graphs
from mixout_export.parity.result import ParityResult
from mixout_export.parity.weights import WeightAudit, audit_folders, weights_of
from mixout_export.runners.runner import Array, Runner
from mixout_export.tasks import known_task

#: The outputs of one side for one batch, by name.
Outputs = Mapping[str, Array]

#: A function that is called with the number of each batch and the outputs of both sides.
Watch = Callable[[int, Outputs, Outputs], None]


def _audit_file(checkpoint: PlainCheckpoint, graph: Path) -> WeightAudit:
    return audit_graph(
        checkpoint.tensors,
        graph,
        parameters=checkpoint.parameter_keys,
        unused=lambda: checkpoint.unused_keys,
    )


def audit_weights(
    reference: LocalArtifact,
    candidate: Artifact,
    *,
    headless: bool = False,
    tolerance: Tolerance | None = None,
) -> WeightAudit | None:
    """Account for every weight of one side in the other.

    Args:
        reference: The side with the right weights.
        candidate: The side that is checked.
        headless: Whether one side has no head, so that only the bodies are compared.
        tolerance: How far the values of two folders may differ; None means not at all.

    Returns:
        The audit; None for a server, which does not show its weights.

    Raises:
        CheckpointError: A graph's weights cannot be read.
    """
    ours, theirs = reference.checkpoint, candidate.checkpoint
    if ours is not None and theirs is not None:
        return audit_folders(
            weights_of(ours), weights_of(theirs), headless=headless, tolerance=tolerance
        )
    if ours is not None and candidate.graph is not None:
        return _audit_file(ours, candidate.graph)
    if theirs is not None and reference.graph is not None:
        return _audit_file(theirs, reference.graph)
    if reference.graph is not None and candidate.graph is not None:
        return audit_graphs(reference.graph, candidate.graph)
    return None


#: From the most to the least exact.
_PRECISIONS = ("fp32", "fp16", "bf16", "int8")


def _precision(audit: WeightAudit | None, *sides: Artifact) -> str:
    """Return the precision to allow for: the one recorded, else the one the weights show."""
    recorded = [side.precision for side in sides]
    counts = () if audit is None else audit.counts
    shown = {name: any(name in how for how in counts) for name in ("fp16", "bf16", "int8")}
    return next(
        (name for name in reversed(_PRECISIONS) if name in recorded or shown.get(name)), "fp32"
    )


def comparisons_of(
    outputs: Sequence[str], *, tolerance: Tolerance | None, limits: DecisionLimits, task: str | None
) -> dict[str, OutputComparison]:
    """Return an empty comparison for each output, by its name.

    Args:
        outputs: The outputs' names.
        tolerance: Largest difference of single values.
        limits: Limits for each output as a whole.
        task: Name of the task; None if only bodies are compared.
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
    """Return the tolerance of single values; None if the precision has none."""
    default = TOLERANCES.get(precision)
    if default is None:
        if atol is None and rtol is None:
            return None
        default = Tolerance(atol=0.0, rtol=0.0)
    return Tolerance(default.atol if atol is None else atol, default.rtol if rtol is None else rtol)


def _decision_limits(precision: str, min_agreement: float | None) -> DecisionLimits:
    default = DECISION_LIMITS.get(precision, DecisionLimits())
    return default if min_agreement is None else replace(default, agreement=min_agreement)


def _generate(
    reference: LocalArtifact,
    candidate: Artifact,
    *,
    tolerance: Tolerance | None,
    limits: DecisionLimits,
    examples: Sequence[Batch],
    seed: int,
) -> GenerationParity | None:
    """Compare generation of a causal language model with its graphs; None for other models."""
    checkpoint, graphs = reference.checkpoint, candidate.generators()
    if checkpoint is None or checkpoint.task is None or not checkpoint.task.generates:
        return None
    if graphs == Generators():
        return None
    found = compare_generation(
        checkpoint.model,
        checkpoint.interface,
        plain=graphs.plain,
        cached=graphs.cached,
        tolerance=tolerance,
        limits=limits,
        examples=examples,
        seed=seed,
    )
    path = candidate.cached_graph
    return found if path is None else replace(found, weights=_audit_file(checkpoint, path))


def check_agreement(least: float | None) -> None:
    """Refuse a share of decisions that is not between 0 and 1.

    Raises:
        ArgumentError: It is outside [0, 1].
    """
    if least is not None and not 0.0 <= least <= 1.0:
        raise ArgumentError(f"min-agreement: got {least!r}, expected a share in [0, 1]")


def make_battery(
    reference: Artifact,
    interface: ModelInterface,
    *,
    seed: int = 0,
    examples: Sequence[Batch] = (),
    vocabulary_budget: int = VOCABULARY_BUDGET,
) -> Battery:
    """Build the battery. For language models, whose outputs are large, batches are smaller.

    Args:
        reference: The side whose task counts.
        interface: What both sides take.
        seed: Seed of all random numbers.
        examples: The user's own inputs, appended.
        vocabulary_budget: Most vocabulary ids to cover.
    """
    task = known_task(reference.task_name)
    language_model = task is not None and task.over_vocabulary
    return build_battery(
        interface,
        seed=seed,
        examples=examples,
        vocabulary_budget=vocabulary_budget,
        tokens_per_batch=LANGUAGE_MODEL_TOKENS if language_model else TOKENS_PER_BATCH,
    )


def _check_heads(reference: LocalArtifact, candidate: Artifact) -> bool:
    """Tell whether one side alone has no head, so that only the bodies are compared.

    Raises:
        CheckpointError: One side alone has no head, and the body of one cannot be run alone.
    """
    if reference.headless == candidate.headless:
        return False
    if reference.checkpoint and candidate.checkpoint:
        return True
    sides = (reference, candidate) if reference.headless else (candidate, reference)
    bare, other = (side.where for side in sides)
    raise CheckpointError(
        f"{bare}: has no head, {other} has one; a graph can only be compared whole"
    )


def compare_artifacts(
    reference: LocalArtifact,
    candidate: Artifact,
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
        reference: The side that is right by definition.
        candidate: The side that is checked.
        battery: The inputs to run; None builds them.
        atol: Absolute tolerance; None uses the default of the precision. If either tolerance is
            given, it also applies to the weights of two folders, which otherwise must be equal.
        rtol: Relative tolerance; None uses the default of the precision.
        min_agreement: Smallest share of equal decisions; None uses the default of the precision,
            which only int8 has.
        seed: Seed of the battery, and of the prompts that a language model continues.
        watch: Called with the number of each batch and the outputs of both sides.

    Raises:
        ArgumentError: A graph takes an input that the battery cannot make.
        CheckpointError: A side cannot run the battery.
    """
    start = time.perf_counter()
    ours, theirs = interfaces(reference, candidate)
    headless = _check_heads(reference, candidate)
    given = atol is not None or rtol is not None
    audit = audit_weights(
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
    if headless or candidate.can_answer(ours, theirs):
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
            reference.runner(ours.inputs, headless=headless),
            candidate.runner(theirs.inputs, headless=headless),
            battery,
            tolerance=tolerance,
            limits=limits,
            task=None if headless else reference.task_name,
            watch=watch,
        )
    return ParityResult(
        reference=reference.where,
        candidate=candidate.where,
        mismatches=find_mismatches(reference, candidate, ours, theirs),
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
