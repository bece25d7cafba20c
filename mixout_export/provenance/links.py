"""The chain of steps from a base model to a folder. Each step is one link."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import PurePath
from typing import Any

from mixout_export.errors import CheckpointError

#: Number of characters of a hash in messages.
_SHOWN = 12

#: All steps, the steps that a chain may begin with, and the fields of a link that are objects.
_STEPS = ("base", "source", "prepare", "train", "collapse", "onnx", "bundle")
_FIRST = ("base", "source")
_OBJECTS = ("options", "versions")


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise CheckpointError(f"{name} is {value!r:.60}, expected text")


@dataclass(frozen=True)
class DataFile:
    """A table that a step read.

    Attributes:
        role: Why the step read it, for example "train" or "eval".
        name: File name without folders.
        sha256: SHA-256 of the file's bytes; "" for a data set of the hub.
        rows: Number of rows used; None if they were not counted.
    """

    role: str
    name: str
    sha256: str
    rows: int | None = None


@dataclass(frozen=True)
class Link:
    """One step of a chain.

    Attributes:
        step: "base", "prepare", "train", "collapse", "onnx" or "bundle"; "source" stands for a
            folder without a manifest.
        weights_sha256: Joint hash of the weights that the step wrote; see `joint_digest`.
        name: Name of the base or the source; "" for other steps, whose folders may have any name.
        input_sha256: Joint hash of the weights that the step read; "" for the first link.
        options: Options of the step as JSON values. A path is reduced to its last name.
        versions: Library → version.
        data: The tables that the step read.
        manifest_sha256: SHA-256 of the manifest that the step wrote; "" if it wrote none.
        source_changed: Files other than weights that changed between the previous step and this
            one.
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
        """Return the fields as JSON values, without empty ones."""
        return {name: value for name, value in asdict(self).items() if value not in ("", {}, ())}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Link":
        """Build a link from the result of `to_dict`, or raise `CheckpointError`."""
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
                    raise CheckpointError(
                        f"{name} of {self.step} is {value!r:.60}, expected an object"
                    )
            elif name not in ("data", "source_changed"):
                _check_text(name, value)
        for name in self.source_changed:
            _check_text("source_changed", name)
        for file in self.data:
            for name in ("role", "name", "sha256"):
                _check_text(name, getattr(file, name))
            if not isinstance(file.rows, int | None):
                raise CheckpointError(
                    f"the rows of {file.name} are {file.rows!r:.60}, expected a number"
                )


def plain_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as JSON values. A path becomes its last name, so no folders are recorded."""

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
    """Yield a sentence for each link that did not read what the link before it wrote."""
    if chain and chain[0].step not in _FIRST:
        yield f"the chain begins with {chain[0].step}, expected {' or '.join(_FIRST)}"
    for before, link in pairwise(chain):
        where = f"the chain is broken between {before.step} and {link.step}"
        if link.input_sha256 != before.weights_sha256:
            yield (
                f"{where}: {link.step} read weights with SHA-256 {link.input_sha256[:_SHOWN]}…, "
                f"but {before.step} wrote weights with {before.weights_sha256[:_SHOWN]}…"
            )
        if link.source_changed:
            yield f"{where}: {', '.join(link.source_changed)} changed in between"
