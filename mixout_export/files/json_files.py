"""JSON files, and the JSON values of results."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixout_export.errors import CheckpointError


def as_json(value: Any) -> Any:
    """Return data for JSON: dataclasses as objects, paths as strings, NaN and infinity as null."""
    if hasattr(value, "to_dict"):
        return as_json(value.to_dict())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return fields_as_json(value)
    if isinstance(value, dict):
        return {str(key): as_json(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(inner) for inner in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def fields_as_json(result: Any, *properties: str) -> dict[str, Any]:
    """Return the fields of a dataclass, and some of its properties, as JSON values."""
    names = (*(field.name for field in dataclasses.fields(result)), *properties)
    return {name: as_json(getattr(result, name)) for name in names}


def parse_object(content: bytes, path: Path) -> dict[str, Any]:
    """Parse a file's bytes as a JSON object. Other bytes raise a `CheckpointError`."""
    try:
        data = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not valid JSON ({error}); restore the file") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: holds a JSON {type(data).__name__}, expected an object")
    return data


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Any other file, or none, raises a `CheckpointError`."""
    try:
        return parse_object(path.read_bytes(), path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error


def json_text(content: object) -> str:
    """Return the text of a JSON file whose keys keep their order."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a JSON object the way transformers does, keys sorted, so that it is reproducible."""
    text = json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(path)  # so that the file is never half-written, even if the process is killed
