"""What became of each fault."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class FaultOutcome:
    """What the checks made of one fault.

    Attributes:
        fault: Its name.
        what: What was changed, "encoder.layer.3.output.dense.weight × 1.001" say; "" if nothing.
        changes_outputs: Whether it changes what the model computes, so that the battery is
            expected to see it.
        not_applicable: Why the candidate cannot have it; "" if it can.
        labels: What the comparison of labels, and of all else that both sides say of themselves,
            said; "" if nothing.
        settings: What the comparison of the modules' settings said; "" likewise.
        audit: The first tensors that the weight audit named; "" if it saw nothing.
        battery: Where the battery's outputs first left the tolerance; "" if they did not.
        drift: The first module that the drift map named; "" if none, or if it was not drawn.
        seconds: Wall time.
    """

    fault: str
    what: str = ""
    changes_outputs: bool = True
    not_applicable: str = ""
    labels: str = ""
    settings: str = ""
    audit: str = ""
    battery: str = ""
    drift: str = ""
    seconds: float = 0.0

    @property
    def caught_by(self) -> tuple[str, ...]:
        """The checks that saw it, of "labels", "settings", "audit", "battery", "drift"."""
        checks = ("labels", "settings", "audit", "battery", "drift")
        return tuple(check for check in checks if getattr(self, check))

    @property
    def caught(self) -> bool:
        """Whether `verify` would have refused the copy: a drift alone refuses nothing."""
        return any((self.labels, self.settings, self.audit, self.battery))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        caught = None if self.not_applicable else self.caught
        return {**vars(self), "caught": caught, "caught_by": list(self.caught_by)}


@dataclass(frozen=True)
class SelfTest:
    """Whether the checks catch what they are there for.

    Attributes:
        faults: What became of each fault.
        seconds: Wall time.
    """

    faults: tuple[FaultOutcome, ...]
    seconds: float

    @property
    def applied(self) -> tuple[FaultOutcome, ...]:
        """The faults that the candidate can have."""
        return tuple(fault for fault in self.faults if not fault.not_applicable)

    @property
    def missed(self) -> tuple[FaultOutcome, ...]:
        """Those that nothing caught."""
        return tuple(fault for fault in self.applied if not fault.caught)

    @property
    def missed_by_battery(self) -> tuple[FaultOutcome, ...]:
        """Those that change outputs, though never beyond the tolerance in the battery."""
        return tuple(f for f in self.applied if f.changes_outputs and not f.battery)

    @property
    def passed(self) -> bool:
        """Whether there were faults, and each was caught."""
        return bool(self.applied) and not self.missed

    def reasons(self) -> tuple[str, ...]:
        """Return why it did not pass, as sentences; empty if it did."""
        if not self.applied:
            return ("self-test: none of the faults applies to the candidate",)
        return tuple(f"self-test: {f.fault} ({f.what}) was not caught" for f in self.missed)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return {
            "passed": self.passed,
            "applied": len(self.applied),
            "caught": len(self.applied) - len(self.missed),
            "missed": [fault.fault for fault in self.missed],
            "missed_by_battery": [fault.fault for fault in self.missed_by_battery],
            "faults": [fault.to_dict() for fault in self.faults],
            "seconds": self.seconds,
        }
