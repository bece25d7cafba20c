"""`demo`: run the complete workflow on a small real model and the data of this package."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from mixout_export.checkpoint.base import BaseOptions
from mixout_export.checkpoint.demo_base import DEMO_BASE, DEMO_LABELS, demo_base, demo_data
from mixout_export.files.output import output_folder
from mixout_export.parity.result import ParityResult
from mixout_export.stages.collapse import collapse_checkpoint
from mixout_export.stages.onnx_export import export_onnx
from mixout_export.stages.prepare import PrepareOptions, prepare_checkpoint
from mixout_export.stages.train import DataOptions, TrainResult, train_checkpoint
from mixout_export.stages.verify import verify_checkpoints
from mixout_export.training.options import TrainOptions
from mixout_export.training.records import Observer

_OPTIONS = TrainOptions(epochs=4, lr=1e-4, max_length=64)


@dataclass(frozen=True)
class Hop:
    """One step of the workflow and the result of its verification.

    Attributes:
        name: The two sides, as in "base → prepared".
        parity: Their comparison.
    """

    name: str
    parity: ParityResult


@dataclass(frozen=True)
class DemoResult:
    """What the demo wrote and measured.

    Attributes:
        out: The folder with everything.
        base: The folder of the pretrained checkpoint.
        commands: The commands that do the same, each as its words after the program's name.
        training: The result of finetuning.
        hops: The result of each verification.
        sizes: Folder → bytes.
        seconds: Stage → wall-clock seconds.
    """

    out: Path
    base: Path
    commands: tuple[tuple[str, ...], ...]
    training: TrainResult
    hops: tuple[Hop, ...]
    sizes: dict[str, int]
    seconds: dict[str, float]


def _published(parity: ParityResult, partial: Path, out: Path) -> ParityResult:
    """Return the result with the names that its folders have in the finished `out`."""
    return replace(
        parity,
        reference=parity.reference.replace(str(partial), str(out)),
        candidate=parity.candidate.replace(str(partial), str(out)),
    )


def _commands(out: Path, base: Path) -> tuple[tuple[str, ...], ...]:
    """Return the commands that do what `run_demo` does."""
    train_file, eval_file = map(str, demo_data())
    prepared, trained, collapsed, graph = (
        str(out / name) for name in ("prepared", "trained", "collapsed", "onnx")
    )
    task = ("--task", "text-classification", "--labels", ",".join(DEMO_LABELS))
    options = {"epochs": _OPTIONS.epochs, "lr": _OPTIONS.lr, "max-length": _OPTIONS.max_length}
    chosen = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    data = ("--train-file", train_file, "--eval-file", eval_file)
    return (
        ("prepare", DEMO_BASE, prepared, *task),
        ("train", prepared, trained, *data, *chosen),
        ("collapse", trained, collapsed),
        ("onnx", collapsed, graph, "--no-verify"),
        ("verify", str(base), prepared),
        ("verify", trained, collapsed),
        ("verify", collapsed, graph),
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
    """Run the complete workflow on a small real model, and verify every step.

    Args:
        out: The folder to write, with the folders prepared, trained, collapsed and onnx.
        overwrite: Whether a non-empty `out` may be replaced.
        observer: Receives the progress of training.
        say: Called with a line of text before each stage.

    Returns:
        Metrics before and after training, the result of each verification, sizes and times.

    Raises:
        CheckpointError: The package of the checkpoint is not installed.
        ParityError: The exported graph computes something else.
        OutputError: `out` cannot be written.
    """
    base = demo_base()
    train_file, eval_file = demo_data()
    seconds: dict[str, float] = {}

    @contextmanager
    def stage(name: str, text: str) -> Iterator[None]:
        say(f"{name:<9} {text}")
        started = time.monotonic()
        yield
        seconds[name] = time.monotonic() - started

    with output_folder(out, [base], overwrite=overwrite) as folder:
        root = folder.partial
        prepared, trained = root / "prepared", root / "trained"
        collapsed, graph = root / "collapsed", root / "onnx"
        head = BaseOptions(task="text-classification", labels=DEMO_LABELS)
        with stage(
            "prepare", "inject mixout(0.7) into all-MiniLM-L6-v2, a BERT with 22 M parameters"
        ):
            prepare_checkpoint(str(base), prepared, PrepareOptions(base=head))
        with stage("train", f"finetune on {train_file}: is an English sentence acceptable?"):
            data = DataOptions(train_file=train_file, eval_file=eval_file)
            training = train_checkpoint(prepared, trained, data, _OPTIONS, observer=observer)
        with stage("collapse", "turn it into a plain checkpoint"):
            collapse_checkpoint(trained, collapsed)
        with stage("onnx", "export it"):
            export_onnx(collapsed, graph, verify=False)
        pairs = (
            ("base → prepared", base, prepared),
            ("trained → collapsed", trained, collapsed),
            ("collapsed → onnx", collapsed, graph),
        )
        with stage("verify", "compare the two sides of each step"):
            hops = tuple(
                Hop(name, _published(verify_checkpoints(reference, candidate), root, out))
                for name, reference, candidate in pairs
            )
        sizes = {path.name: _size(path) for path in (prepared, trained, collapsed, graph)}
    return DemoResult(
        out=out,
        base=base,
        commands=_commands(out, base),
        training=replace(training, out=out / trained.name),
        hops=hops,
        sizes=sizes,
        seconds=seconds,
    )
