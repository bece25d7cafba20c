"""Finetune with mixout and the Trainer of transformers.

    python examples/with_trainer.py BASE OUT [--train-file train.tsv] [--steps 100]

BASE is a folder or a hub id. The script writes two checkpoints. OUT/mixout is saved by the Trainer
and can be used with every command of mixout-export. OUT/plain is the same model without mixout.
"""

import argparse
from pathlib import Path

from datasets import load_dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

import mixout_export
from mixout_export import MixoutConfig, collapse_mixout, inject_mixout

DEMO = Path(mixout_export.__file__).parent / "demo_data" / "train.tsv"


def main() -> None:
    """Finetune the model and write both checkpoints."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("base")
    parser.add_argument("out", type=Path)
    parser.add_argument("--train-file", type=Path, default=DEMO)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--lr", type=float, default=5e-5)
    options = parser.parse_args()

    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(options.base)
    model = AutoModelForSequenceClassification.from_pretrained(options.base, num_labels=2)
    inject_mixout(model, MixoutConfig(p=0.7))  # before the Trainer gets the model

    # quoting=3 (csv.QUOTE_NONE) reads quotation marks as part of the text
    files = {"data_files": str(options.train_file), "delimiter": "\t", "quoting": 3}
    data = load_dataset("csv", split="train", **files)
    data = data.map(lambda row: tokenizer(row["sentence"], truncation=True))
    trainer = Trainer(
        model,
        TrainingArguments(
            str(options.out / "run"),
            max_steps=options.steps,
            per_device_train_batch_size=16,
            learning_rate=options.lr,
            logging_steps=10,
            save_strategy="no",
            report_to=[],
        ),
        train_dataset=data.select_columns([*tokenizer.model_input_names, "label"]),
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    trainer.train()
    trainer.save_model(str(options.out / "mixout"))

    collapse_mixout(model)
    trainer.save_model(str(options.out / "plain"))


if __name__ == "__main__":
    main()
