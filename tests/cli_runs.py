"""Runs of the program inside the test's own process, and what it is run on."""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from checkpoints import TinyCheckpoints
from training_runs import sentences, write_tsv

from mixout_export.checkpoint.base import BaseOptions
from mixout_export.stages.collapse import collapse_checkpoint
from mixout_export.stages.onnx_export import export_onnx
from mixout_export.stages.prepare import PrepareOptions, prepare_checkpoint
from mixout_export.stages.train import DataOptions, train_checkpoint
from mixout_export.training.options import TrainOptions
from mixout_export_cli.main import main

LABELS = ("no", "yes")


@dataclass(frozen=True)
class Run:
    """How a run of the program ended and what it wrote."""

    code: int
    out: str
    err: str

    @cached_property
    def json(self) -> Any:
        """The one JSON object on stdout."""
        assert self.out.count("\n") == 1, self.out
        return json.loads(self.out, parse_constant=_refuse)

    @property
    def words(self) -> str:
        """What it wrote to stderr, without the lines that say how training goes."""
        lines = self.err.splitlines(keepends=True)
        return "".join(line for line in lines if not re.match(r"step \d+/\d+: ", line))

    def done(self) -> "Run":
        """Check that it did what it was told, without a warning or an error on stderr."""
        assert (self.code, self.words) == (0, ""), self.err
        return self

    def failed(self, code: int, *parts: str) -> str:
        """Check that it failed with one sentence that has all parts; return the sentence."""
        assert self.code == code, self.err
        assert self.out == ""
        assert self.words.startswith("mixout-export: ")
        assert self.words.endswith("\n")
        sentence = self.words.removeprefix("mixout-export: ")[:-1]
        assert "\n" not in sentence
        assert "internal error" not in sentence
        for part in parts:
            assert part in sentence
        return sentence

    def misused(self, *parts: str) -> str:
        """Check that click refused it, with the usage and one sentence; return the sentence."""
        assert (self.code, self.out) == (2, ""), self.err
        usage, hint, empty, sentence = self.err.splitlines()
        assert usage.startswith("Usage: mixout-export ")
        assert hint.startswith("Try 'mixout-export ")
        assert empty == ""
        assert sentence.startswith("Error: ")
        for part in parts:
            assert part in sentence
        return sentence


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


class Program:
    """Runs the program's `main` and captures what it and any library write to the terminal."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture

    def __call__(self, *arguments: object) -> Run:
        self._capture.readouterr()
        with pytest.raises(SystemExit) as ending:
            main([str(argument) for argument in arguments])
        out, err = self._capture.readouterr()
        assert isinstance(ending.value.code, int)
        return Run(ending.value.code, out, err)


def in_new_process(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the program as a user does, in a process of its own."""
    command = [sys.executable, "-m", "mixout_export_cli", *map(str, arguments)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run(command, text=True, timeout=300, env=environment(), **options)


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def children(process: int) -> list[int]:
    """Return the processes that a process has started (Linux)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(path.read_text().rpartition(")")[2].split()[1]) == process:
                found.append(int(path.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


@contextmanager
def small_files(limit: int) -> Iterator[None]:
    """Let no file grow beyond `limit` bytes, which looks like a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def content(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def a_copy(folder: Path, destination: Path) -> Path:
    """Copy a folder; the copies may be written to."""
    shutil.copytree(folder, destination)
    for file in destination.iterdir():
        file.chmod(0o644)
    return destination


@dataclass(frozen=True)
class Way:
    """The stations of a tiny checkpoint's way; tests must not change them."""

    root: Path
    base: Path
    classifier: Path

    @property
    def train_file(self) -> Path:
        return self.root / "train.tsv"

    @property
    def eval_file(self) -> Path:
        return self.root / "eval.tsv"

    @cached_property
    def prepared(self) -> Path:
        out = self.root / "prepared"
        options = BaseOptions(task="text-classification", labels=LABELS)
        prepare_checkpoint(str(self.base), out, PrepareOptions(base=options))
        return out

    @cached_property
    def regression(self) -> Path:
        out = self.root / "regression"
        prepare_checkpoint(str(self.base), out, PrepareOptions(base=BaseOptions(task="regression")))
        return out

    @cached_property
    def trained(self) -> Path:
        out = self.root / "trained"
        options = TrainOptions(epochs=1, batch_size=8, lr=1e-3)
        train_checkpoint(self.prepared, out, DataOptions(self.train_file, self.eval_file), options)
        return out

    @cached_property
    def collapsed(self) -> Path:
        out = self.root / "collapsed"
        collapse_checkpoint(self.trained, out)
        return out

    @cached_property
    def graph(self) -> Path:
        out = self.root / "graph"
        export_onnx(self.collapsed, out, verify=False)
        return out


def make_way(root: Path, tiny: TinyCheckpoints) -> Way:
    """Return a tiny BERT's way, each station made on first use."""
    way = Way(root, tiny.base(), tiny.classifier())
    header = ("sentence", "label")
    write_tsv(way.train_file, header, sentences(48, seed=0))
    write_tsv(way.eval_file, header, sentences(16, seed=1))
    return way
