"""Options of commands as a plan states them: their names, types and defaults."""

import csv
import dataclasses
import difflib
import io
import sys
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

#: Type → what a plan must give for it.
_EXPECTED = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "text in quotes",
    Path: "a path in quotes",
    tuple: "text, or a list of texts",
}


@dataclass(frozen=True)
class Option:
    """An option of a command.

    Attributes:
        name: Its name in Python.
        kinds: The types of its values, except None: bool, int, float, str, Path, or tuple for
            several texts.
        default: The value if it is not given.
    """

    name: str
    kinds: tuple[type, ...]
    default: Any

    @property
    def is_path(self) -> bool:
        """Whether the value is a path."""
        return Path in self.kinds

    def convert(self, value: Any) -> Any:
        """Return a value of a plan as the type of the option.

        Raises:
            ValueError: The value has another type. The message says what was expected.
        """
        if isinstance(value, bool):
            if bool in self.kinds:
                return value
        elif isinstance(value, (int, float)):
            if isinstance(value, int) and int in self.kinds:
                return value
            if float in self.kinds and abs(value) <= sys.float_info.max:
                return float(value)
        elif isinstance(value, str):
            if tuple in self.kinds and not self.is_path:
                return self._from_text(value)
            if str in self.kinds or Path in self.kinds:
                return value
        elif isinstance(value, list) and tuple in self.kinds and not self.is_path:
            texts = tuple(part for part in value if isinstance(part, str))
            if texts and len(texts) == len(value):
                return texts
        expected = " or ".join(_EXPECTED[kind] for kind in self.kinds)
        raise ValueError(f"got {value!r}, expected {expected}")

    def _from_text(self, text: str) -> Any:
        """Return a number or names separated by commas, as the command line reads them.

        Raises:
            ValueError: The text names a file.
        """
        if int in self.kinds and text.strip().isdecimal():
            return int(text)
        if text.startswith("@"):
            raise ValueError(f"got {text!r}, but a plan reads no file of names; write the names")
        return tuple(name.strip() for name in next(csv.reader([text], skipinitialspace=True), []))


def _kinds(annotation: Any) -> tuple[type, ...]:
    """Return the types that an annotation allows, except None."""
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(kind for part in get_args(annotation) for kind in _kinds(part))
    if annotation is type(None):
        return ()
    if get_origin(annotation) is Literal:
        return (str,)
    if get_origin(annotation) in (tuple, list, Sequence):
        return (tuple,)
    return (annotation,)


def options_of(*classes: type, without: Iterable[str] = ()) -> dict[str, Option]:
    """Return the options that are the fields of dataclasses, by their names in Python."""
    left_out = set(without)
    return {
        field.name: Option(field.name, _kinds(get_type_hints(kind)[field.name]), field.default)
        for kind in classes
        for field in dataclasses.fields(kind)
        if field.name not in left_out
    }


def given(options: Mapping[str, Option], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that differ from the options' defaults, by their names in order."""
    return {name: values[name] for name in sorted(values) if values[name] != options[name].default}


def as_text(names: Sequence[str]) -> str:
    """Return names separated by commas, in quotes where the command line needs them."""
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(names)
    return text.getvalue()


def hyphenated(name: str) -> str:
    """Return the name of an option on the command line, without its leading hyphens."""
    return name.replace("_", "-")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the known name that is most like another one."""
    by_lower = {each.lower(): each for each in known}
    return by_lower[difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.0)[0]]
