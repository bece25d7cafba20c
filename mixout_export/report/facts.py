"""Gather everything that the page shows."""

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import onnx
import onnxruntime
import torch
import transformers

from mixout_export.checkpoint.artifact import Artifact
from mixout_export.data.lengths import cut_sentence
from mixout_export.errors import ParityError
from mixout_export.parity.compare import OutputDifference
from mixout_export.parity.decisions import DATA_BATCH, DecisionCounts
from mixout_export.parity.result import ParityResult
from mixout_export.report.flips import FlipFacts, FlipReader
from mixout_export.report.rows import DataRows
from mixout_export.report.sides import Side, describe_side
from mixout_export.version import __version__


@dataclass(frozen=True)
class OutputFacts:
    """The differences of an output, and its flips in words.

    Attributes:
        difference: The differences.
        flips: The flips that were kept, those on the user's own data first.
    """

    difference: OutputDifference
    flips: tuple[FlipFacts, ...]

    @property
    def by_batch(self) -> list[tuple[str, DecisionCounts]]:
        """Decisions by kind of input, the user's own data first."""
        return sorted(self.difference.by_batch.items(), key=lambda item: item[0] != DATA_BATCH)


@dataclass(frozen=True)
class Facts:
    """Everything that the page shows.

    Attributes:
        result: The result of the comparison.
        reference: The reference.
        candidate: The side that is compared with it.
        outputs: The outputs on the test inputs.
        generated: The outputs of a causal language model's graphs while they generate.
        versions: Versions of the software, by name.
        command: The command, quoted for a shell; None if a program called the library.
        made: When the comparison ended.
        data: Name of the user's file; None without one.
        others: The same for the other graphs of the candidate's bundle.
    """

    result: ParityResult
    reference: Side
    candidate: Side
    outputs: tuple[OutputFacts, ...]
    generated: tuple[OutputFacts, ...]
    versions: Mapping[str, str]
    command: str | None
    made: datetime
    data: str | None = None
    others: tuple["Facts", ...] = ()

    @property
    def graphs(self) -> tuple["Facts", ...]:
        """The facts on each graph, this one first."""
        return (self, *self.others)

    @property
    def sides(self) -> list[tuple[str, Side]]:
        """The reference and each graph that was compared with it, with their roles."""
        return [("reference", self.reference)] + [
            ("candidate", graph.candidate) for graph in self.graphs
        ]

    @property
    def inputs(self) -> int:
        """Number of inputs that were compared."""
        return 0 if self.result.coverage is None else self.result.coverage.examples

    @property
    def exit_code(self) -> int:
        """The exit code of the command."""
        return 0 if self.result.passed else ParityError.exit_code

    @property
    def modules_beyond(self) -> int:
        """Number of modules whose outputs exceed the tolerance of the drift map."""
        drift = self.result.drift
        return 0 if drift is None else sum(map(drift.leaves, drift.compared))

    @property
    def agreement(self) -> float | None:
        """The smallest share of equal decisions of any output; None if nothing is decided."""
        shares = [self.result.agreement(output.difference) for output in self.outputs]
        return min((value for value in shares if value is not None), default=None)

    @property
    def cut(self) -> str | None:
        """A sentence on the rows of the user's file that were cut; None if there are none."""
        found = self.result.cut
        return None if found is None else cut_sentence(found)

    @property
    def judged(self) -> tuple[OutputFacts, ...]:
        """All outputs that decide whether parity holds."""
        return (*self.outputs, *self.generated)


def software_versions() -> dict[str, str]:
    """Return the versions of the software, by name."""
    return {
        "mixout-export": __version__,
        "Python": platform.python_version(),
        "PyTorch": torch.__version__,
        "transformers": transformers.__version__,
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
        "system": f"{platform.system()} {platform.machine()}",
    }


def _flip_reader(reference: Artifact, candidate: Artifact, rows: DataRows | None) -> FlipReader:
    return FlipReader(
        task=reference.task_name or candidate.task_name,
        labels=reference.labels or candidate.labels or (),
        tokenizer=reference.tokenizer or candidate.tokenizer,
        rows=rows,
    )


def flip_sentences(
    result: ParityResult, reference: Artifact, candidate: Artifact, rows: DataRows | None = None
) -> tuple[str, ...]:
    """Return the flips that were kept, as one line each."""
    reader = _flip_reader(reference, candidate, rows)
    return tuple(fact.sentence for output in result.outputs for fact in reader.read(output))


def gather_facts(
    result: ParityResult,
    reference: Artifact,
    candidate: Artifact,
    *,
    command: str | None = None,
    made: datetime | None = None,
    rows: DataRows | None = None,
) -> Facts:
    """Gather what the page shows, and hash the files of both sides.

    `made` is the time when the comparison ended; None means now. `rows` is the user's file, if it
    was compared.

    Raises:
        CheckpointError: A file cannot be read.
    """
    reader = _flip_reader(reference, candidate, rows)
    generated = () if result.generation is None else result.generation.outputs
    return Facts(
        result=result,
        reference=describe_side(reference),
        candidate=describe_side(candidate),
        outputs=tuple(OutputFacts(o, reader.read(o)) for o in result.all_outputs),
        generated=tuple(OutputFacts(o, reader.read(o, generated=True)) for o in generated),
        versions=software_versions(),
        command=command,
        made=made or datetime.now(UTC),
        data=None if rows is None else rows.name,
    )
