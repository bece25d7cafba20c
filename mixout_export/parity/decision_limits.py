"""What an output is judged by as a whole, where its values one by one say too little."""

from dataclasses import dataclass

from mixout_export.parity.decisions import DecisionCounts


@dataclass(frozen=True)
class DecisionLimits:
    """What an output is judged by as a whole; None where it is not.

    Attributes:
        agreement: Least share of equal decisions, in [0, 1].
        mean_shift: Largest mean total variation distance of the decisions' probabilities.
        relative_l2: Largest ‖candidate − reference‖ / ‖reference‖ of an output that carries no
            decisions, or none that counts.
    """

    agreement: float | None = None
    mean_shift: float | None = None
    relative_l2: float | None = None

    def shortfall(self, judged: DecisionCounts | None, relative_l2: float, *, on_data: bool) -> str:
        """Return which bound an output misses, as the end of a sentence; "" if none.

        Args:
            judged: The decisions that count; None where the output carries none.
            relative_l2: ‖candidate − reference‖ / ‖reference‖.
            on_data: Whether those are all decisions on the user's own data; else they are the sure
                ones of the battery.
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
                f"moves probabilities by {judged.mean_shift:.3g} in the mean over {where}, "
                f"expected at most {self.mean_shift:g}"
            )
        return ""


#: By precision. int8 weights move values by an amount that depends on the model, so what counts is
#: what they decide; the other precisions judge every value. Where nothing is decided, the norm has
#: to do: a 22 M BERT's hidden states move by 0.2 of theirs.
DECISION_LIMITS: dict[str, DecisionLimits] = {
    "int8": DecisionLimits(agreement=0.97, mean_shift=0.05, relative_l2=0.3),
}
