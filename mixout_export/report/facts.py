"""Everything that the page shows, gathered before anything is drawn."""

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import onnx
import onnxruntime
import torch
import transformers

from mixout_export.checkpoint.artifact import Artifact
from mixout_export.errors import ParityError
from mixout_export.parity.compare import OutputDifference
from mixout_export.parity.result import ParityResult
from mixout_export.report.flips import FlipFacts, FlipReader
from mixout_export.report.sides import Side, describe_side
from mixout_export.version import __version__


@dataclass(frozen=True)
class OutputFacts:
    """An output's differences, and its flips in words.

    Attributes:
        difference: The differences.
        flips: The flips that were kept.
    """

    difference: OutputDifference
    flips: tuple[FlipFacts, ...]


@dataclass(frozen=True)
class Facts:
    """Everything that the page shows.

    Attributes:
        result: What came out of the comparison.
        reference: The side that says what is right.
        candidate: The side that is judged.
        outputs: The outputs of the battery.
        generated: The outputs of graphs of a causal language model while they generate.
        versions: Name → version of what took part.
        command: The command as a shell takes it; None where it was no command.
        made: When the comparison ended.
    """

    result: ParityResult
    reference: Side
    candidate: Side
    outputs: tuple[OutputFacts, ...]
    generated: tuple[OutputFacts, ...]
    versions: Mapping[str, str]
    command: str | None
    made: datetime

    @property
    def exit_code(self) -> int:
        """What the command exits with."""
        return 0 if self.result.passed else ParityError.exit_code

    @property
    def modules_beyond(self) -> int:
        """Number of modules whose outputs leave the drift map's tolerance."""
        drift = self.result.drift
        return 0 if drift is None else sum(map(drift.leaves, drift.compared))

    @property
    def judged(self) -> tuple[OutputFacts, ...]:
        """All outputs that parity was judged by."""
        return (*self.outputs, *self.generated)


def _versions() -> dict[str, str]:
    return {
        "mixout-export": __version__,
        "Python": platform.python_version(),
        "PyTorch": torch.__version__,
        "transformers": transformers.__version__,
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
        "system": f"{platform.system()} {platform.machine()}",
    }


def gather_facts(
    result: ParityResult,
    reference: Artifact,
    candidate: Artifact,
    *,
    command: str | None = None,
    made: datetime | None = None,
) -> Facts:
    """Gather what the page shows; hashes the files of both sides.

    Args:
        result: What came out of the comparison.
        reference: The side that says what is right.
        candidate: The side that is judged.
        command: The command as a shell takes it; None where it was no command.
        made: When the comparison ended; None is now.

    Raises:
        CheckpointError: A file cannot be read.
    """
    reader = FlipReader(
        task=reference.task_name or candidate.task_name,
        labels=reference.labels or candidate.labels or (),
        tokenizer=reference.tokenizer or candidate.tokenizer,
    )
    generated = () if result.generation is None else result.generation.outputs
    return Facts(
        result=result,
        reference=describe_side(reference),
        candidate=describe_side(candidate),
        outputs=tuple(OutputFacts(o, reader.read(o)) for o in result.outputs),
        generated=tuple(OutputFacts(o, reader.read(o, generated=True)) for o in generated),
        versions=_versions(),
        command=command,
        made=made or datetime.now(UTC),
    )
