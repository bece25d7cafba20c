"""The table of all families, generated from their outcomes."""

import datetime
from collections.abc import Sequence
from pathlib import Path

from matrix.outcome import STAGES, Outcome

_HEAD = """# Architectures

Generated; do not edit. `{command}`, {date}, {versions}.

Every architecture family that transformers lists for sequence classification, as a tiny random
checkpoint made from the family's own configuration class, with every parameter moved away from its
default. Each goes the whole way: `inject` (`prepare`), one training `step`, `collapse` (compared
with what was trained, and its tensors with a plain checkpoint's), `onnx`, and `verify` (the weight
audit and the whole battery; then batches of 1 and 3 rows of 1 to 33 tokens, padded, against a
plain call of the model). "Exports" says whether the unmodified model exports at all, by
`torch.onnx.export` alone or by `mixout-export onnx`: to a graph that runs on other numbers of rows
and tokens than those that it was made with.

- **{passed} of {exporting} families whose unmodified model exports pass: {share:.1%}.**
- {passed} of all {total} families pass: {all_share:.1%}.

"""


def _mark(outcome: Outcome, stage: str) -> str:
    if stage in outcome.passed:
        return "✓"
    return "✗" if outcome.failed == stage else "–"


def _row(outcome: Outcome) -> str:
    exports = {True: "yes", False: "no", None: "–"}[outcome.unmodified]
    reason = outcome.reason
    if outcome.failed in ("build", "run"):
        reason = f"{outcome.failed}: {reason}"
    cells = [
        outcome.family,
        f"`{outcome.architecture}`",
        exports,
        *(_mark(outcome, stage) for stage in STAGES),
        reason.replace("|", "\\|"),
    ]
    return f"| {' | '.join(cells)} |"


def make_document(outcomes: Sequence[Outcome], command: str, date: datetime.date) -> str:
    """Return the page.

    Args:
        outcomes: One per family.
        command: The command that made them.
        date: When.
    """
    exporting = [outcome for outcome in outcomes if outcome.unmodified]
    passed = sum(outcome.whole for outcome in outcomes)
    head = _HEAD.format(
        command=command,
        date=date.isoformat(),
        versions=", ".join(f"{name} {value}" for name, value in outcomes[0].versions.items()),
        passed=passed,
        exporting=len(exporting),
        share=passed / max(1, len(exporting)),
        total=len(outcomes),
        all_share=passed / max(1, len(outcomes)),
    )
    columns = ["family", "class", "exports", *STAGES, "reason for what does not pass"]
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    return head + "\n".join([*lines, *map(_row, outcomes)]) + "\n"


def write_document(path: Path, outcomes: Sequence[Outcome], command: str) -> None:
    """Write the page."""
    path.write_text(make_document(outcomes, command, datetime.date.today()))
