"""The result of a comparison, and the reasons why parity does not hold."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mixout_export.data.lengths import CutRows
from mixout_export.files.json_files import fields_as_json
from mixout_export.parity.battery import Coverage
from mixout_export.parity.compare import OutputDifference, Tolerance
from mixout_export.parity.decisions import DecisionCounts, DecisionLimits
from mixout_export.parity.drift import DriftMap
from mixout_export.parity.generation import GenerationParity
from mixout_export.parity.padding import PaddingCheck
from mixout_export.parity.self_test.outcome import SelfTest
from mixout_export.parity.serving import Serving
from mixout_export.parity.weights import WeightAudit
from mixout_export.rounding import share

#: What follows the name of an output that was computed with results rounded to fp16.
IN_HALF = "in fp16 arithmetic"


@dataclass(frozen=True)
class ParityResult:
    """The result of comparing a candidate with a reference.

    Parity holds if the descriptions and the module settings of both sides agree, every weight is
    accounted for, every output of the battery is within tolerance, and the result of a row does not
    depend on padding or on other rows where the reference's does not.

    Attributes:
        reference: Path of the reference.
        candidate: Path or address of the candidate.
        mismatches: Differences between the descriptions of both sides, as sentences.
        weights: The weight audit; None for a candidate on a server, which does not show weights.
        outputs: The differences of each output; empty if outputs could not be compared.
        tolerance: Tolerance for each value; None if only the outputs as a whole are judged.
        limits: Limits for the outputs as a whole.
        precision: Precision whose default tolerance and limits apply: "fp32", "fp16", "bf16" or
            "int8"; "given" if the user chose the tolerance.
        coverage: What the battery covered; None if nothing was run.
        headless: Whether only the models' bodies were compared, because one side has no head.
        seconds: Wall time of the comparison, in seconds.
        others: The results of the other graphs of a bundle, which are judged in the same way.
        flips: Decisions that differ, as sentences, those on the user's own data first.
        in_half: The differences of each output of an fp16 graph if each result is rounded to fp16,
            as on a GPU. A CPU computes in fp32. Empty for other graphs, and if a GPU was used.
        padding: Whether the result of a row depends on padding and on other rows; None if nothing
            was run.
        generation: The comparison of generated text; None if it was not run.
        metrics: Metric → its value for the reference and for the candidate; None without labels.
        cut: How many rows of the user's own data were cut; None without data.
        drift: How far each module's output differs; None if it was not measured.
        settings: Differences between the settings of the modules of both sides, as sentences.
        self_test: Which known faults the checks caught; None if the self-test was not run.
        serving: How the server serves the model; None if the candidate is not on a server.
        manifests: Files that do not match the manifests of the folders, as sentences. The
            comparison used the files as they are now.
        no_drift: Why a requested drift map could not be made; "" otherwise.
    """

    reference: str
    candidate: str
    mismatches: tuple[str, ...]
    weights: WeightAudit | None
    outputs: tuple[OutputDifference, ...]
    tolerance: Tolerance | None
    limits: DecisionLimits
    precision: str
    coverage: Coverage | None
    headless: bool
    seconds: float
    in_half: tuple[OutputDifference, ...] = ()
    padding: PaddingCheck | None = None
    others: tuple["ParityResult", ...] = ()
    flips: tuple[str, ...] = ()
    generation: GenerationParity | None = None
    metrics: Mapping[str, tuple[float, float]] | None = None
    cut: CutRows | None = None
    drift: DriftMap | None = None
    settings: tuple[str, ...] = ()
    self_test: SelfTest | None = None
    serving: Serving | None = None
    manifests: tuple[str, ...] = ()
    no_drift: str = ""

    @property
    def holds(self) -> bool:
        """Whether parity holds, for every graph of a bundle."""
        return self.graph_holds and all(other.holds for other in self.others)

    @property
    def graph_holds(self) -> bool:
        """Whether parity holds for the graph itself, without the other graphs of its bundle."""
        outputs_hold = bool(self.outputs) and all(output.holds for output in self.all_outputs)
        generation_holds = self.generation is None or self.generation.holds
        weights_hold = self.weights is None or self.weights.holds
        agree = not self.mismatches and not self.settings and weights_hold
        padding_holds = self.padding is None or self.padding.holds
        serving_holds = self.serving is None or self.serving.holds
        return agree and outputs_hold and padding_holds and generation_holds and serving_holds

    @property
    def graphs(self) -> tuple["ParityResult", ...]:
        """The result of each graph of a bundle, this one first."""
        return (self, *self.others)

    @property
    def all_outputs(self) -> tuple[OutputDifference, ...]:
        """The outputs as the candidate was run, and as a GPU would compute them."""
        return (*self.outputs, *self.in_half)

    @property
    def passed(self) -> bool:
        """Whether parity holds, the folders match their manifests, and any self-test passed."""
        tested = self.self_test is None or self.self_test.passed
        others = all(other.passed for other in self.others)
        return self.holds and tested and others and not self.manifests

    @property
    def max_abs(self) -> float:
        """Largest difference of any output; infinite if no output was compared."""
        return max((output.max_abs for output in self.outputs), default=float("inf"))

    def counted(self, output: OutputDifference) -> DecisionCounts | None:
        """Return the decisions of an output to show: those that were judged, else all of them.

        None if nothing is decided from the output.
        """
        if output.on_data or self.limits.agreement is not None:
            return output.judged
        if not output.decisions:
            return None
        return DecisionCounts(output.decisions, output.flips, output.mean_shift, output.max_shift)

    def agreement(self, output: OutputDifference) -> float | None:
        """Return the share of those decisions that are equal; None if there are none."""
        counted = self.counted(output)
        return counted.agreement if counted is not None and counted.decisions else None

    def criteria(self) -> str:
        """Return the tolerance and limits as text, for example "atol 1e-05, rtol 0.0001"."""
        tolerance, limits = self.tolerance, self.limits
        parts = []
        if tolerance is not None:
            parts.append(tolerance.words)
            rounded = next((each.tolerance for each in self.in_half), None)
            if rounded is not None:
                parts.append(f"{IN_HALF} {rounded.words}")
        if limits.agreement is not None:
            parts.append(f"at least {share(limits.agreement)} of decisions equal")
        if limits.mean_shift is not None:
            parts.append(f"a mean probability shift of at most {limits.mean_shift:g}")
        return ", ".join(parts)

    def reasons(self) -> tuple[str, ...]:
        """Return why `passed` is false, as sentences; empty if it is true.

        Those of a bundle with several graphs begin with the graph.
        """
        if self.others:
            alone = (replace(each, others=(), manifests=()) for each in self.graphs)
            found = (f"{each.candidate}: {reason}" for each in alone for reason in each.reasons())
            return (*found, *self.manifests)
        return (
            *self.mismatches,
            *self._weight_reasons(),
            *self._output_reasons(),
            *(() if self.padding is None else self.padding.reasons),
            *self.settings,
            *self._serving_reasons(),
            *self._drift_reasons(),
            *self.manifests,
            *(() if self.self_test is None else self.self_test.reasons()),
        )

    def _serving_reasons(self) -> tuple[str, ...]:
        if self.serving is None:
            return ()
        differ = self.outputs and not all(output.holds for output in self.outputs)
        cause = {
            "not shown": "does not show which graph it serves; it may be another version of the "
            "model. Check which files the server has loaded",
            "this graph": "shows the hash of the right graph but computes something else. It may "
            "have loaded another graph or an older configuration; load both again",
        }.get(self.serving.graph)
        causes = (f"{self.candidate} {cause}",) if differ and cause else ()
        return (*causes, *self.serving.reasons())

    def _drift_reasons(self) -> list[str]:
        first = None if self.drift is None else self.drift.first
        if self.graph_holds or self.drift is None or first is None:
            return []
        return [
            f"module {first.label!r} is the first that differs, by {first.relative_l2:.3g} of its "
            f"norm, expected at most {self.drift.tolerance:g}"
        ]

    def _weight_reasons(self) -> list[str]:
        reasons = []
        cached = None if self.generation is None else self.generation.weights
        for audit, where in ((self.weights, ""), (cached, " with a cache")):
            if audit is None or audit.holds:
                continue
            if not audit.total:
                return ["no weights could be compared"]
            first, count = audit.problems[0], len(audit.problems)
            more = f" (and {count - 1} more)" if count > 1 else ""
            reasons.append(f"weight {first.key!r} {first.reason}{where}{more}")
        return reasons

    def _output_reasons(self) -> list[str]:
        reasons = []
        generated = () if self.generation is None else self.generation.outputs
        for output in (*self.all_outputs, *generated):
            if output.problem:
                reasons.append(f"output {output.name!r} {output.problem}")
            elif output.not_a_number:
                reasons.append(f"output {output.name!r} has {output.not_a_number} NaN values")
            elif output.shortfall:
                reasons.append(f"output {output.name!r} {output.shortfall}")
            elif output.tolerance is None and not output.holds:
                reasons.append(f"output {output.name!r} has {output.exceeding} infinite values")
            elif output.tolerance is not None and not output.holds:
                reasons.append(
                    f"output {output.name!r} differs by up to {output.max_abs:.3g}, expected at "
                    f"most {output.tolerance.limit('reference')}; the largest difference is in the "
                    f"{output.worst_batch!r} test inputs, in a batch of shape {output.worst_shape}"
                )
        return reasons

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        values = fields_as_json(self, "holds")
        values["reasons"] = list(self.reasons())
        values["bounds"] = values.pop("limits")  # the key in --json, which must not change
        if self.metrics is not None:
            values["metrics"] = {
                name: {"reference": ours, "candidate": theirs}
                for name, (ours, theirs) in self.metrics.items()
            }
        return values
