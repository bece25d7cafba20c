"""The chain of steps from a base model to a folder, one link a step."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import PurePath
from typing import Any

from mixout_export.errors import CheckpointError

#: Characters of a hash that people are shown.
_SHOWN = 12

#: What there is to read in a link; the rest are texts.
_STEPS = ("base", "source", "prepare", "train", "collapse", "onnx", "bundle")
_FIRST = ("base", "source")
_OBJECTS = ("options", "versions")


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise CheckpointError(f"{name} is {value!r:.60}, expected a text")


@dataclass(frozen=True)
class DataFile:
    """A table that a step read.

    Attributes:
        role: What for, "train" or "eval" say.
        name: Its file name, without folders.
        sha256: Of the file's bytes; "" of a data set of the hub, which has no one file.
        rows: Rows that were used; None where that was not counted.
    """

    role: str
    name: str
    sha256: str
    rows: int | None = None


@dataclass(frozen=True)
class Link:
    """One step of a chain.

    Attributes:
        step: "base", "prepare", "train", "collapse", "onnx" or "bundle"; "source" is a folder that
            has no manifest.
        weights_sha256: Identifies the weights that it wrote; see `joint_digest`.
        name: Of the base, or of the source; a step's folder may be called anything.
        input_sha256: Identifies the weights that it read; "" of the first link.
        options: What it was told, as plain JSON values; a path is its last name.
        versions: Library → version.
        data: The tables that it read.
        manifest_sha256: Of the manifest in the folder that it wrote; "" where there is none.
        source_changed: Files of what it read, but for weights, that were no longer as the step
            before had written them.
    """

    step: str
    weights_sha256: str
    name: str = ""
    input_sha256: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    data: tuple[DataFile, ...] = ()
    manifest_sha256: str = ""
    source_changed: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values; what is empty is left out."""
        return {name: value for name, value in asdict(self).items() if value not in ("", {}, ())}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Link":
        """Build it from `to_dict`'s result.

        Raises:
            CheckpointError: A field is missing or unknown, or is not of its kind.
        """
        try:
            data = tuple(DataFile(**entry) for entry in fields.get("data", ()))
            changed = tuple(fields.get("source_changed", ()))
            link = cls(**{**fields, "data": data, "source_changed": changed})
        except TypeError as error:
            raise CheckpointError(f"a link of the chain cannot be read ({error})") from error
        link._check()
        return link

    def _check(self) -> None:
        if self.step not in _STEPS:
            raise CheckpointError(
                f"a step is {self.step!r:.60}, expected one of {', '.join(_STEPS)}"
            )
        for name, value in vars(self).items():
            if name in _OBJECTS:
                if not isinstance(value, dict):
                    raise CheckpointError(f"{name} of {self.step} are no object")
            elif name not in ("data", "source_changed"):
                _check_text(name, value)
        for name in self.source_changed:
            _check_text("source_changed", name)
        for file in self.data:
            for name in ("role", "name", "sha256"):
                _check_text(name, getattr(file, name))
            if not isinstance(file.rows, int | None):
                raise CheckpointError(f"rows of {file.name} are {file.rows!r:.60}")


def plain_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as JSON has them, without a machine's paths: a path becomes its last name."""

    def plain(value: Any) -> Any:
        if isinstance(value, PurePath):
            return value.name
        if isinstance(value, Mapping):
            return plain_options(value)
        if isinstance(value, tuple | list):
            return [plain(each) for each in value]
        return value if isinstance(value, str | int | float | bool | None) else str(value)

    return {name: plain(value) for name, value in options.items() if value is not None}


def broken_links(chain: Sequence[Link]) -> Iterator[str]:
    """Yield, as a sentence, each link that did not read what the one before it wrote."""
    if chain and chain[0].step not in _FIRST:
        yield f"the chain begins with {chain[0].step}, expected {' or '.join(_FIRST)}"
    for before, link in pairwise(chain):
        where = f"the chain is broken between {before.step} and {link.step}"
        if link.input_sha256 != before.weights_sha256:
            yield (
                f"{where}: {link.step} read weights {link.input_sha256[:_SHOWN]}…, {before.step} "
                f"wrote {before.weights_sha256[:_SHOWN]}…"
            )
        if link.source_changed:
            yield f"{where}: {', '.join(link.source_changed)} had been changed since"
