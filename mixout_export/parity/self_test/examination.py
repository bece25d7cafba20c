"""Inject each fault into a copy of the candidate, and see which checks catch it."""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from mixout_export.checkpoint.artifact import Artifact, LocalArtifact
from mixout_export.checkpoint.interface import shared_interface
from mixout_export.errors import CheckpointError
from mixout_export.parity.battery import Battery
from mixout_export.parity.compare import OutputDifference
from mixout_export.parity.comparison import audit_weights, comparisons_of
from mixout_export.parity.description import different_epsilons, find_mismatches, interfaces
from mixout_export.parity.drift import DRIFT_TOLERANCES, draw_drift, pick_batch
from mixout_export.parity.result import ParityResult
from mixout_export.parity.self_test.faults import FAULTS, Copier, Fault, NotApplicableError
from mixout_export.parity.self_test.folder_copy import FolderCopier
from mixout_export.parity.self_test.graph_copy import GraphCopier
from mixout_export.parity.self_test.outcome import FaultOutcome, SelfTest
from mixout_export.runners.runner import Array

#: Bytes of the reference's outputs that are kept; what is beyond is computed again.
_KEPT_OUTPUTS = 1 << 30

#: Tensors of the audit that are named.
_NAMED = 3


class ReferenceOutputs:
    """The reference's outputs, kept while it is compared with the candidate itself."""

    def __init__(self, limit: int = _KEPT_OUTPUTS) -> None:
        """Start with none.

        Args:
            limit: Bytes to keep.
        """
        self._kept: dict[int, dict[str, Array]] = {}
        self._left = limit

    def __call__(
        self, number: int, reference: Mapping[str, Array], candidate: Mapping[str, Array]
    ) -> None:
        """Take a batch's outputs, as `compare_artifacts` hands them to who watches."""
        size = sum(value.nbytes for value in reference.values())
        if size <= self._left:
            self._left -= size
            self._kept[number] = dict(reference)

    def get(self, number: int, compute: Callable[[], Mapping[str, Array]]) -> Mapping[str, Array]:
        """Return a batch's outputs, computed where they were not kept."""
        kept = self._kept.get(number)
        return compute() if kept is None else kept


class _Examiner:
    """Judges copies of a candidate as the candidate itself was judged."""

    def __init__(
        self,
        reference: LocalArtifact,
        candidate: Artifact,
        *,
        battery: Battery,
        verdict: ParityResult,
        outputs: ReferenceOutputs,
    ) -> None:
        self._reference = reference
        self._candidate = candidate
        self._battery = battery
        self._verdict = verdict
        self._outputs = outputs
        ours, theirs = interfaces(reference, candidate)
        self._interface = ours
        self._runner = reference.runner(ours.inputs, headless=verdict.headless)
        self._copier: Copier
        if candidate.checkpoint is not None:
            self._copier = FolderCopier(candidate.checkpoint)
        else:
            limit = shared_interface(ours, theirs).sequence_limit
            self._copier = GraphCopier(candidate, limit)

    @property
    def _labels(self) -> Sequence[str] | None:
        """The candidate's labels, where the reference can contradict them."""
        return None if self._reference.labels is None else self._candidate.labels

    def examine(self, faults: Sequence[Fault], folder: Path) -> Iterator[FaultOutcome]:
        """Inject each fault and judge the copy, which is removed once there is another."""
        previous: Path | None = None
        for number, fault in enumerate(faults):
            copy = folder / str(number)
            yield self._examine(fault, copy)
            if copy.exists():
                if previous is not None:
                    shutil.rmtree(previous)
                previous = copy

    def _examine(self, fault: Fault, out: Path) -> FaultOutcome:
        start = time.perf_counter()
        outcome = FaultOutcome(fault.name, changes_outputs=fault.changes_outputs)
        try:
            path, what = fault.inject(self._copier, out, self._labels)
        except NotApplicableError as error:
            return replace(outcome, not_applicable=str(error))
        copy = self._candidate.reopen(path)
        failed = self._run(copy) if fault.changes_outputs else None
        return replace(
            outcome,
            what=what,
            labels=self._describe(copy),
            settings=self._settings(copy),
            audit=self._audit(copy),
            battery="" if failed is None else _where(failed),
            drift="" if failed is None else self._drift(copy, failed),
            seconds=time.perf_counter() - start,
        )

    def _drift(self, copy: Artifact, failed: OutputDifference) -> str:
        """Return the first module that leaves the tolerance, "" if none does or none is known."""
        if not (self._reference.knows_modules and copy.knows_modules):
            return ""
        first = draw_drift(
            self._reference,
            copy,
            pick_batch(self._battery.batches, [failed]),
            tolerance=DRIFT_TOLERANCES.get(self._verdict.precision, DRIFT_TOLERANCES["fp32"]),
            headless=self._verdict.headless,
        ).first
        return "" if first is None else first.label

    def _describe(self, copy: Artifact) -> str:
        ours, theirs = interfaces(self._reference, copy)
        return next(iter(find_mismatches(self._reference, copy, ours, theirs)), "")

    def _settings(self, copy: Artifact) -> str:
        if self._verdict.precision == "given":
            return ""
        return next(iter(different_epsilons(self._reference, copy)), "")

    def _audit(self, copy: Artifact) -> str:
        verdict = self._verdict
        audit = audit_weights(
            self._reference,
            copy,
            headless=verdict.headless,
            tolerance=verdict.tolerance if verdict.precision == "given" else None,
        )
        keys = [problem.key for problem in audit.problems] if audit is not None else []
        return ", ".join(keys[:_NAMED]) + (", …" if len(keys) > _NAMED else "")

    def _run(self, copy: Artifact) -> OutputDifference | None:
        """Run the battery until an output fails, and return that; None if none does."""
        verdict = self._verdict
        _, theirs = interfaces(self._reference, copy)
        runner = copy.runner(theirs.inputs, headless=verdict.headless)
        comparisons = comparisons_of(
            self._runner.outputs,
            tolerance=verdict.tolerance,
            limits=verdict.limits,
            task=None if verdict.headless else self._reference.task_name,
        )
        for number, batch in enumerate(self._battery.batches):
            ours = self._outputs.get(number, partial(self._runner.run, batch.inputs))
            outputs = runner.run(batch.inputs)
            for name, comparison in comparisons.items():
                comparison.add(batch, ours[name], outputs[name])
            for comparison in comparisons.values():
                found = comparison.result()
                if found.exceeding or found.problem:
                    return found
        results = (comparison.result() for comparison in comparisons.values())
        return next((found for found in results if not found.holds), None)


def _where(output: OutputDifference) -> str:
    """Return where an output failed, for people: "logits differs by up to 0.012 in 'positions'"."""
    if output.problem or output.shortfall:
        return f"{output.name} {output.problem or output.shortfall}"
    return (
        f"{output.name} differs by up to {output.max_abs:.3g} in the {output.worst_batch!r} test "
        f"inputs, in a batch of shape {output.worst_shape}"
    )


def self_test(
    reference: LocalArtifact,
    candidate: Artifact,
    *,
    battery: Battery,
    verdict: ParityResult,
    outputs: ReferenceOutputs,
    faults: Sequence[Fault] = FAULTS,
) -> SelfTest:
    """Inject known faults into copies of the candidate, and see which checks catch them.

    Args:
        reference: What the candidate should be.
        candidate: What was judged; it is left alone.
        battery: What was run.
        verdict: The comparison of the two, which holds: its tolerances judge the copies.
        outputs: The reference's outputs of that comparison.
        faults: What to inject, one at a time.

    Raises:
        CheckpointError: The candidate cannot be copied or a copy cannot be run.
    """
    start = time.perf_counter()
    examiner = _Examiner(reference, candidate, battery=battery, verdict=verdict, outputs=outputs)
    try:
        with tempfile.TemporaryDirectory(prefix="mixout-export-") as folder:
            outcomes = tuple(examiner.examine(faults, Path(folder)))
    except OSError as error:
        raise CheckpointError(
            f"{candidate.where}: cannot be copied into {tempfile.gettempdir()} for the self-test "
            f"({error.strerror}); set TMPDIR to a disk with room"
        ) from error
    return SelfTest(outcomes, time.perf_counter() - start)
