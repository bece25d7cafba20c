"""The kit's folder: wheels, a checkpoint and data for a machine without a network."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixout_export.checkpoint.base import BaseOptions
from mixout_export.checkpoint.demo_base import demo_base, demo_data
from mixout_export.config import MixoutConfig
from mixout_export.errors import CheckpointError
from mixout_export.stages.prepare import PrepareOptions, prepare_checkpoint
from mixout_export.stages.train import DataOptions, train_checkpoint
from mixout_export.training.options import TrainOptions

ROOT = Path(__file__).resolve().parent.parent
#: Where `make gpu-kit` puts it; git ignores it.
FOLDER = ROOT / "gpu-kit"
WHEELS, BASE, DATA = "wheels", "base", "data"


@dataclass(frozen=True)
class Kit:
    """What the checks train on.

    Attributes:
        base: A pretrained checkpoint, BERT with 22 M parameters.
        train_file: Sentences of two classes.
        eval_file: Evaluation sentences.
        work: Folder for all outputs.
    """

    base: Path
    train_file: Path
    eval_file: Path
    work: Path

    @classmethod
    def find(cls, work: Path, folder: Path = FOLDER) -> "Kit":
        """Find the checkpoint and the data in the kit, or those of the demo.

        Raises:
            CheckpointError: Neither is there.
        """
        base = folder / BASE
        if base.is_dir():
            missing = [
                name for name in ("config.json", "model.safetensors") if not (base / name).is_file()
            ]
            if missing:
                raise CheckpointError(f"{base}: has no {missing[0]}; run `make gpu-kit` again")
        else:
            try:
                base = demo_base()
            except CheckpointError as error:
                raise CheckpointError(
                    f"{folder}: does not exist, and the demo's checkpoint is not installed; run "
                    "`make gpu-kit` on a machine with a network"
                ) from error
        train_file, eval_file = demo_data()
        for data in (folder / DATA).glob("*"):  # one folder, named after the data set
            train_file, eval_file = data / "train.tsv", data / "dev.tsv"
        return cls(base, train_file, eval_file, work)

    def data(self, rows: int | None = None, eval_rows: int | None = None) -> DataOptions:
        """Return the data files, or new files with their first rows."""
        return DataOptions(
            self._first(self.train_file, rows), self._first(self.eval_file, eval_rows)
        )

    def _first(self, path: Path, rows: int | None) -> Path:
        if rows is None:
            return path
        short = self.work / f"{path.stem}-{rows}.tsv"
        if not short.exists():
            lines = path.read_text("utf-8").split("\n")
            self.work.mkdir(parents=True, exist_ok=True)
            short.write_text("\n".join(lines[: rows + 1]) + "\n", encoding="utf-8")
        return short

    def prepared(self, p: float = 0.7, seed: int = 0) -> Path:
        """Return a prepared checkpoint. It is made on first use."""
        out = self.work / f"prepared-{p}-{seed}"
        if not out.exists():
            options = PrepareOptions(
                base=BaseOptions(task="text-classification", labels=2, seed=seed),
                mixout=MixoutConfig(p=p),
            )
            prepare_checkpoint(str(self.base), out, options)
        return out

    def train(
        self,
        name: str,
        device: Any,
        *,
        rows: int = 256,
        eval_rows: int = 64,
        prepared: Path | None = None,
        observer: Any = None,
        resume: bool = False,
        **options: Any,
    ) -> Path:
        """Finetune and return the trained checkpoint.

        Args:
            name: Name of the folder.
            device: Device to train on.
            rows: Number of training rows.
            eval_rows: Number of evaluation rows.
            prepared: The checkpoint to finetune; None means `prepared()`.
            observer: Training observer.
            resume: Whether to resume an unfinished run.
            options: Options of `TrainOptions`.
        """
        batch = 32 if str(device).startswith("cuda") else 4
        settings = {"device": str(device), "batch_size": batch, "max_length": 64, **options}
        result = train_checkpoint(
            prepared or self.prepared(),
            self.work / name,
            self.data(rows, eval_rows),
            TrainOptions(**settings),
            observer=observer,
            resume=resume,
        )
        return result.out


def size_of(paths: Iterable[Path]) -> int:
    """Return the total size of all files in bytes, including those in folders."""
    files = [f for path in paths for f in (path.rglob("*") if path.is_dir() else [path])]
    return sum(file.stat().st_size for file in files if file.is_file())
