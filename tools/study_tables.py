"""Print the tables of a study as Markdown, for `docs/results.md`.

python tools/study_tables.py docs/results/strategies
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def _interval(estimate: dict[str, Any] | None, *, sign: str = "") -> str:
    if estimate is None:
        return ""
    if estimate["low"] is None:
        return f"{estimate['value']:{sign}.3f}"
    value, low, high = (f"{estimate[key]:{sign}.3f}" for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def task_table(task: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of the table of one task, from its entry in `summary.json`."""
    gains = {c["arm"]: c for c in task["comparisons"]}
    heads = (
        f"arm | mean {task['metric']} | median | best | failed runs | gain over the baseline | p"
    )
    yield f"| {heads} |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for arm in task["arms"]:
        if not arm["runs"]:
            continue
        best = f"{arm['best']:.3f}"
        failed = f"{arm['failed']['count']} of {arm['failed']['runs']}"
        comparison = gains.get(arm["name"])
        gain, p = "baseline", ""
        if comparison is not None and comparison["gain"] is not None:
            gain = _interval(comparison["gain"], sign="+")
            p = f"{comparison['p_corrected']:.2g}"
        cells = [arm["name"], _interval(arm["mean"]), f"{arm['median']['value']:.3f}"]
        yield f"| {' | '.join([*cells, best, failed, gain, p])} |"


def study_tables(folder: Path) -> str:
    """Return the tables of all tasks, each with a heading and its chance level."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    lines = []
    for task in summary["tasks"]:
        if task["metric"] is None:
            continue
        lines += [f"### {task['name']}", "", f"Chance is {task['chance']:.3f}.", ""]
        lines += [*task_table(task), "", task["recommendation"]["sentence"], ""]
    return "\n".join(lines)


if __name__ == "__main__":
    print(study_tables(Path(sys.argv[1])))
