"""Run the complete workflow on one family."""

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
from torch.optim import AdamW, Optimizer
from transformers import PreTrainedModel

from matrix.families import Family
from matrix.kinds import KINDS, Kind, targets
from matrix.outcome import Outcome
from matrix.plain import exports_unmodified
from matrix.tiny import write_checkpoint
from mixout_export.adamw import MixoutAdamW
from mixout_export.checkpoint.base import BaseOptions
from mixout_export.checkpoint.folder import open_checkpoint
from mixout_export.checkpoint.loading import load_mixout
from mixout_export.checkpoint.saving import save_mixout
from mixout_export.config import MixoutConfig
from mixout_export.errors import MixoutError
from mixout_export.fast_linear.gathering import always_gather
from mixout_export.files.layout import LAYOUT
from mixout_export.mask_schedule import MaskSchedule
from mixout_export.printable import first_line
from mixout_export.quiet import quiet_libraries
from mixout_export.stages.collapse import collapse_checkpoint
from mixout_export.stages.onnx_export import export_onnx
from mixout_export.stages.prepare import PrepareOptions, prepare_checkpoint
from mixout_export.stages.verify import verify_checkpoints
from mixout_export.surgery.injection import mixout_layers

_TOLERANCE = 1e-4

_LEARNING_RATE = 1e-3

#: Memory limit of one family, in bytes, in case its checkpoint is not tiny.
_MEMORY = 8 << 30


class MatrixError(Exception):
    """A stage ran, but its result is wrong."""


def _inject(base: Path, task: str, target_modules: str, out: Path) -> None:
    options = PrepareOptions(
        base=BaseOptions(task=task), mixout=MixoutConfig(p=0.5, target_modules=target_modules)
    )
    prepare_checkpoint(str(base), out, options)


def _train(model: PreTrainedModel, kind: Kind, optimizer: Optimizer) -> None:
    """Do two training steps under one held mask."""
    batch = kind.inputs(model, kind.training, 1)
    model.train()
    torch.manual_seed(0)
    schedule = MaskSchedule(model, resample_every=2)
    with always_gather():  # as compact gradients do, so that no rounding differs
        for _ in range(2):
            schedule.step()
            loss = model(**batch, labels=torch.tensor([0, 1, 2, 1])).loss
            if not torch.isfinite(loss):
                raise MatrixError(f"the loss is {float(loss)}, expected a finite number")
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()


def _step(prepared: Path, kind: Kind, out: Path) -> None:
    """Train, and check what moved; the same with dense gradients must give the same weights."""
    model, dense = load_mixout(prepared), load_mixout(prepared)
    before = {name: layer.weight.detach().clone() for name, layer in mixout_layers(model).items()}
    _train(model, kind, MixoutAdamW(model, lr=_LEARNING_RATE))
    _train(dense, kind, AdamW(dense.parameters(), lr=_LEARNING_RATE, fused=True))
    moved = [n for n, m in mixout_layers(model).items() if not torch.equal(m.weight, before[n])]
    if not moved:
        raise MatrixError("the training steps changed no mixed weight")
    for name, layer in mixout_layers(model).items():
        if not torch.equal(layer.pretrained_weight, before[name]):
            raise MatrixError(f"the training steps changed the anchor of {name}")
    for (name, ours), theirs in zip(model.named_parameters(), dense.parameters(), strict=True):
        if not torch.equal(ours, theirs):
            raise MatrixError(f"MixoutAdamW and AdamW disagree about {name}")
    with quiet_libraries():
        save_mixout(model, out)


def _collapse(base: Path, trained: Path, out: Path) -> None:
    """Collapse, and compare with the trained model and with the tensors of a plain checkpoint."""
    collapse_checkpoint(trained, out)
    expected, got = open_checkpoint(base).tensors, open_checkpoint(out).tensors
    if {k: (e.dtype, e.shape) for k, e in expected.items()} != {
        k: (e.dtype, e.shape) for k, e in got.items()
    }:
        odd = sorted(expected.keys() ^ got.keys())
        raise MatrixError(f"the collapsed checkpoint has other tensors than the base: {odd[:3]}")
    result = verify_checkpoints(trained, out)
    if not result.holds:
        raise MatrixError(result.reasons()[0])


def _plain_logits(model: PreTrainedModel, batch: dict[str, Tensor]) -> npt.NDArray[Any] | None:
    """Return logits, float32 `(batch, labels)`; None if the model does not run on the batch."""
    try:
        with torch.inference_mode():
            logits: npt.NDArray[Any] = model(**batch).logits.numpy()
    except (RuntimeError, IndexError):
        return None
    return logits


def _run_independently(collapsed: Path, exported: Path, kind: Kind) -> None:
    """Compare the plain model with the graph, without this package's own comparison."""
    with quiet_libraries():
        model = kind.auto.from_pretrained(collapsed).eval()
    session = onnxruntime.InferenceSession(exported / LAYOUT.onnx)
    names = [value.name for value in session.get_inputs()]
    seen = []
    for seed, shape in enumerate(kind.compared):
        batch = kind.inputs(model, shape, seed)
        expected = _plain_logits(model, batch)
        if expected is None and shape in kind.may_be_too_short:
            continue
        if expected is None:
            raise MatrixError(f"the plain model does not run on a batch of shape {shape}")
        known = dict(batch)
        if "input_ids" in batch:
            known["token_type_ids"] = torch.zeros_like(batch["input_ids"])
        absent = [name for name in names if name not in known]
        if absent:
            raise MatrixError(f"the graph needs {absent[0]}, but a plain call does not")
        got = session.run(["logits"], {name: known[name].numpy() for name in names})[0]
        difference = float(np.abs(got - expected).max())
        if not difference <= _TOLERANCE * max(1.0, float(np.abs(expected).max())):
            raise MatrixError(
                f"for a batch of shape {shape}, the graph differs from the plain model by "
                f"{difference:.3g}"
            )
        seen.append(expected[0])
    if float(np.ptp(np.stack(seen), axis=0).max()) < 10 * _TOLERANCE:
        raise MatrixError("the tiny checkpoint returns the same logits for every input")


def _verify(trained: Path, collapsed: Path, exported: Path, kind: Kind) -> None:
    result = verify_checkpoints(trained, exported)
    if not result.holds:
        raise MatrixError(result.reasons()[0])
    _run_independently(collapsed, exported, kind)


@contextmanager
def _stage(outcome: Outcome, name: str) -> Iterator[None]:
    """Record whether a stage passed. Its error ends the run."""
    try:
        yield
    except Exception as error:  # any error is the family's outcome
        outcome.failed = name
        outcome.ours = isinstance(error, MixoutError)
        prefix = "" if outcome.ours else f"{type(error).__name__}: "
        outcome.reason = prefix + first_line(error)
        raise
    outcome.passed.append(name)


def _run_stages(outcome: Outcome, model_type: str, work: Path) -> None:
    kind = KINDS[outcome.task]
    base, prepared, trained = work / "base", work / "prepared", work / "trained"
    collapsed, exported = work / "collapsed", work / "onnx"
    with _stage(outcome, "build"):
        model = write_checkpoint(model_type, base, outcome.task)
        with torch.inference_mode():
            model(**kind.inputs(model, kind.example, 0))
        outcome.parameters = model.num_parameters()
    outcome.passed.clear()
    with _stage(outcome, "inject"):
        _inject(base, outcome.task, targets(model), prepared)
    with _stage(outcome, "step"):
        _step(prepared, kind, trained)
    with _stage(outcome, "collapse"):
        _collapse(base, trained, collapsed)
    with _stage(outcome, "onnx"):
        export_onnx(collapsed, exported, verify=False)
        outcome.unmodified = True  # the collapsed checkpoint is plain
        graph = onnxruntime.InferenceSession(exported / LAYOUT.onnx)
        outcome.inputs = [value.name for value in graph.get_inputs()]
    with _stage(outcome, "verify"):
        _verify(trained, collapsed, exported, kind)


def run_family(family: Family, out: Path, *, memory: int | None = _MEMORY) -> None:
    """Run the stages for one family until one fails, and write the outcome.

    Args:
        family: The family.
        out: The folder of outcomes.
        memory: Memory limit for this process, in bytes; None sets no limit.
    """
    outcome = Outcome.of(family)
    if memory is not None:
        torch.set_num_threads(1)
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="matrix-") as work:
        try:
            _run_stages(outcome, family.model_type, Path(work))
        except Exception:
            if not outcome.failed:
                raise
            if outcome.unmodified is None and outcome.failed != "build":
                outcome.unmodified = exports_unmodified(
                    Path(work) / "base",
                    KINDS[family.task],
                    try_package=outcome.failed != "onnx",
                )
    outcome.seconds = round(time.perf_counter() - started, 1)
    outcome.write(out)
