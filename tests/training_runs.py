"""Tiny prepared checkpoints, generated data, and runs of `train` on them."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from checkpoints import TinyCheckpoints
from safetensors.torch import load_file

from mixout_export.checkpoint.base import BaseOptions
from mixout_export.config import MixoutConfig
from mixout_export.stages.prepare import PrepareOptions, prepare_checkpoint
from mixout_export.stages.train import DataOptions, TrainResult, train_checkpoint
from mixout_export.training.options import TrainOptions

_WORDS = ("the", "a", "dog", "cat", "boy", "girl", "sees", "hears", "likes", "quickly", "never")
_MOODS = ("bad", "good")


def sentences(count: int, *, seed: int) -> list[tuple[str, int]]:
    """Return sentences of several lengths; whether "good" or "bad" ends them is the label."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        label = rng.randrange(2)
        words = rng.choices(_WORDS, k=rng.randint(2, 9))
        made.append((" ".join([*words, _MOODS[label]]), label))
    return made


def write_tsv(path: Path, header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> Path:
    lines = ["\t".join(str(field) for field in row) for row in (header, *rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


class TrainingGround:
    """A folder with prepared checkpoints and data, each made on first use."""

    def __init__(self, root: Path, tiny: TinyCheckpoints) -> None:
        self.root, self._tiny = root, tiny
        self._prepared: dict[str, Path] = {}

    def base(self, kind: str = "bert") -> Path:
        """Return a tiny base."""
        return self._tiny.base(kind)

    def prepared(
        self,
        kind: str = "bert",
        task: str = "text-classification",
        *,
        base: Path | None = None,
        p: float = 0.7,
        granularity: str = "neuron",
        labels: Sequence[str] | None = None,
        **options: Any,
    ) -> Path:
        """Return a prepared checkpoint of a tiny base; with labels where the task has them."""
        name = repr((kind, task, base, p, granularity, labels, sorted(options.items())))
        if name not in self._prepared:
            out = self.root / f"prepared-{len(self._prepared)}"
            count = labels or (2 if task == "text-classification" else None)
            prepare_checkpoint(
                str(base or self.base(kind)),
                out,
                PrepareOptions(
                    base=BaseOptions(task=task, labels=count),
                    mixout=MixoutConfig(p=p, granularity=granularity),
                    **options,
                ),
            )
            self._prepared[name] = out
        return self._prepared[name]

    def plain(self, kind: str = "bert", task: str = "text-classification") -> Path:
        """Return a prepared checkpoint in which nothing is random: p = 0 and no dropout."""
        return self.prepared(kind, task, p=0.0, head="none")

    def data(self, train: int = 96, dev: int = 32) -> DataOptions:
        """Return separable sentences."""
        paths = [self.root / f"train-{train}.tsv", self.root / f"dev-{dev}.tsv"]
        for path, count, seed in zip(paths, (train, dev), (0, 1), strict=True):
            if not path.exists():
                write_tsv(path, ("sentence", "label"), sentences(count, seed=seed))
        return DataOptions(*paths)

    def alone(self, train: int = 96) -> DataOptions:
        """Return the training sentences without evaluation data."""
        return DataOptions(self.data(train).train_file)

    def run(
        self,
        out: Path,
        *,
        prepared: Path | None = None,
        data: DataOptions | None = None,
        resume: bool = False,
        overwrite: bool = False,
        observer: Any = None,
        must_stop: Callable[[], bool] = lambda: False,
        **options: Any,
    ) -> TrainResult:
        """Train with settings that suit a tiny model."""
        settings = {"lr": 3e-3, "batch_size": 16, "device": "cpu", **options}
        return train_checkpoint(
            prepared or self.prepared(),
            out,
            data or self.data(),
            TrainOptions(**settings),
            resume=resume,
            overwrite=overwrite,
            observer=observer,
            must_stop=must_stop,
        )


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / "model.safetensors")


def same_weights(first: Path, second: Path) -> bool:
    return (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()


def assert_close(
    ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], *, atol: float
) -> None:
    """Compare weights, but for the biases of keys.

    Attention does not depend on them: their gradient is nothing but rounding, which Adam's
    normalization makes into whole steps.
    """
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        if not key.endswith("key.bias"):
            torch.testing.assert_close(
                value, theirs[key], rtol=0, atol=atol, msg=lambda text, key=key: f"{key}: {text}"
            )
