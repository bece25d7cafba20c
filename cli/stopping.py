"""Signals during training: finish the step, save a checkpoint, then stop."""

import os
import signal
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_NOTICE = b"\nfinishing this step and saving a checkpoint; press Ctrl-C again to stop at once\n"


class StopRequest:
    """Takes SIGINT and SIGTERM, within a `with` block, as a request to stop after the step.

    Before the first step, and at a second Ctrl-C, a signal stops the program at once.

    Args:
        notice: Whether to say on stderr what goes on.
    """

    def __init__(self, *, notice: bool) -> None:
        self._notice = notice
        self._earlier: dict[int, Any] = {}
        self.training = False
        #: The signal that came; None before one does.
        self.number: int | None = None

    def __call__(self) -> bool:
        """Return whether to stop."""
        self.training = True  # a step has been done
        return self.number is not None

    def _ask(self, number: int, _: FrameType | None) -> None:
        again = self.number is not None
        self.number = self.number or number
        if not self.training or (again and number == signal.SIGINT):
            raise KeyboardInterrupt
        if self._notice and not again:
            os.write(2, _NOTICE)  # a handler must not use the stream that it may have interrupted

    def __enter__(self) -> "StopRequest":
        self._earlier = {number: signal.signal(number, self._ask) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
