"""The package works without the names that Python has only on POSIX systems, or only on Linux."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import TinyCheckpoints
from cli_runs import environment
from training_runs import sentences, write_tsv

#: What Windows lacks: modules, names of `os`, and signals. macOS lacks some of them. Libraries that
#: check the platform first still find what they need then: psutil `resource`, huggingface_hub
#: `termios`, PyTorch `SIGKILL`.
ABSENT = """
import os, psutil, signal, sys

for module in ("fcntl", "grp", "pty", "pwd", "resource"):
    sys.modules[module] = None  # which makes its import an ImportError
for name in (
    "O_DIRECT", "chown", "fchmod", "fork", "geteuid", "getuid", "killpg", "link", "mkfifo",
    "posix_fadvise", "posix_fallocate", "pread", "pwrite", "sched_getaffinity",
    "sched_setaffinity", "sync", "wait4",
):
    vars(os).pop(name, None)
for name in ("SIGALRM", "SIGHUP", "SIGPIPE", "SIGQUIT", "SIGUSR1", "SIGUSR2"):
    vars(signal).pop(name, None)
"""


def run(command: str, *arguments: object) -> str:
    """Run a command of the program in a process without these names; return its output."""
    words = [command, *map(str, arguments)]
    script = f"{ABSENT}\nfrom mixout_export_cli.main import main\nmain({words!r})"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_core_commands_need_no_posix_names(tmp_path: Path, tiny: TinyCheckpoints) -> None:
    base = tiny.folder("bert", vocab_size=70_000)  # more than one block of 8 MB is written
    rows = write_tsv(tmp_path / "train.tsv", ("sentence", "label"), sentences(16, seed=0))
    prepared, trained, collapsed = (tmp_path / name for name in ("1", "2", "3"))
    run("prepare", base, prepared, "--task", "text-classification", "--labels", 2)
    run("train", prepared, trained, "--train-file", rows, "--max-steps", 2, "--batch-size", 4)
    run("collapse", trained, collapsed)
    assert json.loads(run("inspect", collapsed, "--json"))["kind"] == "huggingface"
    assert not list(tmp_path.glob("*/*.lock"))


@pytest.mark.parametrize("name", ["import fcntl", "os.link", "signal.SIGHUP"])
def test_the_names_are_absent(name: str) -> None:
    script = f"{ABSENT}\n{name}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
