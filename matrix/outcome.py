"""Store how far one family came in the workflow."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from matrix.families import Family
from matrix.machine import versions

#: The steps of the workflow, in order.
STAGES = ("inject", "step", "collapse", "onnx", "verify")


@dataclass
class Outcome:
    """How far one family came.

    Attributes:
        family: Name of the family, which is its model type in most cases.
        architecture: Class name of its classifier.
        task: The task, by its name in this package.
        versions: Library → version that it ran with.
        parameters: Number of parameters of the tiny checkpoint.
        unmodified: Whether the unmodified model can be exported; None if unknown.
        passed: Stages that passed, in order.
        failed: The stage that failed; "" if all passed. "build" means that the tiny checkpoint
            could not be made, which does not involve this package.
        reason: Why the stage failed.
        ours: Whether the error is one that this package raises on purpose.
        inputs: Names of the graph's inputs.
        seconds: Wall clock time, in seconds.
    """

    family: str
    architecture: str
    task: str = "text-classification"
    versions: dict[str, str] = field(default_factory=dict)
    parameters: int = 0
    unmodified: bool | None = None
    passed: list[str] = field(default_factory=list)
    failed: str = ""
    reason: str = ""
    ours: bool = True
    inputs: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @classmethod
    def of(cls, family: Family) -> "Outcome":
        """Return the outcome of a family of which no stage has run yet."""
        return cls(family.name, family.architecture, family.task, versions())

    @property
    def complete(self) -> bool:
        """Whether the family passed all stages."""
        return not self.failed and tuple(self.passed) == STAGES

    def write(self, folder: Path) -> None:
        """Write this outcome to `FAMILY.json` in a folder."""
        path = folder / f"{self.family}.json"
        path.with_suffix(".tmp").write_text(json.dumps(asdict(self), indent=1) + "\n")
        path.with_suffix(".tmp").rename(path)


def read_outcome(folder: Path, family: str) -> Outcome | None:
    """Return a family's outcome; None if the folder has none."""
    path = folder / f"{family}.json"
    if not path.exists():
        return None
    fields: dict[str, Any] = json.loads(path.read_text())
    return Outcome(**fields)
