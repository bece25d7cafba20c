"""Compare two sides: their descriptions, their weights, and their outputs."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mixout_export.checkpoint.artifact import Artifact, Generators, LocalArtifact
from mixout_export.checkpoint.interface import shared_interface
from mixout_export.checkpoint.model_inputs import Batch
from mixout_export.checkpoint.plain import PlainCheckpoint
from mixout_export.errors import ArgumentError, CheckpointError
from mixout_export.parity.battery import Battery, build_battery
from mixout_export.parity.compare import (
    TOLERANCES,
    OutputComparison,
    OutputDifference,
    Tolerance,
    decision_of,
    is_per_token,
)
from mixout_export.parity.decisions import DATA_BATCH, DECISION_LIMITS, DecisionLimits
from mixout_export.parity.description import different_epsilons, find_mismatches, interfaces
from mixout_export.parity.generation import GenerationParity, compare_generation
from mixout_export.parity.graph_weights import audit_graph, audit_graphs
from mixout_export.parity.padding import InHalf, check_padding
from mixout_export.parity.result import IN_HALF, ParityResult
from mixout_export.parity.weights import WeightAudit, audit_folders, weights_of
from mixout_export.runners.runner import Array

#: One side's outputs of a batch, by name.
Outputs = Mapping[str, Array]

#: Is called with the number of a batch and both sides' outputs.
Watch = Callable[[int, Outputs, Outputs], None]


#: How many times the tolerance a graph may differ whose every result is rounded to fp16.
_ROUNDING = 4.0


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
    """Search every weight of one side in the other; None for a server, which does not show weights.

    `tolerance` says how far the values of two folders may differ; None means not at all.

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
    """Return the least precise dtype that a side records or that the weights show."""
    recorded = [side.precision for side in sides]
    counts = () if audit is None else audit.counts
    shown = {name: any(name in how for how in counts) for name in ("fp16", "bf16", "int8")}
    return next(
        (name for name in reversed(_PRECISIONS) if name in recorded or shown.get(name)), "fp32"
    )


def comparisons_of(
    outputs: Sequence[str], *, tolerance: Tolerance | None, limits: DecisionLimits, task: str | None
) -> dict[str, OutputComparison]:
    """Return a new comparison for each output, by name; no task means that only bodies are run."""
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


def _tolerance(precision: str, atol: float | None, rtol: float | None) -> Tolerance | None:
    """Return the tolerance for each value; None if the precision has none."""
    default = TOLERANCES.get(precision)
    if default is None and atol is None and rtol is None:
        return None
    default = default or Tolerance(atol=0.0, rtol=0.0)
    return Tolerance(default.atol if atol is None else atol, default.rtol if rtol is None else rtol)


def _generate(
    reference: LocalArtifact,
    candidate: Artifact,
    *,
    tolerance: Tolerance | None,
    limits: DecisionLimits,
    examples: Sequence[Batch],
    seed: int,
) -> GenerationParity | None:
    """Compare what a causal language model and its graphs generate; None for other tasks."""
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
    """Refuse a smallest share of equal decisions that is not in [0, 1]."""
    if least is not None and not 0.0 <= least <= 1.0:
        raise ArgumentError(f"min-agreement: got {least!r}, expected a share in [0, 1]")


def _scaled(tolerance: Tolerance | None) -> Tolerance | None:
    """Return the tolerance where each result is rounded to fp16."""
    if tolerance is None:
        return None
    return Tolerance(_ROUNDING * tolerance.atol, _ROUNDING * tolerance.rtol)


class _Rounding:
    """Compares what an fp16 graph computes on a GPU, where each result is rounded to fp16."""

    def __init__(
        self,
        candidate: Artifact,
        outputs: Sequence[str],
        tolerance: Tolerance | None,
        task: str | None,
    ) -> None:
        self._runner = candidate.half_runner()
        self._tolerance = tolerance = _scaled(tolerance)
        limits = DecisionLimits()
        self._comparisons = comparisons_of(outputs, tolerance=tolerance, limits=limits, task=task)

    def add(self, batch: Batch, expected: Outputs) -> None:
        """Run a batch and compare it with the reference's outputs."""
        if self._runner is not None:
            found = self._runner.run(batch.inputs)
            for name, comparison in self._comparisons.items():
                comparison.add(batch, expected[name], found[name])

    @property
    def graph(self) -> InHalf | None:
        """The graph with this rounding; None if the candidate is not an fp16 graph on a CPU."""
        if self._runner is None:
            return None
        return InHalf(self._runner, self._tolerance, IN_HALF)

    def result(self) -> tuple[OutputDifference, ...]:
        """Return the differences; () if the candidate is not an fp16 graph on a CPU."""
        if self._runner is None:
            return ()
        found = [comparison.result() for comparison in self._comparisons.values()]
        return tuple(replace(each, name=f"{each.name} {IN_HALF}") for each in found)


def _loosest(given: Tolerance | None, precision: str) -> Tolerance | None:
    """Return how far the result of a row may move, at least by what rounding explains."""
    usual = TOLERANCES.get(precision)
    if given is None or usual is None:
        return given
    return Tolerance(max(given.atol, usual.atol), max(given.rtol, usual.rtol))


def _check_heads(reference: LocalArtifact, candidate: Artifact) -> bool:
    """Return whether only one side has a head, so that only the bodies are compared.

    Raises:
        CheckpointError: That is so, but a graph has no body that can be run separately.
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
        reference: What the candidate should be.
        candidate: The side to judge.
        battery: The inputs to run; None builds them.
        atol: Absolute tolerance; None takes the precision's. With either tolerance, the weights of
            two folders may differ that much too; otherwise they must be equal.
        rtol: Relative tolerance; None takes the precision's.
        min_agreement: Smallest share of equal decisions; None takes the precision's. Only int8 has
            one.
        seed: Random seed of the battery, if it is built here, and of the prompts to continue.
        watch: Is called with the number of each batch and both sides' outputs.

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
    limits = DECISION_LIMITS.get(precision, DecisionLimits())
    if min_agreement is not None:
        limits = limits.accepting(min_agreement)
    tolerance = _tolerance(precision, atol, rtol)
    outputs: tuple[OutputDifference, ...] = ()
    in_half: tuple[OutputDifference, ...] = ()
    coverage = generation = padding = None
    if headless or candidate.can_answer(ours, theirs):
        shared = shared_interface(ours, theirs)
        if battery is None:
            battery = build_battery(shared, task=reference.task_name, seed=seed)
        coverage = battery.coverage
        examples = [batch for batch in battery.batches if batch.name == DATA_BATCH]
        generation = _generate(
            reference,
            candidate,
            tolerance=tolerance,
            limits=limits,
            examples=examples,
            seed=seed,
        )
        left = reference.runner(ours.inputs, headless=headless)
        right = candidate.runner(theirs.inputs, headless=headless)
        task = None if headless else reference.task_name
        comparisons = comparisons_of(left.outputs, tolerance=tolerance, limits=limits, task=task)
        rounding = _Rounding(candidate, left.outputs, tolerance, task)
        for number, batch in enumerate(battery.batches):
            expected, found = left.run(batch.inputs), right.run(batch.inputs)
            for name, comparison in comparisons.items():
                comparison.add(batch, expected[name], found[name])
            rounding.add(batch, expected)
            if watch is not None:
                watch(number, expected, found)
        outputs = tuple(comparison.result() for comparison in comparisons.values())
        in_half = rounding.result()
        padding = check_padding(
            right,
            shared,
            reference=left,
            task=task,
            tolerance=_loosest(tolerance, precision),
            in_half=rounding.graph,
            data=examples,
            seed=seed,
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
        in_half=in_half,
        padding=padding,
        generation=generation,
        settings=() if given else different_epsilons(reference, candidate),
        seconds=time.perf_counter() - start,
    )
