"""Checks of a run's options against its task, its data and its other processes.

`TrainOptions` checks each value on its own.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mixout_export.data.metrics import default_metric
from mixout_export.data.reader import Reader, reader_of
from mixout_export.errors import ArgumentError
from mixout_export.stages.train.data import DataOptions, TrainingData, encoding_options
from mixout_export.tasks import Task
from mixout_export.training.options import TrainOptions


def check_options(task: Task, data: DataOptions, options: TrainOptions) -> tuple[Reader[Any], str]:
    """Check that the options fit the task.

    Returns:
        The reader of the task's data, and the name of the metric that ranks checkpoints.

    Raises:
        ArgumentError: The metric is not one of the task's, an option has no effect for the task, or
            the data are not given exactly once.
    """
    reader = reader_of(task)
    if reader is None:
        raise ArgumentError(
            f"train cannot read data for {task.name}; write your own training loop with "
            "load_mixout and save_mixout"
        )
    for name, given in (
        ("doc-stride", options.doc_stride is not None),
        ("pack-sequences", options.pack_sequences),
        ("choices-column", data.choices_column is not None),
        ("label-smoothing", options.label_smoothing > 0),
        ("class-weights", options.class_weights is not None),
    ):
        if given and name not in reader.uses:
            raise ArgumentError(f"{name}: has no effect for {task.name}; leave it out")
    reader.encoding.refuse_unused(task, data.columns, encoding_options(options))
    if options.examples_seed and options.examples is None:
        raise ArgumentError("examples-seed: has no effect without --examples; leave it out")
    if (data.train_file is None) == (data.dataset is None):
        raise ArgumentError("give either --train-file or --dataset, and not both")
    if data.dataset is not None and data.eval_file is not None:
        raise ArgumentError(
            "eval-file: --dataset has an evaluation split of its own; leave --eval-file out"
        )
    return reader, default_metric(task, options.metric)


def check_evaluation(options: TrainOptions, data: TrainingData) -> None:
    """Refuse options that need evaluation data if there are none."""
    for name, given in (
        ("early-stopping", options.early_stopping),
        ("select", options.select == "best"),
        ("eval-every", options.eval_every is not None),
    ):
        if given and data.evaluation is None:
            raise ArgumentError(f"{name}: needs evaluation data; give --eval-file")


def check_agreement(settings: Sequence[Mapping[str, Any]]) -> None:
    """Refuse to share a run between processes whose settings, from `run_settings`, differ."""
    for rank, other in enumerate(settings):
        for key, value in settings[0].items():
            if other[key] != value:
                raise ArgumentError(
                    f"process {rank}: its {key.replace('_', ' ')} differ from those of process 0; "
                    "give every process the same files and options"
                )
