"""The file `runs.jsonl`: one record on each line, in the order in which the runs ended."""

import json
import os
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

from mixout_export.errors import DataError
from mixout_export.files.json_files import fields_as_json
from mixout_export.study.records import RunRecord, Seeds


def _is_a(value: object, expected: Any) -> bool:
    """Return whether a value has the type of an annotation."""
    if expected is Any:
        return True
    kind, inner = get_origin(expected) or expected, get_args(expected)
    if kind is UnionType:
        return any(_is_a(value, each) for each in inner)
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    if not isinstance(value, kind):
        return False
    parts = value.values() if kind is dict else value if kind is tuple else ()
    return all(_is_a(part, inner[-1 if kind is dict else 0]) for part in parts)


def _check_types(record: RunRecord | Seeds) -> None:
    """Raise a `TypeError` if a field has another type than its class says."""
    for name, expected in get_type_hints(type(record)).items():
        if not _is_a(getattr(record, name), expected):
            raise TypeError(f"{name}: got {getattr(record, name)!r}")


def parse_record(values: dict[str, Any]) -> RunRecord:
    """Return the record of a JSON object. Fields of a newer version are ignored.

    Raises:
        KeyError: The object has no seeds.
        TypeError: A field is missing or has another type.
    """
    known = {field.name for field in fields(RunRecord)}
    kept = {name: value for name, value in values.items() if name in known}
    for name in ("commands", "curve", "warnings"):
        if isinstance(kept.get(name), list):
            kept[name] = tuple(kept[name])
    record = RunRecord(**{**kept, "seeds": Seeds(**kept["seeds"])})
    _check_types(record)
    _check_types(record.seeds)
    return record


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


class RunLog:
    """The records of a study's runs. The latest record of a key is the one that counts.

    Args:
        path: The file, which need not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def repair(self) -> None:
        """Remove a last line that a killed study left unfinished, and create the file."""
        with self._path.open("a+b") as stream:
            stream.seek(0)
            content = stream.read()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                stream.truncate(whole)

    def append(self, record: RunRecord) -> None:
        """Add a record and wait until it is on the disk."""
        line = json.dumps(fields_as_json(record), allow_nan=False, ensure_ascii=False)
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")
            stream.flush()
            os.fsync(stream.fileno())

    def latest(self) -> dict[str, RunRecord]:
        """Return key → its latest record.

        Raises:
            DataError: A line is not a record.
        """
        if not self._path.exists():
            return {}
        records = {}
        content = self._path.read_bytes()
        for number, line in enumerate(content.split(b"\n")[:-1], start=1):
            try:
                record = parse_record(json.loads(line, parse_constant=_refuse_constant))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise DataError(
                    f"{self._path}: line {number} is not the record of a run ({error}); remove "
                    "that line, and its run is done again"
                ) from error
            records[record.key] = record
        return records
