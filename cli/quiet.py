"""Keep libraries from printing to stderr, before any of them is imported."""

import _thread
import logging
import os
import sys
import warnings


def silence_libraries() -> None:
    """Set the environment variables and hooks that keep libraries quiet."""
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
    if not root.handlers:  # otherwise Python prints what libraries log
        root.addHandler(logging.NullHandler())


def _on_unraisable(event: "sys.UnraisableHookArgs") -> None:
    """Ignore the errors of destructors, but pass on Ctrl-C."""
    if isinstance(event.exc_value, KeyboardInterrupt):
        _thread.interrupt_main()
