import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource
from mixout_export.training.memory import keep_freed_memory
assert not {kept} or keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
def turn():
    block = libc.malloc(100 << 20)
    ctypes.memset(block, 1, 100 << 20)
    libc.free(block)
turn()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
turn()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(*, kept: bool) -> int:
    """Return how many pages a fresh process needs again to allocate 100 MiB a second time."""
    program = PROGRAM.format(kept=kept)
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return int(run.stdout)


RELEASE = """
from pathlib import Path
from mixout_export.training.memory import release_freed_memory
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
turn()
kept = resident()
release_freed_memory()
print(kept, resident())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the GNU C library's")
def test_freed_memory_is_used_again() -> None:
    assert page_faults(kept=False) > 1000
    assert page_faults(kept=True) < 100


@pytest.mark.skipif(sys.platform != "linux", reason="needs the C library of Linux")
def test_what_was_kept_can_be_given_back() -> None:
    program = PROGRAM.format(kept=True).partition("turn()\nbefore")[0] + RELEASE
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    kept, released = map(int, run.stdout.split())
    assert kept - released > 90 << 20
