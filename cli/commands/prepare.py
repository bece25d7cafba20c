"""`mixout-export prepare`."""

import csv
from pathlib import Path
from typing import Any

import click

from mixout_export.tasks import TASKS, known_task
from mixout_export_cli.command import Command
from mixout_export_cli.following import after_prepare
from mixout_export_cli.imports import quick_imports
from mixout_export_cli.options import (
    PATH,
    column_option,
    field_options,
    flag,
    option,
    output_options,
    overwrite_option,
    seed_option,
    take,
)
from mixout_export_cli.output import Output, count_of


class TaskChoice(click.Choice[str]):
    """The name of a task, also of one that was registered after this module was imported."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name, or raise a usage error."""
        self.choices = tuple(TASKS)
        return super().convert(value, param, ctx)


def _parse_labels(given: tuple[str, ...]) -> int | list[str] | None:
    """Return the number of labels or their names: each option is a name, or the only one has all.

    The only one is a number, names separated by commas as in a csv file, or @FILE with a name on
    each line.
    """
    if len(given) != 1:
        return [name.strip() for name in given] or None
    text = given[0]
    if text.startswith("@"):
        return _read_labels(Path(text[1:]))
    try:
        return int(text)
    except ValueError:
        row = next(csv.reader([text], skipinitialspace=True), [])
        return [name.strip() for name in row]


def _labels(given: dict[str, Any]) -> int | list[str] | None:
    """Remove the options that name labels, and return the number of labels or their names."""
    files, column = given.pop("labels_from"), given.pop("label_column")
    delimiter, quoting = given.pop("delimiter"), given.pop("quoting")
    labels = _parse_labels(given["labels"])
    if not files:
        if column or delimiter or quoting:
            raise click.UsageError(
                "--label-column, --delimiter and --quoting are for --labels-from; leave them out."
            )
        return labels
    if labels is not None:
        raise click.UsageError("Give either --labels or --labels-from, and not both.")
    from mixout_export.data.label_names import labels_of_files
    from mixout_export.data.separated import FieldFormat

    fields = FieldFormat(delimiter, quoting)
    return labels_of_files(files, given["task"], label_column=column, fields=fields)


def _read_labels(path: Path) -> list[str]:
    """Return the names of a file, one on each line. Empty lines are left out."""
    from mixout_export.data.decoding import read_text

    names = [line.strip() for line in read_text(path).split("\n") if line.strip()]
    if not names:
        raise click.BadParameter(f"{path} is empty; write one label name on each line.")
    return names


@click.command(cls=Command)
@click.argument("base")
@click.argument("out", type=PATH)
@option(
    "--task",
    type=TaskChoice(TASKS),
    metavar="NAME",
    help=f"The task: {', '.join(TASKS)}.  [default: the task of BASE's head]",
)
@option(
    "--labels",
    metavar="N|NAMES|@FILE",
    multiple=True,
    help="Number of labels, their names separated by commas, or a file with one name on each line. "
    "If names contain commas, repeat the option, with one name each.  [default: those of BASE, or "
    "2]",
)
@option(
    "--labels-from",
    type=PATH,
    multiple=True,
    metavar="FILE",
    help="Take the names of the labels from this training file, or from the names of the class "
    "folders in this folder, sorted. Can be repeated. Needs --task.  [optional]",
)
@column_option("--label-column", "the label in --labels-from")
@field_options
@option("--p", default=0.7, help="Probability of using the pretrained weight, in [0, 1).")
@option(
    "--granularity",
    type=click.Choice(["neuron", "filter", "element"]),
    default="neuron",
    help="Weights that share a mask bit: those of an input neuron or input channel (neuron, as in "
    "the paper), those of an output neuron or a convolution's filter (filter), or none (element).",
)
@option(
    "--target-modules",
    default="all-linear",
    metavar="PATTERN",
    help="Modules to mix: all-linear, all-conv (convolutions) and name suffixes, separated by "
    "commas. Or a regular expression that matches whole names. Embeddings are mixed only if they "
    "are named.",
)
@option(
    "--exclude-modules",
    metavar="PATTERN",
    help="Modules not to mix: name suffixes, or a regular expression.  [optional]",
)
@option("--dropout", default=0.0, help="Dropout probability in the pretrained layers.")
@option(
    "--head",
    type=click.Choice(["dropout", "mixout", "none"]),
    default="dropout",
    help="How to regularize a fresh head: dropout, mixout toward its initial value, or none.",
)
@option("--head-dropout", default=0.1, help="Dropout probability before the head.")
@option(
    "--revision",
    metavar="NAME",
    help="Branch, tag or commit, if BASE is a name on the hub.  [default: main]",
)
@flag("--allow-pickle", help="Allow weights in pickle format. Only tensors are read from them.")
@flag(
    "--resize-embeddings",
    help="Add rows to the embedding for tokens that only the tokenizer has. They are not mixed.",
)
@flag(
    "--merge-adapter",
    help="First merge the PEFT adapter in BASE into its weights. Needs the extra peft.",
)
@flag("--trust-remote-code", help="Run the Python code that comes with BASE. Read it first.")
@seed_option("Seed for the initial weights of a fresh head.")
@overwrite_option
@output_options
def prepare(base: str, out: Path, *, overwrite: bool, output: Output, **given: Any) -> None:
    """Add Mixout to the layers of BASE, a pretrained model, and write OUT.

    BASE is a Hugging Face folder, a name on the hub, or demo-base, the small model of the demo. OUT
    is a Mixout checkpoint. It keeps the pretrained weights next to the trainable ones.
    """
    from mixout_export.files.weight_files import BaseDigest

    digest = BaseDigest.begin(Path(base))  # while PyTorch is imported

    with quick_imports():
        from mixout_export.checkpoint.base import BaseOptions
        from mixout_export.config import MixoutConfig
        from mixout_export.stages.prepare import PrepareOptions, prepare_checkpoint

    given["labels"] = _labels(given)
    mixout = take(MixoutConfig, given)
    options = PrepareOptions(base=take(BaseOptions, given), mixout=mixout, **given)
    result = prepare_checkpoint(base, out, options, overwrite=overwrite, digest=digest)
    unit = {"neuron": "input neuron", "filter": "filter", "element": "weight"}
    share = result.mixed_parameters / result.parameters
    lines = [
        f"{out}: {result.architecture} for {result.task}",
        f"  mixed      {count_of(len(result.mixed), 'layer')}, {result.mixed_parameters:,} of "
        f"{result.parameters:,} weights ({share:.0%}), p = {mixout.p:g}, one mask bit per "
        f"{unit[mixout.granularity]}",
        f"  new        {', '.join(result.fresh) or 'nothing, the head is that of the base'}",
    ]
    known = known_task(result.task)
    if result.labels is not None and known is not None and not known.single_output:
        lines.append(f"  labels     {', '.join(result.labels)}")
    for key, (before, after) in result.config_changes.items():
        lines.append(f"  config     {key}: {before} -> {after} while training")
    lines += [f"  not mixed  {name}: {reason}" for name, reason in result.skipped.items()]
    lines += [f"  note       {note}" for note in result.notes]
    output.result(
        result, "\n".join(lines), following=after_prepare(base, result.task, result.labels, out)
    )
