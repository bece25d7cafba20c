"""`mixout-export train`."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from mixout_export.recipes import RECIPES, recipe_values, with_recipe
from mixout_export.tasks import TASKS
from mixout_export_cli.command import Command
from mixout_export_cli.following import beside
from mixout_export_cli.imports import quick_imports
from mixout_export_cli.options import (
    PATH,
    RenamedOption,
    column_option,
    field_options,
    flag,
    option,
    output_options,
    overwrite_option,
    seed_option,
    skip_option,
    take,
)
from mixout_export_cli.output import (
    InterruptionError,
    Output,
    count_of,
    label_table,
    next_command,
    number,
    table,
)

if TYPE_CHECKING:
    from mixout_export.stages.train import TrainResult

#: Labels up to which the figures of each are shown.
_SHOWN_LABELS = 20

_METRICS = "; ".join(f"{', '.join(task.metrics)} for {task.name}" for task in TASKS.values())
_SCHEDULERS = ["linear", "cosine", "constant", "constant_with_warmup", "polynomial"]


def _data_files(
    _: click.Context, option: click.Parameter, values: tuple[Path, ...]
) -> Path | tuple[Path, ...] | None:
    """Return one path, several, or None. The name demo-data is that of the demo's file."""
    from mixout_export.checkpoint.demo_base import DEMO_DATA, demo_data

    if option.name == "eval_file" and len(values) > 1:
        raise click.BadParameter(f"was given {len(values)} times; give one file.")
    demo = demo_data() if DEMO_DATA in map(str, values) else (Path(), Path())
    files = tuple(
        demo[option.name == "eval_file"] if str(path) == DEMO_DATA and not path.exists() else path
        for path in values
    )
    return files if len(files) > 1 else next(iter(files), None)


@click.command(cls=Command)
@click.argument("prepared", type=PATH)
@click.argument("out", type=PATH)
@option(
    "--train-file",
    type=PATH,
    multiple=True,
    callback=_data_files,
    help="Training data: a csv, tsv, jsonl or parquet file, optionally with .gz, or a folder that "
    "datasets.save_to_disk wrote. For images also a folder with one folder per class. Repeat the "
    "option to train on several files. demo-data is the demo's file.  [required for a new run "
    "without --dataset]",
)
@option(
    "--eval-file",
    type=PATH,
    multiple=True,
    callback=_data_files,
    help="Evaluation data, in the same formats.  [optional]",
)
@option(
    "--dataset",
    metavar="NAME",
    help="A data set on the hub, instead of files: NAME or NAME:CONFIG.  [optional]",
)
@option(
    "--examples",
    type=int,
    metavar="ROWS",
    help="Train on this many rows of the training data, chosen at random.  [default: all]",
)
@seed_option("Seed for the random choice of --examples.", "--examples-seed")
@column_option("--text-column", "the text, words, question or prompt")
@column_option("--text-pair-column", "the second text or the context")
@column_option("--label-column", "the label, labels or answers. Several columns: NAME,NAME,…")
@column_option("--choices-column", "lists of choices, or one column per choice: NAME,NAME,…")
@column_option("--image-column", "the path of the image")
@field_options
@skip_option
@option(
    "--metric",
    metavar="NAME",
    help=f"Metric that decides which checkpoint is best: {_METRICS}.  [default: the task's first]",
)
@option(
    "--recipe",
    type=click.Choice(list(RECIPES)),
    help="Use other defaults: small for up to about 2,000 rows "
    f"({recipe_values('small', RECIPES['small'])}), standard for more rows "
    f"({recipe_values('standard', RECIPES['standard'])}). Options that you give take precedence.  "
    "[optional]",
)
@option("--epochs", default=3.0, help="Passes over the training data. Fractions are allowed.")
@option("--max-steps", type=int, help="Stop after this many training steps.  [optional]")
@option("--batch-size", default=32, help="Examples per batch and device.")
@option("--lr", default=2e-5, help="Peak learning rate.")
@option(
    "--layer-lr-decay",
    type=float,
    metavar="F",
    help="Train each layer at F times the learning rate of the layer above it, and the embeddings "
    "at the lowest rate. The top layer and the head have --lr.  [optional]",
)
@option(
    "--warmup-ratio", default=0.1, help="Fraction of the steps in which the learning rate rises."
)
@option(
    "--scheduler",
    type=click.Choice(_SCHEDULERS),
    default="linear",
    metavar="NAME",
    help=f"Learning-rate schedule after the warm-up: {', '.join(_SCHEDULERS)}.",
)
@option(
    "--weight-decay", default=0.01, help="Weight decay, decoupled from the gradient as in AdamW."
)
@option(
    "--decay-toward",
    type=click.Choice(["zero", "pretrained"]),
    default="zero",
    help="Values that weight decay pulls the weights toward. A fresh head always decays toward "
    "zero.",
)
@option(
    "--head-weight-decay",
    type=float,
    help="Weight decay of a fresh head.  [default: same as --weight-decay]",
)
@option(
    "--reinit-layers",
    type=int,
    metavar="N",
    help="Initialize the N layers next to the head, and the pooler, at random before training. "
    "These layers are not mixed.  [optional]",
)
@option(
    "--freeze",
    metavar="PATTERN",
    help="Do not train these modules and all modules inside them. PATTERN is name suffixes "
    "separated by commas, or a regular expression. Their layers are not mixed.  [optional]",
)
@option(
    "--label-smoothing",
    default=0.0,
    help="For labels of texts, words or images: spread this share of each label evenly over all "
    "labels, for example 0.1.",
)
@option(
    "--class-weights",
    metavar="balanced|W,W,…",
    help="For labels of texts, words or images: weight of each label in the training loss, in the "
    "order of the labels. balanced gives rare labels larger weights, so that all labels count the "
    "same.  [optional]",
)
@option(
    "--max-length",
    type=int,
    help="Maximum length in tokens. Longer texts are cut, and counted.  [default: 128, or the "
    "model's limit if lower; if PREPARED is already trained, the length of that training]",
)
@option(
    "--doc-stride",
    type=int,
    metavar="TOKENS",
    help="Tokens that two neighboring windows of a long context share.  [default: a third of "
    "--max-length; for a model that was trained before, that of its training]",
)
@flag(
    "--pack-sequences",
    cls=RenamedOption,
    old_name="--blocks",
    help="For language models: join the texts and cut them into blocks of --max-length tokens. "
    "Without it, each row is one sequence.",
)
@option(
    "--augment",
    type=click.Choice(["standard", "none"]),
    help="For images: standard crops each training image at random and mirrors half of them. none "
    "does not change the images.  [default: standard]",
)
@option("--max-grad-norm", default=1.0, help="Clip gradients to this norm. 0 turns clipping off.")
@option(
    "--gradient-accumulation",
    default=1,
    help="Batches per training step. Each has its own masks, unless --resample-every is given.",
)
@flag("--gradient-checkpointing", help="Recompute activations in the backward pass to save memory.")
@option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "fp16"]),
    default="fp32",
    help="Precision of the computation. Weights are always kept in fp32.",
)
@option(
    "--device",
    metavar="NAME",
    help="Device: cpu, cuda, cuda:N or mps.  [default: a GPU if there is one]",
)
@option(
    "--anchor-dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="Dtype of the pretrained weights in memory. bfloat16 halves their size.  "
    "[default: float32]",
)
@option(
    "--resample-every",
    type=int,
    metavar="STEPS",
    help="Use each mask for this many training steps.  [default: a new mask for each batch]",
)
@option(
    "--anchor-decay",
    default=1.0,
    metavar="F",
    help="With --resample-every: each time new masks are drawn, move each pretrained weight u in "
    "memory toward the trained weight w, to F*u + (1 - F)*w. 1 does not move it.",
)
@option(
    "--optimizer-scope",
    type=click.Choice(["all", "active"]),
    default="all",
    help="With --resample-every: what a training step changes in a mixed weight. active changes "
    "only the columns that the mask does not replace, and needs less memory.",
)
@seed_option("Seed for masks, dropout and the order of the training rows.")
@seed_option(
    "Seed for the order of the training rows alone.  [default: same as --seed]",
    "--data-seed",
    default=None,
)
@option(
    "--eval-every",
    type=int,
    metavar="STEPS",
    help="Training steps between evaluations.  [default: one epoch]",
)
@option(
    "--save-every",
    type=int,
    metavar="STEPS",
    help="Training steps between checkpoints.  [default: one epoch]",
)
@option("--keep", default=2, help="Number of checkpoints to keep while training.")
@flag("--early-stopping", help="Stop when --patience evaluations in a row show no improvement.")
@option(
    "--patience", default=3, help="Evaluations without improvement before --early-stopping stops."
)
@option(
    "--select",
    type=click.Choice(["best", "last"]),
    help="Which checkpoint becomes OUT.  [default: best with an eval file, else last]",
)
@option(
    "--tracker",
    type=click.Choice(["tensorboard", "wandb", "trackio"]),
    help="Also log to this experiment tracker.  [optional]",
)
@option(
    "--p",
    type=float,
    help="Probability of using the pretrained weight, in [0, 1).  [default: the value given to "
    "prepare]",
)
@flag(
    "--resume",
    help="Continue the unfinished run of OUT. You need not repeat its options. If there is no "
    "unfinished run, start a new one. If OUT is complete, only check that it was made with the "
    "options that you give.",
)
@overwrite_option
@output_options
def train(
    prepared: Path, out: Path, *, resume: bool, overwrite: bool, output: Output, **options: Any
) -> None:
    """Finetune PREPARED, a Mixout checkpoint, and write OUT, a trained Mixout checkpoint.

    Until the run ends, its files are in OUT.partial. Ctrl-C finishes the current training step and
    saves a checkpoint. `train PREPARED OUT --resume` continues the run exactly.
    """
    with quick_imports():
        from mixout_export.errors import TrainingStoppedError
        from mixout_export.files.output import partial_path
        from mixout_export.stages.train import (
            DataOptions,
            notes_for,
            recorded_options,
            train_checkpoint,
        )
        from mixout_export.training.options import TrainOptions
        from mixout_export.training.snapshots import Snapshots
    from mixout_export_cli.progress import TrainingDisplay
    from mixout_export_cli.stopping import StopRequest

    given = _given(options)
    recorded = recorded_options(out, given, overwrite=overwrite) if resume else {}
    options = {**options, **with_recipe(given), **recorded, **given}
    data = take(DataOptions, options)
    settings = TrainOptions(**options)
    replacing = ["--overwrite"] if overwrite else []
    to_resume = next_command("train", prepared, out, *replacing, "--resume")
    snapshots = Snapshots(partial_path(out), settings.keep)
    collapsed = beside(out, f"{out.name}-collapsed")
    kept = f"{out} was not {'changed' if out.exists() else 'written'}"
    try:
        with (
            StopRequest(notice=output.shows_progress) as must_stop,
            TrainingDisplay(output, settings.metric) as display,
        ):
            result = train_checkpoint(
                prepared, out, data, settings, overwrite=overwrite, resume=resume,
                observer=display, must_stop=must_stop,
            )  # fmt: skip
    except TrainingStoppedError as error:
        said = f"{error}; the checkpoint is in {snapshots.root}, and {kept}; "
        if snapshots.best.exists():
            to_collapse = next_command("collapse", snapshots.best, collapsed)
            said += f"to use the best model so far: {to_collapse}; "
        raise InterruptionError(f"{said}to continue: {to_resume}", must_stop.number) from error
    except KeyboardInterrupt as error:
        after = "there is no checkpoint yet"
        if snapshots.paths():
            after = f"to continue from the last checkpoint: {to_resume}"
        raise InterruptionError(f"interrupted; {kept}; {after}", must_stop.number) from error
    state = "already complete" if result.already_complete else f"in {result.seconds:.1f} s"
    stopped = ", stopped early" if result.stopped_early else ""
    steps = count_of(result.steps, "step")
    text = f"{out}: {steps} {state}{stopped}, result of step {result.chosen_step}"
    if settings.recipe is not None:
        text += f"\nrecipe {settings.recipe}: {recipe_values(settings.recipe, vars(settings))}"
    if result.metrics:
        text += "\n" + _metrics_table(result)
    if 1 < len(result.by_label) <= _SHOWN_LABELS:
        text += "\n" + label_table(result.by_label)
    notes = () if result.already_complete else notes_for(result, settings)
    text += "".join(f"\nnote: {note}" for note in notes)
    output.result(
        replace(result, notes=list(notes)), text, following=next_command("collapse", out, collapsed)
    )


def _metrics_table(result: "TrainResult") -> str:
    """Return a table of the metrics before and after training."""
    rows = [
        [result.titles.get(name, name), number(result.metrics_before.get(name)), number(value)]
        for name, value in result.metrics.items()
    ]
    return table(["metric", "before", "after"], rows)


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those options that are on the command line."""
    source = click.get_current_context().get_parameter_source
    return {
        name: value
        for name, value in options.items()
        if source(name) is ParameterSource.COMMANDLINE
    }
