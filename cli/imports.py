"""Imports of PyTorch and transformers, as fast as they go."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Look for no garbage while modules are imported, and never again among what they made.

    Their million objects stay; searching them over and over takes a tenth of the start.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
