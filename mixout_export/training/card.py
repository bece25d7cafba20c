"""The model card of a finetuned checkpoint."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from mixout_export.checkpoint.manifest import Manifest
from mixout_export.tasks import Task, get_task
from mixout_export.training.options import TrainOptions
from mixout_export.version import __version__

#: The hub's names of tasks, where they are others.
_PIPELINES = {
    "regression": "text-classification",
    "multi-label": "text-classification",
    "masked-lm": "fill-mask",
    "causal-lm": "text-generation",
}
_TEXT = """---
{header}
---

# {name}

{base} finetuned for {task} with {strategy} by mixout-export {version}.

{results}
## How it was trained

| setting | value |
| --- | --- |
{settings}

{shown}## Use

```python
from transformers import {auto_class}, AutoTokenizer

model = {auto_class}.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
```

Mixout replaces weights by their pretrained values at random while training (Lee, Cho, Kang, ICLR
2020, arXiv 1909.11299). In evaluation the model computes with its own weights: it is a plain one.
"""


@dataclass(frozen=True)
class CardFacts:
    """What a card reports.

    Attributes:
        name: Name of the model.
        manifest: The checkpoint's manifest.
        options: Settings of the run.
        dataset: Name of the data.
        metrics: The result's evaluation, empty without evaluation data.
        metrics_before: The untrained model's.
        train_examples: Number of training examples.
        steps: Updates done.
        chosen_step: Update whose model is the result.
        curves: File name of the picture, None without.
    """

    name: str
    manifest: Manifest
    options: TrainOptions
    dataset: str
    metrics: Mapping[str, float]
    metrics_before: Mapping[str, float]
    train_examples: int
    steps: int
    chosen_step: int
    curves: str | None


def strategy_name(manifest: Manifest, options: TrainOptions) -> str:
    """Return the strategy in the paper's notation: "mixout(0.7) + wdecay(pre, 0.01)", say."""
    p = manifest.config.p
    mixed = f"mixout({p:g})" if p else "no mixout"
    if manifest.config.granularity == "element" and p:
        mixed = f"element mixout({p:g})"
    dropout = f" + dropout({manifest.dropout:g})" if manifest.dropout else ""
    toward = "pre" if options.decay_toward == "pretrained" else "0"
    decay = f" + wdecay({toward}, {options.weight_decay:g})" if options.weight_decay else ""
    return mixed + dropout + decay


def _task(facts: CardFacts) -> Task:
    return get_task(facts.manifest.task or "text-classification")


def _header(facts: CardFacts) -> str:
    pipeline = _PIPELINES.get(_task(facts).name, _task(facts).name)
    results = [
        EvalResult(
            task_type=pipeline,
            dataset_type=facts.dataset,
            dataset_name=facts.dataset,
            metric_type=name,
            metric_value=round(value, 6),
        )
        for name, value in facts.metrics.items()
        if math.isfinite(value)
    ]
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag=pipeline,
        tags=["mixout"],
        model_name=facts.name if results else None,
        eval_results=results or None,
    )
    return str(data.to_yaml()).strip()


def _results(facts: CardFacts) -> str:
    if not facts.metrics:
        return "It was not evaluated.\n"
    rows = [
        f"| {name} | {facts.metrics_before.get(name, math.nan):.4f} | {value:.4f} |"
        for name, value in facts.metrics.items()
    ]
    return "\n".join(["| metric | untrained | finetuned |", "| --- | --- | --- |", *rows, ""])


def _settings(facts: CardFacts) -> str:
    base, options = facts.manifest.base, facts.options
    rows: dict[str, Any] = {
        "base": f"{base.name} (SHA-256 {base.sha256})",
        "strategy": strategy_name(facts.manifest, options),
        "head": facts.manifest.head.treatment,
        "training examples": facts.train_examples,
        "updates": f"{facts.steps}, the model is that of update {facts.chosen_step}",
        "batch size": options.batch_size * options.gradient_accumulation,
        "peak learning rate": f"{options.lr:g}",
        "schedule": f"{options.scheduler}, warm-up over {options.warmup_ratio:.0%} of the updates",
        "precision": options.precision,
        "seed": options.seed,
    }
    return "\n".join(f"| {name} | {value} |" for name, value in rows.items())


def write_card(facts: CardFacts, path: Path) -> None:
    """Write the card, with the hub's YAML header.

    Args:
        facts: What to report.
        path: The file to write.
    """
    shown = f"![loss and metric against updates]({facts.curves})\n\n" if facts.curves else ""
    text = _TEXT.format(
        header=_header(facts),
        name=facts.name,
        base=facts.manifest.base.name or "A pretrained checkpoint",
        task=_task(facts).name,
        auto_class=_task(facts).auto_class,
        strategy=strategy_name(facts.manifest, facts.options),
        version=__version__,
        results=_results(facts),
        settings=_settings(facts),
        shown=shown,
    )
    path.write_text(text, encoding="utf-8")
