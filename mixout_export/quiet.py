"""Keep libraries' own reports off the terminal."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_CHATTY = ("transformers", "torch.onnx", "onnxscript", "onnx_ir", "huggingface_hub", "accelerate")


class _Silencer(logging.Filter):
    """Drop every record below CRITICAL."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.CRITICAL


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence warnings, logs and progress bars of the libraries used, for a while.

    What matters of it reaches the user as an error of this package.
    """
    with quiet_logs(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def quiet_logs() -> Iterator[None]:
    """Silence logs and progress bars, but not Python's warnings, which other code may collect."""
    from transformers.utils import logging as transformers_logging

    silencer = _Silencer()
    handlers = [h for name in _CHATTY for h in logging.getLogger(name).handlers]
    bars = transformers_logging.is_progress_bar_enabled()
    earlier = {name: logging.getLogger(name).level for name in _CHATTY}
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    for handler in handlers:
        handler.addFilter(silencer)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(silencer)
        for name, level in earlier.items():
            logging.getLogger(name).setLevel(level)
        if bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
