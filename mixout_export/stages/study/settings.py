"""The options of a study's runs, as `prepare` and `train` take them."""

import re
from dataclasses import fields
from typing import Any

from mixout_export.checkpoint.base import BaseOptions
from mixout_export.config import MixoutConfig
from mixout_export.data.metrics import default_metric
from mixout_export.errors import MixoutError, PlanError
from mixout_export.stages.prepare import PrepareOptions
from mixout_export.stages.train import DataOptions
from mixout_export.study.options import options_of
from mixout_export.study.plan import Plan, Schema, Settings
from mixout_export.study.runs import Run
from mixout_export.tasks import get_task
from mixout_export.training.options import TrainOptions

_SEEDS = ("seed", "data_seed")

#: The options that a plan may state.
SCHEMA: Schema = {
    "prepare": options_of(
        BaseOptions, MixoutConfig, PrepareOptions, without=("base", "mixout", "seed")
    ),
    "train": options_of(DataOptions, TrainOptions, without=(*_SEEDS, "device", "log_every")),
}


def prepare_options(run: Run) -> PrepareOptions:
    """Return the options of a run's `prepare`."""
    return _prepare_options(run.prepare, seed=run.seeds.head)


def train_options(run: Run, *, device: str | None) -> tuple[DataOptions, TrainOptions]:
    """Return the data and the options of a run's `train`."""
    seeds = {"seed": run.seeds.masks, "data_seed": run.seeds.data}
    return _train_options({**run.train, **run.data, **seeds, "device": device})


def _prepare_options(values: dict[str, Any], **more: Any) -> PrepareOptions:
    values = {**values, **more}
    base = BaseOptions(**_take(values, BaseOptions))
    mixout = MixoutConfig(**_take(values, MixoutConfig))
    return PrepareOptions(base=base, mixout=mixout, **values)


def _train_options(values: dict[str, Any]) -> tuple[DataOptions, TrainOptions]:
    values = dict(values)
    data = DataOptions(**_take(values, DataOptions))
    return data, TrainOptions(**values)


def _take(values: dict[str, Any], kind: type) -> dict[str, Any]:
    """Remove the fields of a dataclass from values, and return them."""
    names = [field.name for field in fields(kind) if field.name in values]
    return {name: values.pop(name) for name in names}


def message_for_plan(error: MixoutError) -> str:
    """Return an error's message; if it names an option, also how a plan writes options."""
    text = str(error)
    named = re.search(r" --[a-z]", text) is not None
    return f"{text}; in the plan, write options without the leading hyphens" if named else text


def check_settings(plan: Plan, settings: dict[tuple[str, str], Settings]) -> None:
    """Check the options of every task with every arm, before anything is run.

    Raises:
        PlanError: An option has an invalid value, or the data are not complete.
    """
    metrics: dict[str, tuple[str, str | None]] = {}
    evaluated: dict[str, tuple[str, object]] = {}
    for (task, arm), own in settings.items():
        place = f"{plan.file}: task {task!r} with arm {arm!r}"
        try:
            prepared = _prepare_options(own["prepare"])
            train = {n: getattr(v, "path", v) for n, v in own["train"].items()}
            data, options = _train_options(train)
            metric = options.metric
            if prepared.base.task is not None:
                metric = default_metric(get_task(prepared.base.task), metric)
        except MixoutError as error:
            raise PlanError(f"{place}: {error}") from error
        other, expected = metrics.setdefault(task, (arm, metric))
        if metric != expected:
            raise PlanError(
                f"{place}: is measured by {metric or 'its default'}, but arm {other!r} by "
                f"{expected or 'its default'}; give all arms of a task one metric"
            )
        _check_data(place, data)
        rows = data.eval_file or data.dataset
        other, same = evaluated.setdefault(task, (arm, rows))
        if rows != same:
            raise PlanError(
                f"{place}: is evaluated on {rows}, but arm {other!r} on {same}; evaluate all arms "
                "of a task on the same rows"
            )


def _check_data(place: str, data: DataOptions) -> None:
    if (data.train_file is None) == (data.dataset is None):
        raise PlanError(f"{place}: give either train-file or dataset, and not both")
    if data.eval_file is None and data.dataset is None:
        raise PlanError(f"{place}: eval-file is missing; add it, because scores are compared on it")
    for file in data.files():
        if not file.exists():
            raise PlanError(f"{place}: {file}: no such file; check the path in the plan")
