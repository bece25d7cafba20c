"""Take one family the whole way, in a process of its own."""

import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from matrix.outcome import Outcome
from matrix.plain import exports_unmodified, rows_of
from matrix.tiny import write_checkpoint
from mixout_export.checkpoint.artifact import open_artifact
from mixout_export.checkpoint.base import BaseOptions
from mixout_export.checkpoint.model import first_line, load_mixout, save_mixout
from mixout_export.config import MixoutConfig
from mixout_export.errors import MixoutError
from mixout_export.files.layout import LAYOUT
from mixout_export.quiet import quiet_libraries
from mixout_export.stages.collapse import collapse_checkpoint
from mixout_export.stages.onnx_export import export_onnx
from mixout_export.stages.prepare import PrepareOptions, prepare_checkpoint
from mixout_export.stages.verify import verify_checkpoints
from mixout_export.surgery import mixout_layers

#: (batch, sequence) that the graph is run at beside the battery of `verify`.
_SHAPES = ((1, 1), (1, 9), (3, 4), (3, 16), (3, 33))
_TOLERANCE = 1e-4

#: Those that a model which pools along the sequence may refuse, whatever it is written in.
_MAY_BE_TOO_SHORT = ((1, 1), (3, 4))

_LEARNING_RATE = 0.05

#: Bytes that a family may allocate: one that is not tiny must not take the machine down.
_MEMORY = 8 << 30


class MatrixError(Exception):
    """A stage ran, and what came out is wrong."""


def _inject(base: Path, out: Path) -> None:
    options = PrepareOptions(
        base=BaseOptions(task="text-classification"), mixout=MixoutConfig(p=0.5)
    )
    prepare_checkpoint(str(base), out, options)


def _step(prepared: Path, out: Path) -> None:
    """Train for one update on labelled rows, and see that mixed weights moved and anchors not."""
    model = load_mixout(prepared)
    before = {name: layer.weight.detach().clone() for name, layer in mixout_layers(model).items()}
    batch = rows_of(model.config, 4, 24, seed=1)
    model.train()
    torch.manual_seed(0)
    loss = model(**batch, labels=torch.tensor([0, 1, 2, 1])).loss
    if not torch.isfinite(loss):
        raise MatrixError(f"the loss is {float(loss)}")
    loss.backward()
    torch.optim.SGD(model.parameters(), lr=_LEARNING_RATE).step()
    moved = [n for n, m in mixout_layers(model).items() if not torch.equal(m.weight, before[n])]
    if not moved:
        raise MatrixError("no mixed weight moved")
    for name, layer in mixout_layers(model).items():
        if not torch.equal(layer.pretrained_weight, before[name]):
            raise MatrixError(f"the anchor of {name} moved")
    with quiet_libraries():
        save_mixout(model, out)


def _collapse(base: Path, trained: Path, out: Path) -> None:
    """Collapse, and compare with what was trained and with a plain checkpoint's keys."""
    collapse_checkpoint(trained, out)
    expected, got = open_artifact(base).tensors, open_artifact(out).tensors
    if {k: (e.dtype, e.shape) for k, e in expected.items()} != {
        k: (e.dtype, e.shape) for k, e in got.items()
    }:
        odd = sorted(expected.keys() ^ got.keys())
        raise MatrixError(f"the collapsed folder's tensors are not the base's: {odd[:3]}")
    result = verify_checkpoints(trained, out)
    if not result.holds:
        raise MatrixError(result.reasons()[0])


def _plain_logits(model: PreTrainedModel, batch: dict[str, Tensor]) -> npt.NDArray[Any] | None:
    """Return float32 `(batch, labels)`; None where the model does not run on such rows."""
    try:
        with torch.inference_mode():
            logits: npt.NDArray[Any] = model(**batch).logits.numpy()
    except (RuntimeError, IndexError):
        return None
    return logits


def _run_independently(collapsed: Path, exported: Path) -> None:
    """Compare the plain model with the graph without any of this package's own comparison."""
    with quiet_libraries():
        model = AutoModelForSequenceClassification.from_pretrained(collapsed).eval()
    session = onnxruntime.InferenceSession(exported / LAYOUT.onnx)
    names = [value.name for value in session.get_inputs()]
    seen = []
    for seed, shape in enumerate(_SHAPES):
        batch = rows_of(model.config, *shape, seed=seed)
        expected = _plain_logits(model, batch)
        if expected is None and shape in _MAY_BE_TOO_SHORT:
            continue
        if expected is None:
            raise MatrixError(f"the plain model does not run at {shape}")
        known = batch | {"token_type_ids": torch.zeros_like(batch["input_ids"])}
        absent = [name for name in names if name not in known]
        if absent:
            raise MatrixError(f"the graph takes {absent[0]}, which a plain call has no need of")
        got = session.run(["logits"], {name: known[name].numpy() for name in names})[0]
        difference = float(np.abs(got - expected).max())
        if not difference <= _TOLERANCE * max(1.0, float(np.abs(expected).max())):
            raise MatrixError(f"a plain call at {shape} differs by {difference:.3g}")
        seen.append(expected[0])
    if float(np.ptp(np.stack(seen), axis=0).max()) < 10 * _TOLERANCE:
        raise MatrixError("the tiny checkpoint gives every input the same logits")


def _verify(trained: Path, collapsed: Path, exported: Path) -> None:
    result = verify_checkpoints(trained, exported)
    if not result.holds:
        raise MatrixError(result.reasons()[0])
    _run_independently(collapsed, exported)


@contextmanager
def _stage(outcome: Outcome, name: str) -> Iterator[None]:
    """Note whether a stage passed; what it raises ends the family's way there."""
    try:
        yield
    except Exception as error:  # whatever a family makes go wrong is its outcome
        outcome.failed = name
        outcome.ours = isinstance(error, MixoutError)
        where = "" if outcome.ours else f"{type(error).__name__}: "
        outcome.reason = where + first_line(error)
        raise
    outcome.passed.append(name)


def _go(outcome: Outcome, work: Path) -> None:
    base, prepared, trained = work / "base", work / "prepared", work / "trained"
    collapsed, exported = work / "collapsed", work / "onnx"
    with _stage(outcome, "build"):
        model = write_checkpoint(outcome.family, base)
        with torch.inference_mode():
            model(**rows_of(model.config, 2, 8, seed=0))
        outcome.parameters = model.num_parameters()
    outcome.passed.clear()
    with _stage(outcome, "inject"):
        _inject(base, prepared)
    with _stage(outcome, "step"):
        _step(prepared, trained)
    with _stage(outcome, "collapse"):
        _collapse(base, trained, collapsed)
    with _stage(outcome, "onnx"):
        export_onnx(collapsed, exported, verify=False)
        outcome.unmodified = True  # collapsed is a plain checkpoint of the same architecture
        graph = onnxruntime.InferenceSession(exported / LAYOUT.onnx)
        outcome.inputs = [value.name for value in graph.get_inputs()]
    with _stage(outcome, "verify"):
        _verify(trained, collapsed, exported)


def take_family(outcome: Outcome, out: Path, *, memory: int | None = _MEMORY) -> None:
    """Take a family as far as it goes and write its outcome.

    Args:
        outcome: The family, with nothing passed yet.
        out: The folder of outcomes.
        memory: Bytes that this process may allocate from here on; None leaves its limit alone.
    """
    if memory is not None:
        torch.set_num_threads(1)
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="matrix-") as work:
        try:
            _go(outcome, Path(work))
        except Exception:
            if not outcome.failed:
                raise
            if outcome.unmodified is None and outcome.failed != "build":
                outcome.unmodified = exports_unmodified(
                    Path(work) / "base", ask_package=outcome.failed != "onnx"
                )
    outcome.seconds = round(time.perf_counter() - started, 1)
    outcome.write(out)
