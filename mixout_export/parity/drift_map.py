"""Where two sides part: how far apart each module's output is, in the order of execution."""

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ModuleDrift:
    """How far one call of a module is apart on the two sides.

    Attributes:
        module: Its qualified name; "" is the model itself.
        kind: Name of its class, "Linear" say; "" where only graphs are compared.
        relative_l2: ‖candidate − reference‖ / ‖reference‖ of its output, infinite where either is
            NaN or infinite alone; None if it could not be compared.
        max_abs: Largest |candidate − reference| of its output; None likewise.
        shape: Shape of its output; None likewise.
        call: Which of the module's calls this is, from 0, where it is called several times.
        reason: Why it could not be compared, "not in the graph" for instance; "" if it was.
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
        """The name for people: the model itself has one too, and later calls are numbered."""
        name = self.module or "(the model)"
        return f"{name}, call {self.call + 1}" if self.call else name

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values; None stands for infinity, which JSON lacks."""
        fields = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in vars(self).items()
        }
        return {**fields, "shape": None if self.shape is None else list(self.shape)}


@dataclass(frozen=True)
class DriftMap:
    """The modules of a model in the order in which they end, and how far each is apart.

    Attributes:
        modules: One entry for each call of each module.
        tolerance: Largest relative L2 difference that rounding explains.
        batch: Name of the battery's batch it was measured on.
        shape: Shape of the inputs that were run, a part of that batch.
        seconds: Wall time.
    """

    modules: tuple[ModuleDrift, ...]
    tolerance: float
    batch: str
    shape: tuple[int, ...]
    seconds: float

    def leaves(self, drift: ModuleDrift) -> bool:
        """Tell whether a module is beyond the tolerance."""
        return drift.relative_l2 is not None and drift.relative_l2 > self.tolerance

    @property
    def compared(self) -> tuple[ModuleDrift, ...]:
        """The modules whose outputs were compared."""
        return tuple(drift for drift in self.modules if drift.relative_l2 is not None)

    @property
    def not_compared(self) -> tuple[ModuleDrift, ...]:
        """Those whose outputs could not be, each with its reason."""
        return tuple(drift for drift in self.modules if drift.relative_l2 is None)

    @property
    def first(self) -> ModuleDrift | None:
        """The first module that leaves the tolerance; None if none does."""
        return next((drift for drift in self.modules if self.leaves(drift)), None)

    @property
    def worst(self) -> ModuleDrift | None:
        """The module that is furthest apart; None if none could be compared."""
        return max(self.compared, key=lambda drift: drift.relative_l2 or 0.0, default=None)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
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
