"""Parse arguments that several benchmarks take, and check them before anything is measured."""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.arms import ARMS


def rounds(text: str) -> int:
    """Parse a number of rounds. Quartiles need at least 2."""
    if not text.isdigit() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"got {text}, expected a number of at least 2")
    return int(text)


def positive(text: str) -> int:
    """Parse a number of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text}, expected a number of at least 1")
    return int(text)


def device(text: str) -> str:
    """Parse the name of a device, and check that it can be used."""
    try:
        torch.zeros((), device=text)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"device {text} cannot be used ({reason})") from error
    return text


def folder_with(*names: str) -> Callable[[str], Path]:
    """Return a function that parses a folder and checks that it holds these files."""

    def parse(text: str) -> Path:
        missing = [name for name in names if not (Path(text) / name).is_file()]
        if missing:
            raise argparse.ArgumentTypeError(f"{text} has no file {missing[0]}")
        return Path(text)

    return parse


def arm(text: str) -> str:
    """Parse the name of an arm."""
    if text not in ARMS:
        raise argparse.ArgumentTypeError(f"unknown arm {text!r}, expected one of {', '.join(ARMS)}")
    return text


BASE = folder_with("config.json", "model.safetensors")
DATA = folder_with("train.tsv", "dev.tsv")
