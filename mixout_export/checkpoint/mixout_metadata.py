"""`mixout_config.json`: how a mixout checkpoint was made and which layers are mixed."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from mixout_export.config import MixoutConfig
from mixout_export.errors import CheckpointError, MixoutError
from mixout_export.version import __version__

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1


@dataclass(frozen=True)
class MixedModule:
    """One mixed module and its keys on disk.

    Attributes:
        name: The module's name in the model.
        kind: "Linear", "Conv1D" or "Embedding".
        weight_key: Key of w in `model.safetensors`.
        pretrained_key: Key of u in `pretrained.safetensors`.
    """

    name: str
    kind: str
    weight_key: str
    pretrained_key: str


@dataclass(frozen=True)
class Base:
    """The pretrained checkpoint that everything came from.

    Attributes:
        name: Hub id, or the folder's name.
        revision: Commit of the hub, None for a folder.
        sha256: SHA-256 of its weight files.
    """

    name: str | None = None
    revision: str | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Head:
    """How the fresh head is treated.

    Attributes:
        treatment: "dropout", "mixout" or "none".
        dropout: Drop probability before the head, in [0, 1).
        keys: Keys of the parameters that did not come from the base.
    """

    treatment: str = "none"
    dropout: float = 0.0
    keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class ConfigChange:
    """One entry of `config.json` that `prepare` changed.

    Attributes:
        key: Its name.
        before: Its value before. Meaningless if `present` is False.
        after: Its value while training.
        present: Whether the entry was there before.
    """

    key: str
    before: Any
    after: Any
    present: bool = True


@dataclass(frozen=True)
class MixoutMetadata:
    """The content of `mixout_config.json`.

    Attributes:
        config: p, granularity and target patterns.
        modules: The mixed modules.
        base: The pretrained checkpoint.
        pretrained_sha256: SHA-256 of the anchors' file or files; None if unknown.
        pretrained_xxh3: XXH3-64 of their bytes, which shows damage where nothing else reads them;
            None if unknown.
        task: Name of the task.
        labels: Label names in the order of the head's outputs, None where the task has none.
        head: How the head is treated.
        dropout: Drop probability in the body, in [0, 1); None if it was never set.
        config_changes: What `prepare` changed in `config.json`.
        seed: Seed of the fresh head.
        tool_version: Version that wrote the file.
        unknown: Entries of a newer version, which are written back unchanged.
    """

    config: MixoutConfig
    modules: tuple[MixedModule, ...]
    base: Base = Base()
    pretrained_sha256: str | None = None
    pretrained_xxh3: str | None = None
    task: str | None = None
    labels: tuple[str, ...] | None = None
    head: Head = Head()
    dropout: float | None = None
    config_changes: tuple[ConfigChange, ...] = ()
    seed: int | None = None
    tool_version: str = __version__
    unknown: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object that goes to disk."""
        plain = {
            "format_version": FORMAT_VERSION,
            "tool_version": self.tool_version,
            **self.config.to_dict(),
            "base": vars(self.base).copy(),
            "pretrained_sha256": self.pretrained_sha256,
            "pretrained_xxh3": self.pretrained_xxh3,
            "task": self.task,
            "labels": None if self.labels is None else list(self.labels),
            "head": {**vars(self.head), "keys": list(self.head.keys)},
            "dropout": self.dropout,
            "config_changes": [vars(change).copy() for change in self.config_changes],
            "seed": self.seed,
            "modules": [vars(module).copy() for module in self.modules],
        }
        return _merged(plain, self.unknown)

    def write(self, path: Path) -> None:
        """Write the file."""
        path.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    def with_p(self, p: float) -> "MixoutMetadata":
        """Return the mixout metadata with another mix probability."""
        return replace(self, config=replace(self.config, p=p))


def _merged(plain: dict[str, Any], unknown: Mapping[str, Any]) -> dict[str, Any]:
    """Return `plain` with the entries of `unknown`, object by object."""
    merged = dict(plain)
    for key, value in unknown.items():
        inner = merged.get(key)
        if isinstance(inner, dict):
            merged[key] = _merged(inner, value)
        elif key in _LISTS:
            name = _LISTS[key]
            merged[key] = [_merged(item, value.get(item[name], {})) for item in inner or ()]
        else:
            merged[key] = value
    return merged


def _split(record: type, data: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split an object into the entries that a record class knows and the others."""
    names = {f.name for f in fields(record)}
    known = {key: value for key, value in data.items() if key in names}
    return known, {key: value for key, value in data.items() if key not in names}


#: Lists of objects in the file, each with the entry that identifies an object.
_LISTS = {"modules": "name", "config_changes": "key"}


def _split_list(
    record: type, data: Sequence[Mapping[str, Any]], name: str
) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """Split each object of a list; return the unknown entries by the object's name."""
    split = [_split(record, item) for item in data]
    return [known for known, _ in split], {known[name]: extra for known, extra in split if extra}


def _names(unknown: Mapping[str, Any]) -> str:
    """List unknown entries. Those of inner objects are written `outer.inner`."""
    names = set()
    for key, value in unknown.items():
        if key in ("base", "head"):
            names |= {f"{key}.{inner}" for inner in value}
        elif key in _LISTS:
            names |= {f"{key}.{inner}" for item in value.values() for inner in item}
        else:
            names.add(key)
    return ", ".join(sorted(names))


_KNOWN = {
    "format_version",
    "tool_version",
    "p",
    "granularity",
    "target_modules",
    "exclude_modules",
    *(f.name for f in fields(MixoutMetadata) if f.name not in ("config", "unknown")),
}


def _parse(data: Mapping[str, Any], origin: Path) -> MixoutMetadata:
    unknown = {key: value for key, value in data.items() if key not in _KNOWN}
    base, unknown_base = _split(Base, data.get("base") or {})
    head, unknown_head = _split(Head, data.get("head") or {})
    modules, unknown_modules = _split_list(MixedModule, data["modules"], "name")
    changes, unknown_changes = _split_list(ConfigChange, data.get("config_changes") or (), "key")
    nested = {
        "base": unknown_base,
        "head": unknown_head,
        "modules": unknown_modules,
        "config_changes": unknown_changes,
    }
    unknown |= {key: value for key, value in nested.items() if value}
    if unknown:
        logger.warning(
            "%s: keeps the unknown entries %s, written by version %s",
            origin,
            _names(unknown),
            data.get("tool_version"),
        )
    labels = data.get("labels")
    return MixoutMetadata(
        config=MixoutConfig(
            p=data["p"],
            granularity=data["granularity"],
            target_modules=data.get("target_modules", "all-linear"),
            exclude_modules=data.get("exclude_modules"),
        ),
        modules=tuple(MixedModule(**module) for module in modules),
        base=Base(**base),
        pretrained_sha256=data.get("pretrained_sha256"),
        pretrained_xxh3=data.get("pretrained_xxh3"),
        task=data.get("task"),
        labels=None if labels is None else tuple(labels),
        head=Head(**{**head, "keys": tuple(head.get("keys", ()))}),
        dropout=data.get("dropout"),
        config_changes=tuple(ConfigChange(**change) for change in changes),
        seed=data.get("seed"),
        tool_version=data.get("tool_version", __version__),
        unknown=unknown,
    )


def parse_metadata(data: Mapping[str, Any], origin: Path) -> MixoutMetadata:
    """Parse the mixout metadata. Unknown entries are kept and reported in a warning.

    Raises:
        CheckpointError: The format version is unknown, or an entry is missing or malformed.
    """
    version = data.get("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{origin}: has format version {version!r}, this version of mixout-export reads "
            f"{FORMAT_VERSION}; use the version that wrote it ({data.get('tool_version')})"
        )
    try:
        return _parse(data, origin)
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{origin}: is malformed ({error!r}); run prepare again") from error
    except MixoutError as error:
        raise CheckpointError(f"{origin}: is malformed: {error}") from error
