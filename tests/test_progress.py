"""What `train` says about its progress without a terminal."""

import time
from pathlib import Path

import pytest

from mixout_export_cli.output import Output
from mixout_export_cli.progress import TrainingDisplay


class Clock:
    """A clock that goes on only when told."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


def run(output: Output, clock: Clock, *, steps: int = 100, seconds: float = 2.0) -> None:
    """Do 100 steps of two seconds, with an evaluation and a checkpoint every 50 steps."""
    with TrainingDisplay(output) as display:
        display.started(steps=steps, done=0, examples=3000)
        for step in range(1, steps + 1):
            clock.now += seconds
            display.stepped(step=step, examples=32, loss=0.5)
            if step % 50 == 0:
                display.evaluated(step=step, metrics={"loss": 0.4, "accuracy": 0.75})
                display.saved(step=step, path=Path("out.partial"))


def test_lines_come_every_half_minute_and_with_each_evaluation(
    clock: Clock, capfd: pytest.CaptureFixture[str]
) -> None:
    run(Output(json=True), clock)
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "step 0/100: training on 3,000 examples",
        "step 15/100: training loss 0.500, 0:02:50 left",
        "step 30/100: training loss 0.500, 0:02:20 left",
        "step 45/100: training loss 0.500, 0:01:50 left",
        "step 50/100: evaluation loss 0.4000, accuracy 0.7500",
        "step 65/100: training loss 0.500, last accuracy 0.750, saved step 50, 0:01:10 left",
        "step 80/100: training loss 0.500, last accuracy 0.750, saved step 50, 0:00:40 left",
        "step 95/100: training loss 0.500, last accuracy 0.750, saved step 50, 0:00:10 left",
        "step 100/100: evaluation loss 0.4000, accuracy 0.7500",
    ]


def test_a_fast_run_says_little(clock: Clock, capfd: pytest.CaptureFixture[str]) -> None:
    run(Output(), clock, seconds=0.01)
    assert len(capfd.readouterr().err.splitlines()) == 3


def test_quiet_prints_none(clock: Clock, capfd: pytest.CaptureFixture[str]) -> None:
    run(Output(quiet=True), clock)
    assert capfd.readouterr() == ("", "")


def test_other_processes_say_nothing(
    clock: Clock, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    run(Output(), clock)
    assert capfd.readouterr().err == ""
