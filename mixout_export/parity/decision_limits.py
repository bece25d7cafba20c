"""Limits for an output as a whole, for precisions where single values are not meaningful."""

from dataclasses import dataclass

from mixout_export.parity.decisions import DecisionCounts


@dataclass(frozen=True)
class DecisionLimits:
    """Limits for an output as a whole. None means no limit.

    Attributes:
        agreement: Smallest share of equal decisions, in [0, 1].
        mean_shift: Largest mean total variation distance of the decisions' probabilities, in
            [0, 1].
        relative_l2: Largest ‖candidate − reference‖ / ‖reference‖. It applies only if no decisions
            are judged.
    """

    agreement: float | None = None
    mean_shift: float | None = None
    relative_l2: float | None = None

    def shortfall(self, judged: DecisionCounts | None, relative_l2: float, *, on_data: bool) -> str:
        """Return the limit that an output exceeds, as the end of a sentence; "" if none.

        Args:
            judged: The decisions to judge; None if the output has no decisions.
            relative_l2: ‖candidate − reference‖ / ‖reference‖.
            on_data: Whether `judged` holds all decisions on the user's data. Otherwise it holds
                the sure decisions of the battery.
        """
        if judged is None or not judged.decisions:
            if self.relative_l2 is None or relative_l2 <= self.relative_l2:
                return ""
            return (
                f"differs by {relative_l2:.3g} of its norm, expected at most {self.relative_l2:g}"
            )
        where = f"{judged.decisions} {'decisions on the data' if on_data else 'sure decisions'}"
        if self.agreement is not None and judged.agreement < self.agreement:
            return (
                f"agrees on {judged.agreement:.2%} of {where}, expected at least "
                f"{self.agreement:.2%}"
            )
        if self.mean_shift is not None and judged.mean_shift > self.mean_shift:
            return (
                f"changes probabilities by {judged.mean_shift:.3g} on average over {where}, "
                f"expected at most {self.mean_shift:g}"
            )
        return ""


#: Precision → limits. int8 changes values by an amount that depends on the model, so its decisions
#: are judged. Other precisions have a tolerance for every value. For an output without decisions,
#: the norm is judged: the hidden states of a BERT with 22 M parameters change by 0.2 of their norm.
DECISION_LIMITS: dict[str, DecisionLimits] = {
    "int8": DecisionLimits(agreement=0.97, mean_shift=0.05, relative_l2=0.3),
}
