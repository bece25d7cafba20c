"""Finetune with mixout in a plain PyTorch loop.

    python examples/own_loop.py BASE OUT [--train-file train.tsv] [--steps 100]

BASE is a folder or a hub id. The script writes two checkpoints. OUT/mixout can be used with every
command of mixout-export. OUT/plain is the same model without mixout and needs only transformers.
"""

import argparse
import csv
from itertools import chain, islice, repeat
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import mixout_export
from mixout_export import MixoutConfig, collapse_mixout, inject_mixout, save_mixout

DEMO = Path(mixout_export.__file__).parent / "demo_data" / "train.tsv"


def read_rows(file: Path) -> list[tuple[str, int]]:
    """Read a table with the columns `sentence` and `label`."""
    with file.open(encoding="utf-8", newline="") as lines:
        rows = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [(row["sentence"], int(row["label"])) for row in rows]


def main() -> None:
    """Finetune the model and write both checkpoints."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("base")
    parser.add_argument("out", type=Path)
    parser.add_argument("--train-file", type=Path, default=DEMO)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--lr", type=float, default=5e-5)
    options = parser.parse_args()

    torch.manual_seed(0)  # mixout draws its masks from this generator, too
    tokenizer = AutoTokenizer.from_pretrained(options.base)
    model = AutoModelForSequenceClassification.from_pretrained(options.base, num_labels=2)
    inject_mixout(model, MixoutConfig(p=0.7))  # in place; the new head is not mixed

    batches = torch.utils.data.DataLoader(read_rows(options.train_file), 16, shuffle=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr)
    model.train()
    epochs = chain.from_iterable(repeat(batches))  # the loader shuffles again in each epoch
    for step, (texts, labels) in enumerate(islice(epochs, options.steps), start=1):
        inputs = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 0:
            print(f"step {step}: loss {loss.item():.4f}")

    save_mixout(model, options.out / "mixout", tokenizer=tokenizer)
    collapse_mixout(model)
    model.save_pretrained(options.out / "plain")
    tokenizer.save_pretrained(options.out / "plain")


if __name__ == "__main__":
    main()
