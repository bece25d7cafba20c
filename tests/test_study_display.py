"""How a study is shown while it goes on."""

import re

import pytest
from study_records import record

from mixout_export.study.records import CRASHED, DIVERGED
from mixout_export_cli.output import Output
from mixout_export_cli.progress import StudyDisplay


def show(output: Output) -> None:
    """Show a study of five runs that goes on with its third."""
    with StudyDisplay(output) as display:
        display.started(runs=5, done=2, seconds_left=None)
        display.finished(record(seed=2), done=3, seconds_left=124.4)
        lost = record(seed=3, score=None, status=CRASHED, error="Traceback\n  …\nOSError: full\n")
        display.finished(lost, done=3, seconds_left=124.4)
        wild = record(arm="[bold]", seed=3, score=None, status=DIVERGED, seconds=3.2)
        display.finished(wild, done=4, seconds_left=62.0)
        display.finished(record(seed=4, score=None), done=5, seconds_left=0.0)


def test_without_a_terminal_each_run_is_a_line(capfd: pytest.CaptureFixture[str]) -> None:
    show(Output(json=True))
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "run 2/5: resumed",
        "run 3/5: CoLA, plain, seed 2: matthews 0.4000 in 62 s, 0:02:04 left",
        "run 3/5: CoLA, plain, seed 3: crashed: OSError: full, 0:02:04 left",
        "run 4/5: CoLA, [bold], seed 3: diverged, which counts as failed, 0:01:02 left",
        "run 5/5: CoLA, plain, seed 4: matthews nan in 62 s, 0:00:00 left",
    ]


def test_a_new_study_says_at_once_that_it_has_started(capfd: pytest.CaptureFixture[str]) -> None:
    with StudyDisplay(Output()) as display:
        display.started(runs=5, done=0, seconds_left=None)
    assert capfd.readouterr().err == "run 0/5: started\n"


def test_quiet_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    show(Output(quiet=True))
    assert capfd.readouterr() == ("", "")


def test_a_narrow_terminal_shows_a_bar_and_whole_words(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Output, "shows_progress", True)
    for name, value in (("FORCE_COLOR", "1"), ("COLUMNS", "36"), ("TERM", "xterm")):
        monkeypatch.setenv(name, value)
    show(Output())
    err = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", capfd.readouterr().err).replace("\r", "\n")
    lines = [line.rstrip() for line in err.splitlines()]
    assert all(len(line) <= 36 for line in lines)
    assert "CoLA, plain, seed 2:" in " ".join(lines)
    assert any(re.fullmatch(r"run 5/5 ━+ 0:00:00 left", line) for line in lines)
