"""The drift map: how far each module's output differs, in the order of execution."""

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ModuleDrift:
    """How far the output of one call of a module differs.

    Attributes:
        module: Qualified name of the module; "" is the model itself.
        kind: Class name, for example "Linear"; "" if only graphs are compared.
        relative_l2: ‖candidate − reference‖ / ‖reference‖ of the output. It is infinite if only
            one side is NaN or infinite, and None if the output could not be compared.
        max_abs: Largest |candidate − reference| of the output; None if it was not compared.
        shape: Shape of the output; None if it was not compared.
        call: Number of the call, from 0. Some modules are called several times.
        reason: Why the output was not compared, for example "not in the graph"; "" if it was.
    """

    module: str
    kind: str
    relative_l2: float | None = None
    max_abs: float | None = None
    shape: tuple[int, ...] | None = None
    call: int = 0
    reason: str = ""

    @property
    def label(self) -> str:
        """The module's name in messages, with the number of the call from the second call on."""
        name = self.module or "(the model)"
        return f"{name}, call {self.call + 1}" if self.call else name

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values. JSON has no infinity, so None replaces it."""
        fields = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in vars(self).items()
        }
        return {**fields, "shape": None if self.shape is None else list(self.shape)}


@dataclass(frozen=True)
class DriftMap:
    """How far each module's output differs, in the order in which the modules finish.

    Attributes:
        modules: One entry for each call of each module.
        tolerance: Largest relative L2 difference that rounding explains.
        batch: Name of the batch that was run.
        shape: Shape of the inputs that were run, which are a part of that batch.
        seconds: Wall time, in seconds.
    """

    modules: tuple[ModuleDrift, ...]
    tolerance: float
    batch: str
    shape: tuple[int, ...]
    seconds: float

    def leaves(self, drift: ModuleDrift) -> bool:
        """Return whether a module's output is beyond the tolerance."""
        return drift.relative_l2 is not None and drift.relative_l2 > self.tolerance

    @property
    def compared(self) -> tuple[ModuleDrift, ...]:
        """The modules whose outputs were compared."""
        return tuple(drift for drift in self.modules if drift.relative_l2 is not None)

    @property
    def not_compared(self) -> tuple[ModuleDrift, ...]:
        """The modules whose outputs were not compared."""
        return tuple(drift for drift in self.modules if drift.relative_l2 is None)

    @property
    def first(self) -> ModuleDrift | None:
        """The first module beyond the tolerance; None if all are within it."""
        return next((drift for drift in self.modules if self.leaves(drift)), None)

    @property
    def worst(self) -> ModuleDrift | None:
        """The module that differs most; None if none was compared."""
        return max(self.compared, key=lambda drift: drift.relative_l2 or 0.0, default=None)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        first, worst = self.first, self.worst
        return {
            "first": None if first is None else first.label,
            "worst": None if worst is None else worst.label,
            "compared": len(self.compared),
            "tolerance": self.tolerance,
            "batch": self.batch,
            "shape": list(self.shape),
            "seconds": self.seconds,
            "modules": [drift.to_dict() for drift in self.modules],
        }
