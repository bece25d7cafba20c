"""Inject each fault into a copy of the candidate, and see which checks catch it."""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from mixout_export.checkpoint.artifact import Artifact, LocalArtifact
from mixout_export.checkpoint.interface import shared_interface
from mixout_export.errors import CheckpointError
from mixout_export.parity.battery import Battery
from mixout_export.parity.compare import OutputDifference, Tolerance
from mixout_export.parity.comparison import audit_weights, comparisons_of
from mixout_export.parity.description import different_epsilons, find_mismatches, interfaces
from mixout_export.parity.drift import DRIFT_TOLERANCES, draw_drift, pick_batch
from mixout_export.parity.padded_rows import LEFT, SIDES
from mixout_export.parity.padding import check_padding
from mixout_export.parity.result import ParityResult
from mixout_export.parity.self_test.faults import FAULTS, Copier, Fault, NotApplicableError
from mixout_export.parity.self_test.folder_copy import FolderCopier
from mixout_export.parity.self_test.graph_copy import GraphCopier
from mixout_export.parity.self_test.outcome import FaultOutcome, SelfTest
from mixout_export.runners.runner import Array, Runner

#: Bytes of the reference's outputs that are kept; the others are computed again.
_KEPT_OUTPUTS = 1 << 30

#: How many of the tensors that the audit reported are named.
_NAMED = 3


class ReferenceOutputs:
    """The reference's outputs, kept while it is compared with the candidate itself."""

    def __init__(self, limit: int = _KEPT_OUTPUTS) -> None:
        """Start without outputs; `limit` is the number of bytes to keep."""
        self._kept: dict[int, dict[str, Array]] = {}
        self._left = limit

    def __call__(
        self, number: int, reference: Mapping[str, Array], candidate: Mapping[str, Array]
    ) -> None:
        """Keep a batch's outputs, if there is room. `compare_artifacts` calls this."""
        size = sum(value.nbytes for value in reference.values())
        if size <= self._left:
            self._left -= size
            self._kept[number] = dict(reference)

    def get(self, number: int, compute: Callable[[], Mapping[str, Array]]) -> Mapping[str, Array]:
        """Return a batch's outputs, and compute them if they were not kept."""
        kept = self._kept.get(number)
        return compute() if kept is None else kept


@dataclass(frozen=True)
class _Examiner:
    """Judges copies of a candidate as the candidate itself was judged; see `self_test`."""

    reference: LocalArtifact
    candidate: Artifact
    battery: Battery
    verdict: ParityResult
    outputs: ReferenceOutputs

    @cached_property
    def copier(self) -> Copier:
        """What writes changed copies of the candidate."""
        if self.candidate.checkpoint is not None:
            return FolderCopier(self.candidate.checkpoint)
        limit = shared_interface(*interfaces(self.reference, self.candidate)).sequence_limit
        return GraphCopier(self.candidate, limit)

    @cached_property
    def runner(self) -> Runner:
        """The reference's runner."""
        ours, _ = interfaces(self.reference, self.candidate)
        return self.reference.runner(ours.inputs, headless=self.verdict.headless)

    def examine(self, faults: Sequence[Fault], folder: Path) -> Iterator[FaultOutcome]:
        """Inject each fault and judge the copy, which is removed when the next one exists."""
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
        outcome = FaultOutcome(
            fault.name, changes_outputs=fault.changes_outputs, about_padding=fault.about_padding
        )
        try:
            tolerance = self._padding_tolerance() if fault.about_padding else None
            # labels only count if the reference can contradict them
            labels = None if self.reference.labels is None else self.candidate.labels
            path, what = fault.inject(self.copier, out, labels)
        except NotApplicableError as error:
            return replace(outcome, not_applicable=str(error))
        copy = self.candidate.reopen(path)
        mismatches = find_mismatches(self.reference, copy, *interfaces(self.reference, copy))
        given = self.verdict.precision == "given"
        epsilons = () if given else different_epsilons(self.reference, copy)
        failed = self._run(copy) if fault.changes_outputs else None
        padding = "" if tolerance is None else self._padding(copy, tolerance)
        if fault.about_padding and not (padding or failed or self._judges(LEFT)):
            # what follows a text does not reach it in a decoder
            return replace(outcome, not_applicable="no result that is judged depends on padding")
        return replace(
            outcome,
            what=what,
            labels=next(iter(mismatches), ""),
            settings=next(iter(epsilons), ""),
            audit=self._audit(copy),
            battery="" if failed is None else _where(failed),
            drift="" if failed is None else self._drift(copy, failed),
            padding=padding,
            seconds=time.perf_counter() - start,
        )

    def _drift(self, copy: Artifact, failed: OutputDifference) -> str:
        """Return the first module beyond the tolerance; "" if no module is, or if it is unknown."""
        if not (self.reference.knows_modules and copy.knows_modules):
            return ""
        first = draw_drift(
            self.reference,
            copy,
            pick_batch(self.battery.batches, [failed]),
            tolerance=DRIFT_TOLERANCES.get(self.verdict.precision, DRIFT_TOLERANCES["fp32"]),
            headless=self.verdict.headless,
        ).first
        return "" if first is None else first.label

    def _judges(self, *sides: str) -> bool:
        """Return whether padding on one of these sides was judged in the comparison."""
        check = self.verdict.padding
        return check is not None and any(e.judged and e.around in sides for e in check.effects)

    def _padding_tolerance(self) -> Tolerance:
        """Return how far results may move around padding.

        Raises:
            NotApplicableError: The comparison did not judge padding.
        """
        check = self.verdict.padding
        tolerances = () if check is None else (each.tolerance for each in check.effects)
        tolerance = next(filter(None, tolerances), None)
        if tolerance is None or not self._judges(*SIDES):
            why = "" if check is None else check.not_padded
            raise NotApplicableError(why or "its padding is not judged")
        return tolerance

    def _padding(self, copy: Artifact, tolerance: Tolerance) -> str:
        """Return when the result of a row depends on padding; "" if it does not."""
        ours, theirs = interfaces(self.reference, copy)
        found = check_padding(
            copy.runner(theirs.inputs, headless=self.verdict.headless),
            shared_interface(ours, theirs),
            reference=self.runner,
            task=None if self.verdict.headless else self.reference.task_name,
            tolerance=tolerance,
        )
        failed = [effect.title for effect in found.effects if not effect.holds]
        return f"a row changes when it is {' or '.join(failed)}" if failed else ""

    def _audit(self, copy: Artifact) -> str:
        verdict = self.verdict
        audit = audit_weights(
            self.reference,
            copy,
            headless=verdict.headless,
            tolerance=verdict.tolerance if verdict.precision == "given" else None,
        )
        keys = [problem.key for problem in audit.problems] if audit is not None else []
        return ", ".join(keys[:_NAMED]) + (", …" if len(keys) > _NAMED else "")

    def _run(self, copy: Artifact) -> OutputDifference | None:
        """Run the battery until an output fails, and return it; None if all hold."""
        verdict = self.verdict
        _, theirs = interfaces(self.reference, copy)
        runner = copy.runner(theirs.inputs, headless=verdict.headless)
        comparisons = comparisons_of(
            self.runner.outputs,
            tolerance=verdict.tolerance,
            limits=verdict.limits,
            task=None if verdict.headless else self.reference.task_name,
        )
        for number, batch in enumerate(self.battery.batches):
            ours = self.outputs.get(number, partial(self.runner.run, batch.inputs))
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
        reference: The reference of the comparison.
        candidate: The candidate. It is not changed.
        battery: The test inputs.
        verdict: The result of the comparison, which passed. Its tolerances apply to the copies.
        outputs: The reference's outputs in that comparison.
        faults: The faults, which are injected one at a time.

    Raises:
        CheckpointError: The candidate cannot be copied or a copy cannot be run.
    """
    start = time.perf_counter()
    examiner = _Examiner(reference, candidate, battery, verdict, outputs)
    try:
        with tempfile.TemporaryDirectory(prefix="mixout-export-") as folder:
            outcomes = tuple(examiner.examine(faults, Path(folder)))
    except OSError as error:
        raise CheckpointError(
            f"{candidate.where}: cannot be copied into {tempfile.gettempdir()} for the self-test "
            f"({error.strerror}); set TMPDIR to a disk with room"
        ) from error
    return SelfTest(outcomes, time.perf_counter() - start)
