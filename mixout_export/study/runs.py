"""The runs of a plan: their order, their keys, and the commands that repeat them."""

import hashlib
import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mixout_export.recipes import RECIPES, with_recipe
from mixout_export.study.options import as_text, given, hyphenated
from mixout_export.study.plan import DataPath, Plan, Settings, merged
from mixout_export.study.records import RunRecord, Seeds
from mixout_export.tasks import known_task

#: What every run gets unless the plan says otherwise. Choosing a checkpoint on the evaluation file
#: would flatter every arm.
DEFAULTS: Settings = {"prepare": {}, "train": {"select": "last"}}


@dataclass(frozen=True)
class Run:
    """One run of a study: `prepare`, then `train`.

    Attributes:
        key: Identifies the run; see `RunRecord`.
        prepared_key: Identifies its prepared checkpoint, which runs may share.
        task: Name of the task in the plan.
        arm: Name of the arm in the plan.
        seeds: The seeds.
        base: The pretrained checkpoint.
        metric: The metric that is compared; None takes that of the task of the base's own head.
        prepare: Options of `prepare` that are not defaults, by their names in Python.
        train: The same of `train`, without data files.
        data: Data files by the names of their options.
        commands: The two commands that repeat the run in the folder of the plan.
    """

    key: str
    prepared_key: str
    task: str
    arm: str
    seeds: Seeds
    base: str
    metric: str | None
    prepare: dict[str, Any]
    train: dict[str, Any]
    data: dict[str, Path]
    commands: tuple[str, ...]


def settings_of_runs(plan: Plan) -> dict[tuple[str, str], Settings]:
    """Return the options of each pair of a task and an arm, in the plan's order.

    A recipe is replaced by its values, so that a run's key and commands do not depend on what the
    recipe will be in another version.
    """
    found = {}
    for task in plan.tasks:
        for arm in plan.arms:
            own = merged(DEFAULTS, plan.settings, task.settings, arm.settings)
            train = with_recipe(own["train"])
            if train.get("recipe") in RECIPES:
                del train["recipe"]
            found[task.name, arm.name] = {**own, "train": train}
    return found


def data_files(settings: Iterable[Settings]) -> list[Path]:
    """Return the data files that runs read, each once."""
    values = (value for each in settings for value in each["train"].values())
    return list(dict.fromkeys(value.path for value in values if isinstance(value, DataPath)))


def expand(plan: Plan, *, base_sha256: str, digests: Mapping[Path, str]) -> list[Run]:
    """Return the runs of a plan in the order in which they are to be done.

    All arms on all tasks with the first seed come first, so that the evidence grows evenly. Runs
    that share a prepared checkpoint are neighbors. Two arms with the same options give two runs
    with the same key.

    Args:
        plan: The plan.
        base_sha256: SHA-256 of the base's weights, configuration and tokenizer.
        digests: Data file → SHA-256 of its contents.
    """
    settings = settings_of_runs(plan)
    runs = []
    for seeds in plan.seeds:
        for task in plan.tasks:
            together: dict[str, list[Run]] = {}
            for arm in plan.arms:
                own = settings[task.name, arm.name]
                run = _run(plan, task.name, arm.name, seeds, own, base_sha256, digests)
                together.setdefault(run.prepared_key, []).append(run)
            runs += [run for group in together.values() for run in group]
    return runs


def records_of(runs: Iterable[Run], records: Mapping[str, RunRecord]) -> list[RunRecord]:
    """Return the records of runs in the plan's order and under the plan's names.

    The order of `runs` depends only on the plan, so the same records give the same list whatever
    the order in which they were written.
    """
    return [
        replace(records[run.key], task=run.task, arm=run.arm, seeds=run.seeds)
        for run in runs
        if run.key in records
    ]


def _run(
    plan: Plan,
    task: str,
    arm: str,
    seeds: Seeds,
    settings: Settings,
    base_sha256: str,
    digests: Mapping[Path, str],
) -> Run:
    train = dict(settings["train"])
    files = {name: train.pop(name) for name in list(train) if isinstance(train[name], DataPath)}
    prepare = given(plan.schema["prepare"], settings["prepare"])
    metric = train.get("metric")
    known = known_task(prepare.get("task"))
    if known is not None and metric in (None, known.metric):
        metric = known.metric
        train.pop("metric", None)
    train = given(plan.schema["train"], train)
    prepared = {"base": base_sha256, "options": prepare, "seed": seeds.head}
    identity = {
        "base": base_sha256,
        "data": {name: digests[file.path] for name, file in files.items()},
        "metric": metric,
        "seeds": asdict(seeds),
        "prepare": prepare,
        "train": {name: value for name, value in train.items() if name != "metric"},
    }
    return Run(
        key=_sha256(identity),
        prepared_key=_sha256(prepared),
        task=task,
        arm=arm,
        seeds=seeds,
        base=plan.base,
        metric=metric,
        prepare=prepare,
        train=train,
        data={name: file.path for name, file in files.items()},
        commands=_commands(plan, prepare, train, seeds, files),
    )


def _sha256(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _commands(
    plan: Plan,
    prepare: Mapping[str, Any],
    train: Mapping[str, Any],
    seeds: Seeds,
    files: Mapping[str, DataPath],
) -> tuple[str, str]:
    program = f"OMP_NUM_THREADS={plan.threads} mixout-export"
    first = [_quoted(plan.base_written), "prepared", *_words(prepare), "--seed", str(seeds.head)]
    data = [w for name, f in files.items() for w in (f"--{hyphenated(name)}", _quoted(f.written))]
    second = ["prepared", "trained", *data, *_words(train)]
    second += ["--seed", str(seeds.masks), "--data-seed", str(seeds.data)]
    return f"{program} prepare {' '.join(first)}", f"{program} train {' '.join(second)}"


def _words(options: Mapping[str, Any]) -> list[str]:
    """Return options as words of a shell command."""
    words = []
    for name, value in options.items():
        option = f"--{hyphenated(name)}"
        if isinstance(value, bool):
            words.append(option)  # only those that are set differ from their default
        elif isinstance(value, Sequence) and not isinstance(value, str):
            words += [option, shlex.quote(as_text(value))]
        else:
            words += [option, shlex.quote(str(value))]
    return words


def _quoted(path: str) -> str:
    """Quote a path for a shell, which still replaces `$NAME` and `~`."""
    head, slash, rest = path.partition("/")
    if head == "~":
        return f"~{slash}{_quoted(rest) if rest else ''}"
    if "$" in path:
        return '"' + re.sub(r'(["`\\])', r"\\\1", path) + '"'
    return shlex.quote(path)
