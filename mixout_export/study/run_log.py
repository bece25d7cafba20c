"""The file `runs.jsonl`: one record on each line, in the order in which the runs ended."""

import json
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

from mixout_export.errors import DataError
from mixout_export.files.json_files import fields_as_json
from mixout_export.study.records import RunRecord, Seeds


def parse_record(values: dict[str, Any]) -> RunRecord:
    """Return the record of a JSON object. Fields of a newer version are ignored."""
    known = {field.name for field in fields(RunRecord)}
    kept = {name: value for name, value in values.items() if name in known}
    for name in ("commands", "curve", "warnings"):
        if name in kept:
            kept[name] = tuple(kept[name])
    return RunRecord(**{**kept, "seeds": Seeds(**kept["seeds"])})


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
                record = parse_record(json.loads(line))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise DataError(
                    f"{self._path}: line {number} is not the record of a run ({error}); remove "
                    "that line, and its run is done again"
                ) from error
            records[record.key] = record
        return records
