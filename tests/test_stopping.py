"""What a signal does at which moment of a training run."""

import os
import signal

import pytest

from mixout_export_cli.stopping import StopRequest


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_before_the_first_step_a_signal_stops_at_once(number: int) -> None:
    with StopRequest(notice=False) as request, pytest.raises(KeyboardInterrupt):
        send(number)
    assert request.number == number


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_after_a_step_a_signal_is_a_request(number: int, capfd: pytest.CaptureFixture[str]) -> None:
    with StopRequest(notice=True) as request:
        assert not request()
        send(number)
        assert request()
    assert request.number == number
    assert capfd.readouterr().err == (
        "\nfinishing this step and saving a checkpoint; press Ctrl-C to stop at once\n"
    )


def test_a_second_ctrl_c_stops_at_once_and_a_second_sigterm_does_not() -> None:
    with StopRequest(notice=False) as request:
        request()
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
    assert request.number == signal.SIGTERM


def test_signals_do_what_they_did_before() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with StopRequest(notice=False):
        assert signal.getsignal(signal.SIGTERM) not in before
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
