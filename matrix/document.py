"""Write the page with the table of all families, from their outcomes."""

import datetime
from collections.abc import Sequence
from pathlib import Path

from matrix.outcome import STAGES, Outcome

_HEAD = """# Architectures

Generated; do not edit. `{command}`, {date}, {versions}.

These tables list every architecture family that transformers has for classifying texts and
images. Each family is tested with a tiny random checkpoint from its own configuration class. Every
parameter of the checkpoint is moved away from its default value. The linear layers are mixed, or
the convolutions of a model that has no linear layers.

Each checkpoint goes through these steps:

- `inject`: `mixout-export prepare`.
- `step`: two training steps. Mixed weights must move, and their anchors must not. `MixoutAdamW`
  and `AdamW` must give the same weights.
- `collapse`: the collapsed model must compute the same as the trained one, and its tensors must
  have the names, shapes and dtypes of a plain checkpoint.
- `onnx`: `mixout-export onnx`.
- `verify`: the comparison of weights and all test inputs. The graph is also compared with plain
  calls of the model, on padded batches of 1 and 3 rows of 1 to 33 tokens, or on batches of 1, 3
  and 5 images.

The column "exports" shows whether the unmodified model can be exported at all, with
`torch.onnx.export` alone or with `mixout-export onnx`. The graph must also run on batches of other
sizes than the one it was exported with.

"""

_COUNTS = """\
- **{passed} of {exporting} families whose unmodified model exports pass: {share:.1%}.**
- {passed} of all {total} families pass: {all_share:.1%}.
"""

#: Task → title of its section.
_TITLES = {"text-classification": "Texts", "image-classification": "Images"}


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
    page = _HEAD.format(
        command=command,
        date=date.isoformat(),
        versions=", ".join(f"{name} {value}" for name, value in outcomes[0].versions.items()),
    )
    for task, title in _TITLES.items():
        chosen = [outcome for outcome in outcomes if outcome.task == task]
        if chosen:
            page += f"## {title}\n\n{_section(chosen)}\n"
    return page.rstrip("\n") + "\n"


def _section(outcomes: Sequence[Outcome]) -> str:
    """Return the counts and the table of the families of one task."""
    exporting = [outcome for outcome in outcomes if outcome.unmodified]
    passed = sum(outcome.complete for outcome in outcomes)
    counts = _COUNTS.format(
        passed=passed,
        exporting=len(exporting),
        share=passed / max(1, len(exporting)),
        total=len(outcomes),
        all_share=passed / len(outcomes),
    )
    columns = ["family", "class", "exports", *STAGES, "why it does not pass"]
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    return counts + "\n" + "\n".join([*lines, *map(_row, outcomes)]) + "\n"


def write_document(path: Path, outcomes: Sequence[Outcome], command: str) -> None:
    """Write the page to `path`, with today's date."""
    path.write_text(make_document(outcomes, command, datetime.date.today()))
