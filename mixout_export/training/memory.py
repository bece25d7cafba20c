"""How the C library treats memory that a training step frees."""

import ctypes
import gc
import sys

#: `mallopt` parameters of the GNU C library (malloc.h), with what they are set to. Older versions
#: refuse a threshold above 32 MiB.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_NEVER, _LARGE = 2**31 - 1, (1 << 30, 1 << 25)


def keep_freed_memory() -> bool:
    """Let this process keep freed memory for its next allocation instead of giving it back.

    Each training step frees and allocates the same gradients and activations. By default the large
    ones go back to the system, and having their pages again costs up to a tenth of a step on a CPU.

    Returns:
        Whether the C library supports it. Other libraries are left unchanged.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # setting either ends the library's own adjustment, so the second alone would do harm
    if not any(mallopt(_MMAP_THRESHOLD, size) for size in _LARGE):
        return False
    return bool(mallopt(_TRIM_THRESHOLD, _NEVER))


def release_freed_memory() -> None:
    """Give memory that this process has freed back to the system, where that is supported.

    A process that does many runs would otherwise keep as much as the largest of them needed.
    """
    gc.collect()
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
