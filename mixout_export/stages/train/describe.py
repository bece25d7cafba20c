"""The model card of a trained checkpoint."""

from pathlib import Path
from typing import Any

from mixout_export.card.document import read_card, write_card
from mixout_export.card.facts import TrainingFacts
from mixout_export.card.results import Evaluation
from mixout_export.card.steps import strategy_name, trained_card
from mixout_export.checkpoint.mixout_metadata import MixoutMetadata
from mixout_export.files.layout import LAYOUT
from mixout_export.recipes import recipe_values
from mixout_export.stages.train.data import DataOptions, TrainingData
from mixout_export.stages.train.record import TrainResult
from mixout_export.training.options import TrainOptions


def write_trained_card(
    folder: Path,
    prepared: Path,
    metadata: MixoutMetadata,
    options: TrainOptions,
    sources: DataOptions,
    data: TrainingData,
    result: TrainResult,
) -> None:
    """Write the card of a trained checkpoint, which continues the card of the prepared one."""
    strategy = strategy_name(
        metadata, decay_toward=options.decay_toward, weight_decay=options.weight_decay
    )
    hub_id, configuration = _hub_dataset(sources)
    evaluation = None
    if result.metrics:
        file = sources.eval_file
        split = data.evaluated_on.rpartition("[")[2].rstrip("]")
        evaluation = Evaluation(
            data=data.evaluated_on if file is None else file.name,
            metrics=result.metrics,
            before=result.metrics_before,
            hub_id=hub_id,
            configuration=configuration,
            split=split if hub_id else None,
            by_label=result.by_label,
        )
    base, files = metadata.base, [file.name for file in sources.train_files]
    settings: dict[str, Any] = {
        **({"recipe": _recipe(options)} if options.recipe else {}),
        "base": f"{base.name} (SHA-256 {base.sha256})",
        "strategy": strategy,
        "head": metadata.head.treatment,
        "training data": " + ".join(files) or sources.dataset,
        "training examples": _examples(options, data),
        "evaluation data": "none" if evaluation is None else evaluation.data,
        "steps": f"{result.steps}, the model is that of step {result.chosen_step}",
        "batch size": options.batch_size * options.gradient_accumulation,
        "peak learning rate": f"{options.lr:g}",
        "schedule": f"{options.scheduler}, {options.warmup_ratio:.0%} of the steps are warm-up",
        **_special(options, metadata, data),
        **({} if data.max_length is None else {"maximum length": _length(data)}),
        "precision": options.precision,
        "seed": _seeds(options),
    }
    facts = TrainingFacts(strategy, settings, evaluation, dataset=hub_id, curves=LAYOUT.curves)
    card = trained_card(metadata, facts, read_card(prepared / LAYOUT.card))
    write_card(card, folder / LAYOUT.card)


def _recipe(options: TrainOptions) -> str:
    return f"{options.recipe} ({recipe_values(options.recipe or '', vars(options))})"


def _special(options: TrainOptions, metadata: MixoutMetadata, data: TrainingData) -> dict[str, Any]:
    """Return the rows of options that few runs use."""
    again = metadata.reinitialized.modules
    found = {
        "learning rate of each lower layer": options.layer_lr_decay
        and f"times {options.layer_lr_decay:g}",
        "re-initialized": ", ".join(again),
        "frozen": options.freeze,
        "label smoothing": f"{options.label_smoothing:g}" if options.label_smoothing else "",
        "class weights": options.class_weights,
        "windows of a context share": ""
        if data.doc_stride is None
        else f"{data.doc_stride} tokens",
    }
    return {name: value for name, value in found.items() if value}


def _examples(options: TrainOptions, data: TrainingData) -> str:
    skipped = f", {data.skipped:,} rows of the files were skipped" if data.skipped else ""
    if options.examples is None:
        return f"{data.rows}{skipped}"
    return (
        f"{data.rows:,} of {data.available:,} rows, chosen at random with seed "
        f"{options.examples_seed}{skipped}"
    )


def _length(data: TrainingData) -> str:
    cut = [each for each in data.cut if each.cut]
    if not cut:
        return f"{data.max_length} tokens"
    amounts = " and ".join(each.amount for each in cut)
    longest = max(each.longest for each in cut)
    return f"{data.max_length} tokens; {amounts} were cut, the longest has {longest:,} tokens"


def _seeds(options: TrainOptions) -> str:
    if options.data_seed is None:
        return str(options.seed)
    return f"{options.seed} for masks and dropout, {options.data_seed} for the data order"


def _hub_dataset(sources: DataOptions) -> tuple[str | None, str | None]:
    """Return the name and configuration of the data set on the hub; None without one."""
    name = sources.dataset
    if name is None or Path(name).exists():
        return None, None
    path, _, configuration = name.partition(":")
    return path, configuration or None
