"""The page of a study: what is on it, and that it is safe and repeatable."""

import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from report_pages import BRACES, SCRIPT, STYLE, UNICODE, Page
from study_records import crashed, diverged, record, sweep

from mixout_export.plotting import BAD, COLORS, INK, LINE, MUTED, PAPER
from mixout_export.report.study.page import StudyFacts, write_study_report
from mixout_export.report.words import duration, p_value, score
from mixout_export.study.analysis import summarize
from mixout_export.study.records import RunRecord
from mixout_export.study.summary import Comparison, StudySummary

PLAN = '[study]\nbase = "demo-base"  # <b>&\n'
TAGS = (
    "html head meta title link style body main header nav section div span h1 h2 p a ul li dl dt "
    "dd table caption thead tbody tr th td details summary figure figcaption small bdi pre code "
    "time svg circle path rect text g defs use clippath"
)


def summary_of(records: Sequence[RunRecord]) -> StudySummary:
    tasks = list(dict.fromkeys(r.task for r in records))
    arms = list(dict.fromkeys(r.arm for r in records))
    return summarize(records, tasks=tasks, arms=arms, baseline=arms[0])


def write(records: Sequence[RunRecord], folder: Path, **options: object) -> Page:
    folder.mkdir(exist_ok=True)
    write_study_report(folder, PLAN, records, summary_of(records), **options)
    return Page((folder / "report.html").read_text("utf-8"))


@pytest.fixture(scope="module")
def records() -> list[RunRecord]:
    runs = [*sweep("CoLA", 10), *sweep("RTE", 10, metric="accuracy", chance=0.2)]
    return [*runs, crashed("plain", 11), diverged("mixout 0.9", 12)]


@pytest.fixture(scope="module")
def page(records: list[RunRecord], tmp_path_factory: pytest.TempPathFactory) -> Page:
    made = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    command = "mixout-export study plan.toml out"
    folder = tmp_path_factory.mktemp("study")
    return write(records, folder, planned=66, command=command, made=made)


def sentences(comparison: Comparison) -> list[str]:
    found = [comparison.sentence]
    for test in (comparison.failures, comparison.spread, comparison.one_or_several):
        found += [test.sentence] if test else []
    if comparison.one_or_several:
        found.append(comparison.one_or_several.time_sentence)
    return found


def test_the_recommendation_comes_first(page: Page, records: list[RunRecord]) -> None:
    said = summary_of(records).recommendation
    assert said.supported
    assert page.text.startswith(f"Recommended: {said.arm} {said.line}")
    assert "The study is not complete: 5 of 66 runs are missing." in page.text


def test_every_arm_and_every_sentence_is_on_the_page(page: Page, records: list[RunRecord]) -> None:
    summary = summary_of(records)
    comparisons = [*summary.comparisons]
    for task in summary.tasks:
        assert task.name in page.all("bdi")
        assert task.recommendation.line in page.text
        comparisons += task.comparisons
    assert len(comparisons) == 6
    for comparison in comparisons:
        for sentence in sentences(comparison):
            assert sentence in page.text
    for note in summary.notes:
        assert note in page.text


def test_the_numbers_are_those_of_the_summary(page: Page, records: list[RunRecord]) -> None:
    for task in summary_of(records).tasks:
        gains = {comparison.arm: comparison for comparison in task.comparisons}
        for arm in task.arms:
            row = [arm.name, str(arm.runs)]
            for estimate in (arm.mean, arm.median, arm.spread):
                assert estimate is not None
                assert estimate.low is not None
                row += [score(estimate.value), score(estimate.low), "to", score(estimate.high)]
            row.append(score(arm.best))
            assert arm.failed is not None
            row += [str(arm.failed.count), "of", str(arm.failed.runs)]
            assert " ".join(row) in page.text
            if arm.name in gains:
                gain = gains[arm.name].gain
                assert gain is not None
                cells = [score(gain.value), score(gain.low), "to", score(gain.high)]
                cells.append(p_value(gains[arm.name].p_corrected))
                cells.append(duration(arm.training_seconds or 0.0))
                assert " ".join(cells) in page.text


def test_every_run_is_in_the_table(page: Page, records: list[RunRecord]) -> None:
    assert len(re.findall(r"<td class=\"mono\">0123456789ab</td>", page.html)) == len(records)
    assert "crashed: out of memory" in page.text
    assert "diverged: step 27: the loss is nan" in page.text
    assert f"all {len(records)} runs" in page.text


def test_how_it_was_run_is_told(page: Page) -> None:
    assert "mixout-export study plan.toml out" in page.text
    assert '[study] base = "demo-base" # <b>&' in page.text
    assert "2026-01-02 03:04:05 UTC" in page.text
    assert "torch 2.13.0" in page.text
    assert "mixout-export train prepared trained --train-file train.tsv --seed 0" in page.text


def test_each_picture_is_a_figure_with_a_text_alternative(page: Page) -> None:
    described = [a["aria-label"] for tag, a in page.tags if tag == "svg" and "aria-label" in a]
    assert len(described) == page.html.count("<figure>") == 11
    assert all(described)
    assert "Scores of all runs on all tasks. CoLA: plain: mean " in str(described[0])
    assert "Scores of all runs. CoLA, plain: mean " in str(described[1])
    assert "1 failed" in str(described[1])
    roles = [a.get("role") for tag, a in page.tags if tag == "svg" and "aria-label" in a]
    assert set(roles) == {"img"}


def test_nothing_runs_and_nothing_is_loaded(page: Page) -> None:
    assert page.names() <= set(TAGS.split())
    for tag, attributes in page.tags:
        assert "style" not in attributes, tag
        assert not any(name.startswith("on") or name == "src" for name in attributes), tag
        for name in ("href", "clip-path"):
            target = attributes.get(name) or "#"
            inner = target.removeprefix("url(").startswith("#")
            assert inner or (tag == "link" and target.startswith("data:")), target


def test_ids_are_unique_and_what_is_referred_to_is_there(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.tags:
        for name in ("href", "clip-path", "aria-labelledby"):
            target = (attributes.get(name) or "").removeprefix("url(").strip("#)")
            assert not target or target.startswith("data:") or target in ids, target


def test_tables_have_named_columns_and_rows(page: Page) -> None:
    headers = [attributes for tag, attributes in page.tags if tag == "th"]
    assert {attributes.get("scope") for attributes in headers} == {"col", "row"}
    assert page.html.count("<table") == page.html.count("<caption")


def test_hostile_names_are_shown_as_they_are(tmp_path: Path) -> None:
    task, arm = f"{SCRIPT} {UNICODE}", f"{STYLE} {BRACES} \uffff"
    page = write([record(task, arm, s, error=f"Traceback\n{SCRIPT}\n") for s in range(2)], tmp_path)
    assert page.names() <= set(TAGS.split())
    assert task.replace("\u202e", "⟨U+202E⟩") in page.all("bdi")
    assert arm.replace("\uffff", "⟨U+FFFF⟩") in page.all("bdi")
    assert SCRIPT in page.all("bdi"), "the last line of an error"
    assert "Traceback" not in page.text
    assert all(re.fullmatch(r"[\w.-]+", path.name) for path in (tmp_path / "pictures").iterdir())


def test_equal_studies_give_equal_pages_in_whatever_order_runs_ended(tmp_path: Path) -> None:
    runs = sweep(seeds=2)
    first = write(runs, tmp_path / "a")
    (tmp_path / "b").mkdir()
    write_study_report(tmp_path / "b", PLAN, runs[::-1], summary_of(runs))
    assert (tmp_path / "b" / "report.html").read_text("utf-8") == first.html
    assert "<time" not in first.html


def test_runs_of_arms_that_the_plan_no_longer_has_are_left_out(tmp_path: Path) -> None:
    runs = [record(curve=())]
    summary = summary_of(runs)
    write_study_report(tmp_path, PLAN, [*runs, record(arm="former")], summary)
    assert "former" not in (tmp_path / "report.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("runs", "title"),
    [
        ([crashed()], "No run has ended yet"),
        ([record()], "One arm, nothing to compare"),
        ([record(), record(arm="mixout")], "No arm found that is better than plain"),
        (
            [record(), record(arm="mixout"),
             *(record("LM", arm, metric="perplexity", lower_is_better=True, chance=9.0, score=5.0)
               for arm in ("plain", "mixout"))],
            "See each task",
        ),
    ],
    ids=["none", "one arm", "too few", "several metrics"],
)  # fmt: skip
def test_titles_say_no_more_than_is_known(
    runs: list[RunRecord], title: str, tmp_path: Path
) -> None:
    assert write([replace(run, curve=()) for run in runs], tmp_path).all("h1") == [title]


def test_a_study_without_runs_has_a_page(tmp_path: Path) -> None:
    summary = summarize([], tasks=["CoLA"], arms=["plain", "mixout"], baseline="plain")
    write_study_report(tmp_path, PLAN, [], summary, planned=4)
    page = Page((tmp_path / "report.html").read_text("utf-8"))
    assert page.all("h1") == ["No run has ended yet"]
    assert "No run of this task has ended yet." in page.text
    assert "4 of 4 runs are missing" in page.text


def test_the_style_sheet_knows_the_colors_of_pictures(page: Page) -> None:
    for color in (INK, MUTED, LINE, PAPER, BAD, *COLORS):
        for name in ("fill", "stroke"):
            assert f'.plot [{name}="{color}"] {{ {name}: var(--' in page.html


def test_runs_are_counted(records: list[RunRecord]) -> None:
    facts = StudyFacts(records, summary_of(records), 70)
    assert (len(facts.ended), facts.crashed, facts.missing) == (61, 1, 9)
    assert facts.failed == sum(run.failed for run in records if run.status != "crashed")
    assert facts.versions == {"mixout-export": "0.1.0", "torch": "2.13.0"}
