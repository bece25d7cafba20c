"""Arguments that several benchmarks take, checked before anything is measured."""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.arms import ARMS


def rounds(text: str) -> int:
    """Read a number of rounds: enough for quartiles."""
    if not text.isdigit() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"got {text}, expected at least 2")
    return int(text)


def positive(text: str) -> int:
    """Read a number of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text}, expected at least 1")
    return int(text)


def device(text: str) -> str:
    """Read a device, which must be there."""
    try:
        torch.zeros((), device=text)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"{text} cannot be used ({reason})") from error
    return text


def folder_with(*names: str) -> Callable[[str], Path]:
    """Return a reader of a folder that must hold certain files."""

    def read(text: str) -> Path:
        missing = [name for name in names if not (Path(text) / name).is_file()]
        if missing:
            raise argparse.ArgumentTypeError(f"{text} holds no {missing[0]}")
        return Path(text)

    return read


def arm(text: str) -> str:
    """Read the name of an arm."""
    if text not in ARMS:
        raise argparse.ArgumentTypeError(f"there is no {text!r}, expected {', '.join(ARMS)}")
    return text


BASE = folder_with("config.json", "model.safetensors")
DATA = folder_with("train.tsv", "dev.tsv")
