"""Signals: training finishes its step and saves a checkpoint; other commands clean up."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from mixout_export_cli.output import InterruptionError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_NOTICE = b"\nfinishing this step and saving a checkpoint; press Ctrl-C to stop at once\n"


class StopRequest:
    """Within a `with` block, Ctrl-C or SIGTERM stops training after the current step.

    A signal before the first step, or Ctrl-C after an earlier signal, stops the program at once. A
    second SIGTERM has no effect.

    Args:
        notice: Whether to print a notice on stderr.
    """

    def __init__(self, *, notice: bool) -> None:
        self._notice = notice
        self._earlier: dict[int, Any] = {}
        self.has_stepped = False
        #: The first signal received, or None.
        self.number: int | None = None

    def __call__(self) -> bool:
        """Return whether to stop."""
        self.has_stepped = True
        return self.number is not None

    def _ask(self, number: int, _: FrameType | None) -> None:
        again = self.number is not None
        self.number = self.number or number
        if not self.has_stepped or (again and number == signal.SIGINT):
            raise KeyboardInterrupt
        if self._notice and not again:
            os.write(2, _NOTICE)  # a handler must not use the stream that it may have interrupted

    def __enter__(self) -> "StopRequest":
        self._earlier = {number: signal.signal(number, self._ask) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)


@contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, so that what was half-written is removed."""

    def stop(number: int, _: FrameType | None) -> None:
        raise InterruptionError("stopped by SIGTERM; existing files are unchanged", number)

    earlier = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)
