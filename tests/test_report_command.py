import logging
import re
import shlex
from pathlib import Path

import pytest
from checkpoints import TinyCheckpoints
from cli_runs import Program, Way, make_way
from report_pages import Page, hostile_checkpoint, with_swapped_labels
from training_runs import write_tsv


@pytest.fixture
def program(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Program:
    logger = logging.getLogger("mixout_export")
    monkeypatch.setattr(logger, "handlers", list(logger.handlers))
    monkeypatch.setattr(logger, "propagate", logger.propagate)
    return Program(capfd)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hostile_checkpoint(tmp_path_factory.mktemp("hostile"))


def test_a_report_is_written_whether_or_not_parity_holds(
    program: Program, reference: Path, tmp_path: Path
) -> None:
    path = tmp_path / "a 'report'.html"
    broken = with_swapped_labels(reference, tmp_path / "broken")
    for candidate, code in ((reference, 0), (broken, 3)):
        arguments = ["verify", str(reference), str(candidate), "--json", "--report", str(path)]
        run = program(*arguments)
        assert (run.code, run.err, run.json["holds"]) == (code, "", code == 0)
        page = Page(path.read_text("utf-8"))
        assert page.all("h1") == ["Parity holds" if code == 0 else "Parity does not hold"]
        (command,) = page.all("code")
        assert shlex.split(command) == ["mixout-export", *arguments]
        assert f"exit code {code} " in page.text
    assert {file.name for file in tmp_path.iterdir()} == {path.name, "broken"}


def test_a_report_that_cannot_be_written_is_refused_before_anything_runs(
    program: Program, reference: Path, tmp_path: Path
) -> None:
    missing = tmp_path / "none" / "a.html"
    said = program("verify", reference, "nowhere", "--report", missing).failed(1, "does not exist")
    assert said.startswith(f"{missing}: ")
    run = program("verify", reference, "nowhere", "--report", tmp_path / "a.txt")
    run.failed(2, "--report: got 'a.txt', expected a name ending in .html")
    assert list(tmp_path.iterdir()) == []


def test_an_old_report_stays_where_nothing_could_be_compared(
    program: Program, reference: Path, tmp_path: Path
) -> None:
    path = tmp_path / "a.html"
    path.write_text("old")
    program("verify", reference, "nowhere", "--report", path).failed(
        1, "nowhere: no such file or folder"
    )
    assert path.read_text() == "old"


@pytest.fixture(scope="module")
def way(tmp_path_factory: pytest.TempPathFactory, tiny: TinyCheckpoints) -> Way:
    return make_way(tmp_path_factory.mktemp("way"), tiny)


def test_different_decisions_are_shown_with_the_row_and_the_text_of_the_users_file(
    program: Program, way: Way, tmp_path: Path
) -> None:
    changed = with_swapped_labels(way.collapsed, tmp_path / "changed")
    text = "  The CAT\u2019s <b>asleep</b>, isn't it?"
    data, page = tmp_path / "mine.tsv", tmp_path / "report.html"
    write_tsv(data, ("sentence", "label"), [(text, number % 2) for number in range(40)])
    program("verify", changed, way.collapsed, "--data", data, "--report", page)
    shown = Page(page.read_text("utf-8"))
    assert len(re.findall(r"Row \d+ \(line \d+\) of mine\.tsv\.", shown.text)) == 20
    assert "of the test inputs" not in shown.text.rpartition("Different decisions")[2]
    quoted = [part for tag, part in shown.texts if tag == "bdi" and "asleep" in part]
    assert quoted == [text] * 20
    decisions = shown.text.partition("Decisions from")[2]
    assert decisions.index("mine.tsv") < decisions.index("shapes")
