"""The results of the checks: a JSON file and a Markdown page, written after every step."""

import json
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

#: The states of a step. "not run" means that this machine cannot run it.
PASSED, FAILED, NOT_RUN = "passed", "failed", "not run"

JSON, PAGE = "gpu.json", "gpu.md"

ROOT = Path(__file__).resolve().parent.parent


class CheckFailed(Exception):  # noqa: N818 (a finding, not an error of the program)
    """A check failed. The message says what is wrong, where, and what was expected."""


class CannotRun(Exception):  # noqa: N818
    """A step needs something that this machine does not have. The message says what."""


@dataclass(frozen=True)
class Finding:
    """The result of a step.

    Attributes:
        text: One sentence.
        table: A Markdown table; empty if there is none.
        data: The figures behind the table, as values that JSON can store.
    """

    text: str
    table: str = ""
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """A step that was run.

    Attributes:
        part: The part that it belongs to.
        name: Name of the step.
        state: "passed", "failed" or "not run".
        seconds: Duration in seconds.
        finding: The result.
    """

    part: str
    name: str
    state: str
    seconds: float
    finding: Finding


class Results:
    """The results in a folder, including those of earlier parts.

    Args:
        out: The folder. It is created if it does not exist.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        out.mkdir(parents=True, exist_ok=True)
        path = out / JSON
        found = json.loads(path.read_text("utf-8")) if path.exists() else {}
        self.machine: dict[str, Any] = found.get("machine", {})
        self.steps = self.steps_of(found)

    @staticmethod
    def steps_of(found: dict[str, Any]) -> list[Step]:
        """Return the steps in the contents of a results file."""
        entries = found.get("steps", [])
        return [Step(**{**entry, "finding": Finding(**entry["finding"])}) for entry in entries]

    @property
    def failed(self) -> list[Step]:
        """The steps that failed."""
        return [step for step in self.steps if step.state == FAILED]

    def describe(self, **facts: Any) -> None:
        """Add facts about the machine and the run."""
        self.machine |= facts
        self._write()

    def add(self, step: Step) -> None:
        """Add a step and write both files."""
        self.steps.append(step)
        self._write()

    def run(self, part: str, name: str, work: Callable[[], Finding]) -> Step:
        """Run a check and add its result, even if it raises.

        Args:
            part: The part that it belongs to.
            name: Name of the check.
            work: Runs the check. It raises `CheckFailed` if something is wrong.
        """
        started = time.monotonic()
        try:
            state, finding = PASSED, work()
        except CannotRun as reason:
            state, finding = NOT_RUN, Finding(str(reason))
        except CheckFailed as reason:
            state, finding = FAILED, Finding(str(reason))
        except Exception as error:  # an error in one check must not lose the others
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(last.filename).name}:{last.lineno}"
            # without this machine's paths: the results may be published
            lines = [line.replace(f"{ROOT}/", "") for line in traceback.format_exception(error)]
            text = " ".join(f"{type(error).__name__} at {where}: {error}".split())
            state, finding = FAILED, Finding(text[:500], data={"traceback": lines})
        step = Step(part, name, state, round(time.monotonic() - started, 2), finding)
        self.add(step)
        return step

    def _write(self) -> None:
        content = {"machine": self.machine, "steps": [asdict(step) for step in self.steps]}
        with _replacing(self.out / JSON) as path:
            path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        with _replacing(self.out / PAGE) as path:
            path.write_text(page(self.machine, self.steps), encoding="utf-8")


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path, which replaces the file at the end."""
    temporary = path.with_name(path.name + ".tmp")
    yield temporary
    temporary.replace(path)


def page(machine: dict[str, Any], steps: list[Step]) -> str:
    """Return the results as a Markdown page."""
    head = [f"- {name}: {value}" for name, value in machine.items()]
    counts = {
        state: sum(step.state == state for step in steps) for state in (PASSED, FAILED, NOT_RUN)
    }
    summary = ", ".join(f"{count} {state}" for state, count in counts.items())
    return "\n".join(["# GPU check", "", *head, f"- checks: {summary}", "", *sections(steps)])


def sections(steps: list[Step], level: int = 2) -> list[str]:
    """Return the Markdown lines of all parts: for each one, its steps and then their tables."""
    lines: list[str] = []
    for part in dict.fromkeys(step.part for step in steps):
        own = [step for step in steps if step.part == part]
        lines += [
            f"{'#' * level} {part.capitalize()}",
            "",
            "| check | result | seconds | details |",
        ]
        lines += ["| --- | --- | --- | --- |"]
        for step in own:
            text = step.finding.text.replace("|", "\\|").replace("\n", " ")
            lines.append(f"| {step.name} | {step.state} | {step.seconds:.1f} | {text} |")
        lines.append("")
        for step in own:
            if step.finding.table:
                lines += [f"**{step.name}**", "", step.finding.table, ""]
    return lines
