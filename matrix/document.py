"""Write the page with the table of all families, from their outcomes."""

import datetime
from collections.abc import Sequence
from pathlib import Path

from matrix.outcome import STAGES, Outcome

_HEAD = """# Architectures

Generated; do not edit. `{command}`, {date}, {versions}.

This table lists every architecture family that transformers has for sequence classification. Each
family is tested with a tiny random checkpoint from its own configuration class. Every parameter of
the checkpoint is moved away from its default value.

Each checkpoint goes through these steps:

- `inject`: `mixout-export prepare`.
- `step`: one training step. Mixed weights must move, and their anchors must not.
- `collapse`: the collapsed model must compute the same as the trained one, and its tensors must
  have the names, shapes and dtypes of a plain checkpoint.
- `onnx`: `mixout-export onnx`.
- `verify`: the comparison of weights and all test inputs. The graph is also compared with plain
  calls of the model on padded batches of 1 and 3 rows of 1 to 33 tokens.

The column "exports" shows whether the unmodified model can be exported at all, with
`torch.onnx.export` alone or with `mixout-export onnx`. The graph must also run on batches of other
sizes than the one it was exported with.

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
    """Return the page as Markdown.

    Args:
        outcomes: One outcome per family.
        command: The command that produced them.
        date: The day on which it ran.
    """
    exporting = [outcome for outcome in outcomes if outcome.unmodified]
    passed = sum(outcome.complete for outcome in outcomes)
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
    columns = ["family", "class", "exports", *STAGES, "why it does not pass"]
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    return head + "\n".join([*lines, *map(_row, outcomes)]) + "\n"


def write_document(path: Path, outcomes: Sequence[Outcome], command: str) -> None:
    """Write the page to `path`, with today's date."""
    path.write_text(make_document(outcomes, command, datetime.date.today()))
