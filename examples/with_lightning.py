"""Finetune with mixout and Lightning.

    pip install lightning
    python examples/with_lightning.py BASE OUT [--train-file train.tsv] [--steps 100]

BASE is a folder or a hub id. The script writes two checkpoints. OUT/mixout can be used with every
command of mixout-export. OUT/plain is the same model without mixout. If Lightning is not installed,
`fit` calls the same methods in a short loop of its own.
"""

import argparse
import csv
from itertools import chain, islice, repeat
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import mixout_export
from mixout_export import MixoutConfig, collapse_mixout, inject_mixout, save_mixout

try:
    import lightning
except ImportError:
    lightning = None

DEMO = Path(mixout_export.__file__).parent / "demo_data" / "train.tsv"
Module = torch.nn.Module if lightning is None else lightning.LightningModule


class Finetuning(Module):
    """A classifier with mixout, its training step and its optimizer."""

    def __init__(self, base: str, *, p: float, lr: float) -> None:
        super().__init__()
        self.tokenizer = AutoTokenizer.from_pretrained(base)
        self.model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
        self.lr = lr
        inject_mixout(self.model, MixoutConfig(p=p))

    def collate(self, rows: list[tuple[str, int]]) -> dict[str, torch.Tensor]:
        """Return a batch: ids and mask, int64 `(rows, tokens)`, and labels, int64 `(rows,)`."""
        texts, labels = zip(*rows, strict=True)
        inputs = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        return {**inputs, "labels": torch.tensor(labels)}

    def training_step(self, batch: dict[str, torch.Tensor], _: int) -> torch.Tensor:
        """Return the loss of a batch."""
        return self.model(**batch).loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return torch.optim.AdamW(self.model.parameters(), lr=self.lr)

    def on_train_start(self) -> None:
        """Switch mixout on. `from_pretrained` sets evaluation mode, and Lightning keeps it."""
        self.model.train()


def fit(module: Finetuning, batches: torch.utils.data.DataLoader, steps: int) -> None:
    """Train with Lightning, or with a short loop if it is not installed."""
    if lightning is not None:
        quiet = {"logger": False, "enable_checkpointing": False}
        lightning.Trainer(max_steps=steps, max_epochs=-1, **quiet).fit(module, batches)
        return
    module.on_train_start()
    optimizer = module.configure_optimizers()
    epochs = chain.from_iterable(repeat(batches))  # the loader shuffles again in each epoch
    for index, batch in enumerate(islice(epochs, steps)):
        optimizer.zero_grad()
        module.training_step(batch, index).backward()
        optimizer.step()


def main() -> None:
    """Finetune the model and write both checkpoints."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("base")
    parser.add_argument("out", type=Path)
    parser.add_argument("--train-file", type=Path, default=DEMO)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--lr", type=float, default=5e-5)
    options = parser.parse_args()

    torch.manual_seed(0)
    with options.train_file.open(encoding="utf-8", newline="") as lines:
        table = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        rows = [(row["sentence"], int(row["label"])) for row in table]
    module = Finetuning(options.base, p=0.7, lr=options.lr)
    batches = torch.utils.data.DataLoader(rows, 16, shuffle=True, collate_fn=module.collate)
    fit(module, batches, options.steps)

    model = module.model.cpu()
    save_mixout(model, options.out / "mixout", tokenizer=module.tokenizer)
    collapse_mixout(model)
    model.save_pretrained(options.out / "plain")
    module.tokenizer.save_pretrained(options.out / "plain")


if __name__ == "__main__":
    main()
