"""The plan of a study: tasks, arms and seeds, read from a TOML file."""

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from mixout_export.checkpoint.demo_base import DEMO_DATA, demo_data
from mixout_export.errors import PlanError
from mixout_export.study.options import Option, hyphenated, nearest
from mixout_export.study.records import Seeds

#: The commands of a run. Each is also the name of a table of its options in a plan.
COMMANDS = ("prepare", "train")

#: Options of `train` that a study or a task may also state outside its `train` table.
_OF_STUDY = ("metric", "examples", "examples_seed")
_OF_TASK = (
    *("train_file", "eval_file", "dataset"),
    *("text_column", "text_pair_column", "label_column", "choices_column", "image_column"),
)

_STUDY = ("base", "seeds", "baseline", "budget", "threads", "keep", *COMMANDS, *_OF_STUDY)
_TASK = ("name", *COMMANDS, *_OF_STUDY, *_OF_TASK)
_ARM = ("name", "inherit", *COMMANDS)

#: Options that a plan cannot set, and what to do instead.
_NOT_IN_PLANS = {
    "labels_from": "give the names in labels",
    "seed": "give the seeds in [study]",
    "data_seed": "give the seeds in [study]",
    "device": "give --device to mixout-export study",
    "resume": "leave it out, because a study always resumes",
    "overwrite": "give --overwrite to mixout-export study",
}

#: No machine has more CPU cores, and torch fails on far larger numbers.
_MOST_THREADS = 4096

_DURATION = re.compile(r"(?:(\d+)\s*h)?\s*(?:(\d+)\s*m(?:in)?)?\s*(?:(\d+)\s*s)?")

#: Command → its options by their names in Python.
Schema = Mapping[str, Mapping[str, Option]]

#: Command → option → value.
Settings = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class DataPath:
    """A data file.

    Attributes:
        path: Where it is.
        written: How the plan writes it, for commands that repeat a run in the plan's folder.
    """

    path: Path
    written: str


@dataclass(frozen=True)
class PlannedTask:
    """A task of a study: data, a metric, and options for all arms.

    Attributes:
        name: Its name.
        settings: Its options by command. Data files are `DataPath`.
    """

    name: str
    settings: Settings


@dataclass(frozen=True)
class Arm:
    """One of the things that a study compares: a set of options.

    Attributes:
        name: Its name.
        settings: Its options by command, with those that it inherits.
    """

    name: str
    settings: Settings


@dataclass(frozen=True)
class Plan:
    """A study: every arm on every task with every seed.

    Attributes:
        file: The plan's file, an absolute path.
        text: Its contents.
        schema: The options of the commands.
        base: The pretrained checkpoint: a folder, "demo-base" or a hub id.
        base_written: How the plan writes it.
        seeds: The seeds, shared by all arms.
        tasks: The tasks.
        arms: The arms.
        baseline: Name of the arm that the others are compared with.
        settings: Options for all tasks and arms.
        budget: Seconds of training after which no new run is started; None is no limit.
        threads: CPU threads of each run.
        keep: Whether trained checkpoints are kept.
    """

    file: Path
    text: str
    schema: Schema = field(repr=False)
    base: str
    base_written: str
    seeds: tuple[Seeds, ...]
    tasks: tuple[PlannedTask, ...]
    arms: tuple[Arm, ...]
    baseline: str
    settings: Settings
    budget: float | None = None
    threads: int = 1
    keep: bool = False


def read_plan(path: Path, schema: Schema) -> Plan:
    """Read and check a plan.

    Args:
        path: The TOML file.
        schema: The options of the commands.

    Raises:
        PlanError: The file cannot be read, or something in it is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # editors on Windows begin with a mark
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise PlanError(f"{path}: cannot be read ({reason}); check the path") from error
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PlanError(f"{path}: is not valid TOML ({error}); correct that line") from error
    except (ValueError, RecursionError) as error:  # which tomllib passes on
        what = "an integer" if isinstance(error, ValueError) else "a list or table"
        raise PlanError(f"{path}: {what} in it is too long to be read; shorten it") from error
    return _Parser(path, schema).plan(text, content)


def _fail(place: str, what: str) -> NoReturn:
    raise PlanError(f"{place}: {what}")


def _check_names(
    place: str, given: Iterable[str], known: Iterable[str], what: str, hint: str = ""
) -> None:
    known = [hyphenated(name) for name in known]
    found = set()
    for name in given:
        written = hyphenated(name)
        if written not in known:
            similar = nearest(name, known)
            _fail(place, f"unknown {what} {name!r}; did you mean {similar!r}?{hint}")
        if written in found:
            _fail(place, f"{written} is given twice, with - and with _; remove one of them")
        found.add(written)


def _underscored(table: Mapping[str, Any]) -> dict[str, Any]:
    return {name.replace("-", "_"): value for name, value in table.items()}


def merged(*settings: Settings) -> Settings:
    """Return options by command; those of a later argument replace those of an earlier one."""
    return {
        command: {name: value for each in settings for name, value in each[command].items()}
        for command in COMMANDS
    }


def parse_duration(place: str, value: Any) -> float:
    """Return the seconds of a duration such as "4h", "90m" or "1h 30m"."""
    found = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None or not any(found.groups()):
        _fail(place, f'budget: got {value!r}, expected a duration such as "4h" or "1h 30m"')
    hours, minutes, seconds = (float(part or 0) for part in found.groups())
    total = 3600 * hours + 60 * minutes + seconds
    if not total:
        _fail(place, f"budget: got {value!r}, expected more than 0; leave it out for no limit")
    return total


class _Parser:
    """Turns the content of a TOML file into a plan; every error names the place."""

    def __init__(self, path: Path, schema: Schema) -> None:
        self._path, self._schema = path, schema
        self._folder = path.absolute().parent

    def plan(self, text: str, content: dict[str, Any]) -> Plan:
        _check_names(str(self._path), content, ("study", "task", "arm"), "table")
        study = content.get("study", {})
        place = f"{self._path}: [study]"
        if not isinstance(study, dict):
            _fail(place, "expected one table; write it once, with single brackets: [study]")
        _check_names(place, study, _STUDY, "key")
        study = _underscored(study)
        tasks = tuple(
            PlannedTask(name, self._settings(where, table))
            for name, where, table in self._tables(content, "task", _TASK)
        )
        arms = self._arms(content)
        baseline = study.get("baseline", arms[0].name)
        self._check_reference(f"{place}: baseline", baseline, [arm.name for arm in arms])
        base = self._text(place, study, "base")
        return Plan(
            file=self._path.absolute(),
            text=text,
            schema=self._schema,
            base=self._base(place, base),
            base_written=base,
            seeds=_seeds(place, study.get("seeds")),
            tasks=tasks,
            arms=arms,
            baseline=baseline,
            settings=self._settings(place, study),
            budget=parse_duration(place, study["budget"]) if "budget" in study else None,
            threads=_threads(place, study.get("threads", 1)),
            keep=_boolean(place, "keep", study.get("keep", False)),
        )

    def _tables(
        self, content: dict[str, Any], kind: str, known: Iterable[str]
    ) -> list[tuple[str, str, dict[str, Any]]]:
        """Return name, place and content of the tables of a kind."""
        tables = content.get(kind, [])
        if isinstance(tables, dict):
            _fail(str(self._path), f"write [[{kind}]] with double brackets, not [{kind}]")
        if not isinstance(tables, list) or not tables:
            _fail(str(self._path), f"has no {kind}; add one as a table [[{kind}]]")
        found: dict[str, tuple[str, str, dict[str, Any]]] = {}
        for number, table in enumerate(tables, start=1):
            place = f"{self._path}: [[{kind}]] number {number}"
            if not isinstance(table, dict):
                _fail(place, f"got {table!r}, expected a table")
            name = self._text(place, table, "name")
            if not name.strip() or name.splitlines() != [name]:
                _fail(place, f"name is {name!r}, expected one line of text")
            place = f"{self._path}: [[{kind}]] {name!r}"
            _check_names(place, table, known, "key")
            if name in found:
                _fail(place, f"two {kind}s have this name; rename one of them")
            found[name] = (name, place, _underscored(table))
        return list(found.values())

    def _arms(self, content: dict[str, Any]) -> tuple[Arm, ...]:
        tables = {name: (where, t) for name, where, t in self._tables(content, "arm", _ARM)}
        own = {name: self._settings(where, table) for name, (where, table) in tables.items()}

        def resolved(name: str) -> Settings:
            line = [name]  # the arm, the one that it inherits, and so on
            while "inherit" in tables[line[-1]][1]:
                place, table = tables[line[-1]]
                parent = table["inherit"]
                self._check_reference(f"{place}: inherit", parent, tables)
                if parent in line:
                    chain = " → ".join([*line, parent])
                    problem = f"inherits from itself ({chain})"
                    _fail(place, f"{problem}; remove one of these inherit keys")
                line.append(parent)
            return merged(*(own[each] for each in reversed(line)))

        return tuple(Arm(name, resolved(name)) for name in tables)

    def _check_reference(self, place: str, name: Any, arms: Iterable[str]) -> None:
        arms = list(arms)
        if not isinstance(name, str):
            _fail(place, f"got {name!r}, expected the name of an arm")
        if name not in arms:
            _fail(place, f"there is no arm {name!r}; did you mean {nearest(name, arms)!r}?")

    def _text(self, place: str, table: Mapping[str, Any], name: str) -> str:
        value = table.get(name)
        if not isinstance(value, str) or not value:
            problem = "is missing" if value is None else f"is {value!r}"
            _fail(place, f"{name} {problem}, expected text in quotes")
        return value

    def _settings(self, place: str, table: dict[str, Any]) -> Settings:
        """Return the options that a table of the plan states."""
        settings: Settings = {}
        for command in COMMANDS:
            options = table.get(command, {})
            if not isinstance(options, dict):
                _fail(f"{place}: {command}", "expected a table such as { p = 0.5 }")
            settings[command] = self._options(f"{place}: {command}", command, options)
        beside = {name: table[name] for name in (*_OF_STUDY, *_OF_TASK) if name in table}
        twice = beside.keys() & settings["train"].keys()
        if twice:
            name = hyphenated(min(twice))
            _fail(place, f"{name} is given twice, here and in the table train; remove one of them")
        settings["train"].update(self._options(place, "train", beside))
        return settings

    def _options(self, place: str, command: str, given: dict[str, Any]) -> dict[str, Any]:
        known = self._schema[command]
        result = {}
        for name in _underscored(given):
            if name in _NOT_IN_PLANS and name not in known:
                _fail(place, f"{hyphenated(name)} cannot be set here; {_NOT_IN_PLANS[name]}")
        hint = f" mixout-export {command} --help lists the options"
        _check_names(place, given, known, f"option of {command}", hint)
        for name, value in _underscored(given).items():
            try:
                converted = known[name].convert(value)
            except ValueError as error:
                _fail(f"{place}: {hyphenated(name)}", str(error))
            is_path = known[name].is_path
            result[name] = self._data_path(place, name, converted) if is_path else converted
        return result

    def _expanded(self, place: str, text: str) -> str:
        """Return a path with `~` and `$NAME` replaced by what they stand for."""
        expanded = os.path.expandvars(os.path.expanduser(text))
        unset = re.search(r"\$\{?(\w+)", expanded)
        if unset is not None:
            _fail(place, f"the environment variable {unset[1]} is not set (in {text!r}); set it")
        return expanded

    def _data_path(self, place: str, name: str, text: str) -> DataPath:
        if not text:
            _fail(f"{place}: {hyphenated(name)}", "got '', expected a path")
        if text == DEMO_DATA:
            train_file, eval_file = demo_data()
            path = eval_file if name == "eval_file" else train_file
            return DataPath(path, text)
        return DataPath(self._folder / self._expanded(place, text), text)

    def _base(self, place: str, text: str) -> str:
        """Return a folder as an absolute path, and any other name as it is."""
        expanded = self._expanded(place, text)
        folder = self._folder / expanded
        return str(folder) if folder.is_dir() or expanded[:1] in "./" else expanded


def _threads(place: str, value: Any) -> int:
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    if not is_integer or not 1 <= value <= _MOST_THREADS:
        _fail(place, f"threads: got {value!r}, expected an integer from 1 to {_MOST_THREADS}")
    return int(value)


def _boolean(place: str, name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        _fail(place, f"{name}: got {value!r}, expected true or false")
    return value


def _is_seed(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _seeds(place: str, value: Any) -> tuple[Seeds, ...]:
    """Return the seeds: so many, those of a list, or lists for head, data and masks."""
    place = f"{place}: seeds"
    expected = "expected a number of seeds, a list of seeds, or { head = …, data = …, masks = … }"
    if value is None:
        _fail(place, f"is missing, {expected}")
    if isinstance(value, list):
        value = dict.fromkeys(("head", "data", "masks"), value)
    elif not isinstance(value, dict):
        if not _is_seed(value) or not 1 <= value <= 100_000:
            _fail(place, f"got {value!r}, {expected}")
        return tuple(Seeds(seed, seed, seed) for seed in range(value))
    names = ("head", "data", "masks")
    _check_names(place, value, names, "key")
    missing = next((name for name in names if name not in value), None)
    if missing is not None:
        _fail(place, f"{missing} is missing; give a list of seeds, or one seed for all runs")
    lists = {name: seeds for name, seeds in value.items() if isinstance(seeds, list)}
    if len({len(seeds) for seeds in lists.values()}) > 1:
        lengths = ", ".join(f"{name} has {len(seeds)}" for name, seeds in lists.items())
        _fail(place, f"expected lists of equal length, but {lengths}")
    length = len(next(iter(lists.values()), [0]))
    columns = {n: v if isinstance(v, list) else [v] * length for n, v in value.items()}
    for name, seeds in columns.items():
        for seed in seeds:
            if not _is_seed(seed):
                _fail(f"{place}: {name}", f"got {seed!r}, expected an integer in [0, 2**63)")
    found = [
        Seeds(columns["head"][i], columns["data"][i], columns["masks"][i]) for i in range(length)
    ]
    if not found:
        _fail(place, f"is an empty list, {expected}")
    if len(set(found)) < len(found):
        _fail(place, "two runs would have the same seeds; remove one of them")
    return tuple(found)
