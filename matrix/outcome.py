"""What became of one family."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

#: The way of a checkpoint, in order.
STAGES = ("inject", "step", "collapse", "onnx", "verify")


@dataclass
class Outcome:
    """How far one family came.

    Attributes:
        family: The model type.
        architecture: Its classifier's class.
        versions: Library → version it ran with.
        parameters: Parameters of the tiny checkpoint.
        unmodified: Whether the unmodified model exports; None if there is no telling.
        passed: Stages that passed, in order.
        failed: The stage at which it ended, "" if it passed them all; "build" is the checkpoint's
            own making, with nothing of this package in it.
        reason: Why it ended there.
        ours: Whether that was an error of this package's own, in its words.
        inputs: Inputs of the graph.
        notes: What the exporter had to change.
        seconds: Wall clock time.
    """

    family: str
    architecture: str
    versions: dict[str, str] = field(default_factory=dict)
    parameters: int = 0
    unmodified: bool | None = None
    passed: list[str] = field(default_factory=list)
    failed: str = ""
    reason: str = ""
    ours: bool = True
    inputs: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def whole(self) -> bool:
        """Whether the family passed the whole way."""
        return not self.failed and tuple(self.passed) == STAGES

    def write(self, folder: Path) -> None:
        """Write it into a folder of outcomes."""
        path = folder / f"{self.family}.json"
        path.with_suffix(".tmp").write_text(json.dumps(asdict(self), indent=1) + "\n")
        path.with_suffix(".tmp").rename(path)


def read_outcome(folder: Path, family: str) -> Outcome | None:
    """Return a family's outcome, None if it has none."""
    path = folder / f"{family}.json"
    if not path.exists():
        return None
    fields: dict[str, Any] = json.loads(path.read_text())
    return Outcome(**fields)
