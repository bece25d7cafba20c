"""Keep libraries from talking on stderr, before any of them is imported."""

import _thread
import logging
import os
import sys
import warnings


def silence_libraries() -> None:
    """Set what libraries look at when they are imported, and hear what they would print."""
    for name, value in (
        ("TRANSFORMERS_VERBOSITY", "error"),
        ("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1"),
        ("DATASETS_VERBOSITY", "error"),
        ("HF_DATASETS_DISABLE_PROGRESS_BARS", "1"),
        ("HF_HUB_VERBOSITY", "error"),
        ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
        ("HF_HUB_DISABLE_TELEMETRY", "1"),
        ("TORCH_CPP_LOG_LEVEL", "ERROR"),
        ("TOKENIZERS_PARALLELISM", "true"),
    ):
        os.environ.setdefault(name, value)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    sys.unraisablehook = _on_unraisable
    root = logging.getLogger()
    if not root.handlers:  # else Python prints what libraries log without a handler
        root.addHandler(logging.NullHandler())


def _on_unraisable(event: "sys.UnraisableHookArgs") -> None:
    """Swallow what a destructor raises, but Ctrl-C that happens to arrive in one: pass that on."""
    if isinstance(event.exc_value, KeyboardInterrupt):
        _thread.interrupt_main()
