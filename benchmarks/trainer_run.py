"""Finetune a plain model with the Trainer of transformers, to compare `mixout-export train` with.

    python benchmarks/trainer_run.py BASE DATA_FOLDER OUT

The options have the values of `mixout-export train`. All others keep the Trainer's defaults.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from datasets import load_dataset
from sklearn.metrics import accuracy_score, matthews_corrcoef
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)


def main() -> None:
    """Finetune, evaluate and save."""
    base, data, out = sys.argv[1:]
    model = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        classifier_dropout=0.1,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(base)
    files = {"train": str(Path(data) / "train.tsv"), "dev": str(Path(data) / "dev.tsv")}
    rows = load_dataset("csv", data_files=files, sep="\t", quoting=3, cache_dir=f"{out}-cache")

    def encode(batch: dict[str, list[str]]) -> Any:
        return tokenizer(batch["sentence"], truncation=True, max_length=128)

    rows = rows.map(encode, batched=True, remove_columns=["idx", "sentence"])

    def metrics(prediction: Any) -> dict[str, float]:
        chosen = np.argmax(prediction.predictions, axis=-1)
        labels = prediction.label_ids
        return {
            "accuracy": accuracy_score(labels, chosen),
            "matthews": matthews_corrcoef(labels, chosen),
        }

    arguments = TrainingArguments(
        output_dir=out, num_train_epochs=1, per_device_train_batch_size=32,
        per_device_eval_batch_size=64, learning_rate=2e-5, warmup_steps=0.1, weight_decay=0.01,
        max_grad_norm=1.0, lr_scheduler_type="linear", seed=0, eval_strategy="epoch",
        save_strategy="epoch", logging_steps=50, report_to="none", use_cpu=True,
    )  # fmt: skip
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=rows["train"],
        eval_dataset=rows["dev"],
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        compute_metrics=metrics,
    )
    trainer.train()
    trainer.save_model(out)


if __name__ == "__main__":
    main()
