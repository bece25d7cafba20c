"""Write the page of a study: the recommendation, each task, how it was run, and all runs."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path

from mixout_export.files.layout import LAYOUT
from mixout_export.files.output import replaced_file
from mixout_export.report.skeleton import render
from mixout_export.report.study.pictures import Picture, StudyPictures, draw_pictures
from mixout_export.report.study.series import task_series
from mixout_export.study.records import CRASHED, RunRecord
from mixout_export.study.summary import Comparison, StudySummary, TaskSummary


@dataclass(frozen=True)
class StudyFacts:
    """What the page says about the runs as a whole.

    Attributes:
        records: The runs.
        summary: What they show.
        planned: Number of runs in the plan.
        command: The command that ran the study; "" if unknown.
        made: When the page was written, in UTC; None leaves it out.
    """

    records: Sequence[RunRecord]
    summary: StudySummary
    planned: int
    command: str = ""
    made: datetime | None = None

    @cached_property
    def ended(self) -> list[RunRecord]:
        """The runs that count: all but those that crashed."""
        return [record for record in self.records if record.status != CRASHED]

    @property
    def crashed(self) -> int:
        """Number of runs whose last attempt crashed."""
        return len(self.records) - len(self.ended)

    @property
    def failed(self) -> int:
        """Number of runs at or below chance level, or whose loss was not finite."""
        return sum(record.failed for record in self.ended)

    @property
    def missing(self) -> int:
        """Number of planned runs that have not ended."""
        return max(0, self.planned - len(self.ended))

    @property
    def training_seconds(self) -> float:
        """Seconds of the training steps of all runs."""
        return sum(record.training_seconds for record in self.ended)

    @property
    def seconds(self) -> float:
        """Seconds of all runs from start to end."""
        return sum(record.seconds for record in self.records)

    @property
    def devices(self) -> list[str]:
        """The devices, most frequent first."""
        return [name for name, _ in Counter(r.device for r in self.records).most_common()]

    @property
    def threads(self) -> list[int]:
        """The numbers of CPU threads."""
        return sorted({record.threads for record in self.records})

    @property
    def versions(self) -> dict[str, str]:
        """Package → version, several versions if runs differ."""
        found: dict[str, dict[str, None]] = {}
        for record in self.records:
            for package, version in record.versions.items():
                found.setdefault(package, {})[version] = None
        return {package: ", ".join(versions) for package, versions in sorted(found.items())}

    @property
    def examples(self) -> list[RunRecord]:
        """The first run of each task and arm."""
        first: dict[tuple[str, str], RunRecord] = {}
        for record in self.records:
            if record.commands:
                first.setdefault((record.task, record.arm), record)
        return list(first.values())

    @property
    def title(self) -> str:
        """The page's title."""
        recommended = self.summary.recommendation
        if not self.ended:
            return "No run has ended yet"
        if recommended.supported:
            return f"Recommended: {recommended.arm}"
        if all(len(task.arms) == 1 for task in self.summary.tasks):
            return "One arm, nothing to compare"
        if len(self.summary.tasks) > 1 and not self.summary.comparisons:
            return "See each task"
        return f"No arm found that is better than {recommended.arm}"


@dataclass(frozen=True)
class _Section:
    """One task on the page."""

    anchor: str
    task: TaskSummary
    pictures: Sequence[Picture]

    @property
    def comparisons(self) -> dict[str, Comparison]:
        """The comparison of each arm with the baseline."""
        return {comparison.arm: comparison for comparison in self.task.comparisons}


def render_study(facts: StudyFacts, plan_text: str, pictures: StudyPictures) -> str:
    """Return the page as HTML."""
    tasks = zip(facts.summary.tasks, pictures.tasks, strict=True)
    return render(
        "study.html.jinja",
        "good" if facts.summary.recommendation.supported else "even",
        facts=facts,
        summary=facts.summary,
        records=facts.records,
        overview=pictures.overview,
        sections=[
            _Section(f"task-{number}", task, drawn)
            for number, (task, drawn) in enumerate(tasks, start=1)
        ],
        plan=plan_text,
        folder=LAYOUT.pictures,
    )


def _in_order(records: Sequence[RunRecord], summary: StudySummary) -> list[RunRecord]:
    """Return the records of the plan's tasks and arms in its order, then by their seeds."""
    places = {
        (task.name, arm.name): (number, place)
        for number, task in enumerate(summary.tasks)
        for place, arm in enumerate(task.arms)
    }
    known = [record for record in records if (record.task, record.arm) in places]
    return sorted(known, key=lambda r: (places[r.task, r.arm], astuple(r.seeds)))


def write_study_report(
    folder: Path,
    plan_text: str,
    records: Sequence[RunRecord],
    summary: StudySummary,
    *,
    planned: int | None = None,
    command: str = "",
    made: datetime | None = None,
) -> None:
    """Write the pictures and the page of a study. Older ones are replaced.

    Equal arguments give equal bytes.

    Args:
        folder: The folder of the study.
        plan_text: The plan as TOML.
        records: One for each task, arm and seeds that has one, in any order, as for `summarize`.
        summary: What they show.
        planned: Number of runs in the plan; by default the number of records.
        command: The command that ran the study.
        made: When the page is written, in UTC; None leaves the date out.

    Raises:
        OutputError: It cannot be written.
    """
    records = _in_order(records, summary)
    tasks = [task_series(task, records) for task in summary.tasks]
    pictures = draw_pictures(tasks, folder / LAYOUT.pictures)
    number = len(records) if planned is None else planned
    page = render_study(StudyFacts(records, summary, number, command, made), plan_text, pictures)
    with replaced_file(folder / LAYOUT.report) as partial:
        partial.write_text(page, encoding="utf-8", newline="\n")
