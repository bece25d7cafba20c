"""Each command reads `config.json`, `mixout_config.json` and `manifest.json` of an input once.

An audit hook sees every file that this process opens. A read is ours if the innermost frame outside
the standard library belongs to this package; transformers and other libraries read as they like.
"""

import os
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest
from checkpoints import TinyCheckpoints
from cli_runs import Program, Way, make_way
from transformers import AutoConfig

from mixout_export.files.input_files import InputFiles
from mixout_export.files.json_files import read_json

NAMES = {"config.json", "mixout_config.json", "manifest.json"}

STANDARD_LIBRARY = sysconfig.get_path("stdlib")
SITE_PACKAGES = sysconfig.get_path("purelib")


class Reads:
    """Counts the reads that this package makes; hooks cannot be removed, so it is switched."""

    def __init__(self) -> None:
        self.counts: Counter[str] | None = None
        self.outputs: tuple[Path, ...] = ()

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if event != "open" or self.counts is None:
            return
        opened, mode, _ = arguments
        if not isinstance(opened, str | os.PathLike) or (mode is not None and "r" not in str(mode)):
            return
        path = Path(opened)
        if path.name not in NAMES or any(map(path.is_relative_to, self.outputs)):
            return
        if opener(sys._getframe(1)).startswith("mixout_export"):
            self.counts[f"{path.parent.name}/{path.name}"] += 1

    @contextmanager
    def watch(self, *outputs: Path) -> Iterator[Counter[str]]:
        """Count reads, except of files below `outputs`."""
        self.counts, self.outputs = Counter(), outputs
        try:
            yield self.counts
        finally:
            self.counts = None


def opener(frame: FrameType | None) -> str:
    """Return the module of the innermost frame outside the standard library."""
    while frame is not None:
        file = frame.f_code.co_filename
        standard = file.startswith((STANDARD_LIBRARY, "<frozen")) and SITE_PACKAGES not in file
        if not standard:
            return str(frame.f_globals.get("__name__", ""))
        frame = frame.f_back
    return ""


@pytest.fixture(scope="module")
def reads() -> Reads:
    reads = Reads()
    sys.addaudithook(reads)
    return reads


@pytest.fixture(scope="module")
def way(tmp_path_factory: pytest.TempPathFactory, tiny: TinyCheckpoints) -> Way:
    way = make_way(tmp_path_factory.mktemp("way"), tiny)
    assert way.graph.is_dir()
    return way


@pytest.fixture
def program(capfd: pytest.CaptureFixture[str]) -> Program:
    return Program(capfd)


PLAIN = ("config.json", "manifest.json")
MIXOUT = (*PLAIN, "mixout_config.json")

#: Command with its arguments → what it reads of which station of the way. OUT is the output.
COMMANDS: dict[str, dict[str, tuple[str, ...]]] = {
    "prepare base OUT --task text-classification --labels 2": {"base": ("config.json",)},
    "train prepared OUT --train-file train_file --eval-file eval_file --max-steps 1": {
        "prepared": MIXOUT
    },
    "collapse trained OUT": {"trained": MIXOUT},
    "collapse trained OUT --interpolate 0.5": {"trained": MIXOUT},
    "onnx collapsed OUT": {"collapsed": PLAIN},
    "onnx trained OUT": {"trained": MIXOUT},
    "verify trained collapsed": {"trained": MIXOUT, "collapsed": PLAIN},
    "verify collapsed graph": {"collapsed": PLAIN, "graph": PLAIN},
    "verify collapsed graph --report OUT.html --drift": {"collapsed": PLAIN, "graph": PLAIN},
    "verify collapsed graph --data eval_file": {"collapsed": PLAIN, "graph": PLAIN},
    "verify collapsed bundle": {"collapsed": PLAIN, "bundle": ("manifest.json",)},
    "verify collapsed flat": {"collapsed": PLAIN, "flat": PLAIN},
    "verify collapsed collapsed": {"collapsed": PLAIN},
    "inspect base": {"base": ("config.json",)},
    "inspect trained": {"trained": MIXOUT},
    "inspect collapsed": {"collapsed": PLAIN},
    "inspect graph": {"graph": PLAIN},
    "inspect bundle": {"bundle": ("manifest.json",)},
    "bundle graph OUT --server triton": {"graph": PLAIN},
    "bundle graph OUT --server optimum": {"graph": PLAIN},
    "push trained me/model --dry-run": {"trained": MIXOUT},
    "push graph me/model --dry-run": {"graph": PLAIN},
    "push bundle me/model --dry-run": {"bundle": ("manifest.json",)},
}


@pytest.fixture(scope="module")
def bundles(way: Way) -> dict[str, Path]:
    from mixout_export.bundling.plan import BundleOptions
    from mixout_export.stages.bundle import bundle_onnx

    servers = {"bundle": "triton", "flat": "optimum"}
    for name, server in servers.items():
        bundle_onnx(way.graph, way.root / name, BundleOptions(server, "tiny"))
    return {name: way.root / name for name in servers}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_reads_each_file_of_an_input_once(
    command: str,
    way: Way,
    bundles: dict[str, Path],
    reads: Reads,
    program: Program,
    tmp_path: Path,
) -> None:
    def place(word: str) -> object:
        if word.startswith("OUT"):
            return tmp_path / word.replace("OUT", "out")
        return bundles.get(word) or getattr(way, word, word)

    name, *words = command.split()
    arguments = [place(word) for word in words]
    with reads.watch(tmp_path) as counts:
        run = program(name, *arguments)
    assert run.code == 0, run.err
    expected = {
        f"{Path(str(place(station))).name}/{file}": 1
        for station, files in COMMANDS[command].items()
        for file in files
    }
    assert dict(counts) == expected


def test_the_hook_sees_what_we_read_and_only_that(reads: Reads, way: Way) -> None:
    with reads.watch() as counts:
        read_json(way.collapsed / "config.json")
        InputFiles(way.collapsed).digest(way.collapsed / "config.json")
        AutoConfig.from_pretrained(way.collapsed)
        (way.collapsed / "config.json").read_bytes()
    assert dict(counts) == {"collapsed/config.json": 2}
