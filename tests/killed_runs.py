"""Runs of `train` in processes of their own that end by SIGKILL at a chosen moment."""

import multiprocessing
import os
import signal
import sys
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch

from mixout_export.stages.train import DataOptions, train_checkpoint
from mixout_export.training.options import TrainOptions

#: Imported once, in the server that the processes are forked from.
_PRELOADED = ["mixout_export.stages.train", "transformers.models.bert.modeling_bert"]

#: What changes the disk, as Python's audit hooks name it; "open" only to write.
_CHANGES = {"os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.chmod"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def _is_change(event: str, arguments: tuple[Any, ...], root: str) -> bool:
    if event == "open":
        return str(arguments[0]).startswith(root) and bool((arguments[2] or 0) & _WRITING)
    if event not in _CHANGES:
        return False
    removed_from_open_folder = event == "os.remove" and arguments[1] != -1  # by shutil.rmtree
    paths = [str(argument) for argument in arguments[:2]]
    return removed_from_open_folder or any(path.startswith(root) for path in paths)


def _kill_before(change: int, root: str) -> None:
    """End this process just before it changes anything below `root` for the nth time."""
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if not _is_change(event, arguments, root):
            return
        seen += 1
        if seen == change:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def _train(
    prepared: Path, out: Path, data: DataOptions, options: dict[str, Any], change: int | None
) -> None:
    torch.set_num_threads(1)
    if change is not None:
        _kill_before(change, str(out))
    train_checkpoint(prepared, out, data, TrainOptions(**options), resume=True)


def start(
    prepared: Path,
    out: Path,
    data: DataOptions,
    options: dict[str, Any],
    *,
    change: int | None = None,
) -> ForkServerProcess:
    """Start or resume a run; with `change`, it is killed just before its nth change to the disk."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    process = context.Process(target=_train, args=(prepared, out, data, options, change))
    process.start()
    return process
