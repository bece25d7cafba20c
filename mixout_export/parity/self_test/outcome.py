"""The results of the self-test."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class FaultOutcome:
    """Which checks caught one fault. A field is "" if that check did not catch it.

    Attributes:
        fault: Name of the fault.
        what: The change, for example "encoder.layer.3.output.dense.weight × 1.001".
        changes_outputs: Whether the fault changes outputs, so that the battery should catch it.
        not_applicable: Why the fault is not possible in this candidate; "" if it is possible.
        labels: What the comparison of labels and other descriptions found.
        settings: What the comparison of the modules' settings found.
        audit: The first tensors that the weight audit reported.
        battery: Where an output of the battery first left the tolerance.
        drift: The first module that the drift map reported.
        padding: When the result of a row depended on padding, as the check of padding said.
        about_padding: Whether the fault changes how padding is read, so that this check has to
            catch it.
        seconds: Wall time, in seconds.
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
    padding: str = ""
    about_padding: bool = False
    seconds: float = 0.0

    @property
    def caught_by(self) -> tuple[str, ...]:
        """The checks that caught it, "labels", "settings" and so on."""
        checks = ("labels", "settings", "audit", "battery", "padding", "drift")
        return tuple(check for check in checks if getattr(self, check))

    @property
    def caught(self) -> bool:
        """Whether the copy would be refused, and by the check of padding if it is about that.

        The drift map alone refuses nothing.
        """
        if self.about_padding:
            return bool(self.padding)
        return any((self.labels, self.settings, self.audit, self.battery))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        caught = None if self.not_applicable else self.caught
        return {**vars(self), "caught": caught, "caught_by": list(self.caught_by)}


@dataclass(frozen=True)
class SelfTest:
    """The result of the self-test.

    Attributes:
        faults: The outcome of each fault.
        seconds: Wall time, in seconds.
    """

    faults: tuple[FaultOutcome, ...]
    seconds: float

    @property
    def applied(self) -> tuple[FaultOutcome, ...]:
        """The faults that are possible in this candidate."""
        return tuple(fault for fault in self.faults if not fault.not_applicable)

    @property
    def missed(self) -> tuple[FaultOutcome, ...]:
        """The faults that no check caught."""
        return tuple(fault for fault in self.applied if not fault.caught)

    @property
    def missed_by_battery(self) -> tuple[FaultOutcome, ...]:
        """The faults that change outputs, but never beyond the tolerance in the battery."""
        return tuple(f for f in self.applied if f.changes_outputs and not f.battery)

    @property
    def passed(self) -> bool:
        """Whether at least one fault was tried and every one was caught."""
        return bool(self.applied) and not self.missed

    def reasons(self) -> tuple[str, ...]:
        """Return why the self-test did not pass, as sentences; empty if it passed."""
        if not self.applied:
            return ("self-test: none of the faults is possible in the candidate",)
        return tuple(f"self-test: {f.fault} ({f.what}) was not caught" for f in self.missed)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {
            "passed": self.passed,
            "applied": len(self.applied),
            "caught": len(self.applied) - len(self.missed),
            "missed": [fault.fault for fault in self.missed],
            "missed_by_battery": [fault.fault for fault in self.missed_by_battery],
            "faults": [fault.to_dict() for fault in self.faults],
            "seconds": self.seconds,
        }
