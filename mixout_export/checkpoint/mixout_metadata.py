"""`mixout_config.json`: how a mixout checkpoint was made and which layers are mixed."""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
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
class Reinitialized:
    """What `train --reinit-layers` has initialized at random, so that it is no longer pretrained.

    Attributes:
        modules: Names of the layers, and of the pooler.
        keys: Keys of their parameters.
    """

    modules: tuple[str, ...] = ()
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
        reinitialized: What `train` has initialized at random besides the head.
        tool_version: Version that wrote the file.
        newer: The object as a newer version wrote it; {} if this version knows all entries. The
            others are written back unchanged.
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
    reinitialized: Reinitialized = Reinitialized()
    tool_version: str = __version__
    newer: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object that goes to disk."""
        plain: dict[str, Any] = {
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
        if self.reinitialized.keys:
            plain["reinitialized"] = {k: list(v) for k, v in vars(self.reinitialized).items()}
        for _, known, read in _objects(plain, self.newer):
            known |= {name: value for name, value in read.items() if name not in known}
        return plain

    def write(self, path: Path) -> None:
        """Write the file."""
        path.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    @property
    def fresh_keys(self) -> frozenset[str]:
        """Keys of all parameters that did not come from the base, or do so no longer."""
        return frozenset((*self.head.keys, *self.reinitialized.keys))

    def with_reinitialized(self, modules: Iterable[str], keys: Iterable[str]) -> "MixoutMetadata":
        """Return the mixout metadata after modules were initialized at random.

        Those of them that were mixed are not mixed any more.
        """
        before, fresh = self.reinitialized, set(keys)
        return replace(
            self,
            modules=tuple(m for m in self.modules if m.weight_key not in fresh),
            reinitialized=Reinitialized(
                tuple(dict.fromkeys((*before.modules, *modules))),
                tuple(sorted({*before.keys, *fresh})),
            ),
        )

    def with_p(self, p: float) -> "MixoutMetadata":
        """Return the mixout metadata with another mix probability."""
        return replace(self, config=replace(self.config, p=p))


#: Lists of objects in the file, each with the entry that identifies an object.
_LISTS = {"modules": "name", "config_changes": "key"}


def _objects(
    plain: dict[str, Any], read: Mapping[str, Any]
) -> Iterator[tuple[str, dict[str, Any], Mapping[str, Any]]]:
    """Yield each object of `plain` with what was read for it, after the prefix of its entries."""
    yield "", plain, read
    for name in ("base", "head"):
        yield f"{name}.", plain[name], read.get(name) or {}
    for name, identity in _LISTS.items():
        items = {item[identity]: item for item in read.get(name) or ()}
        for item in plain[name]:
            yield f"{name}.", item, items.get(item[identity], {})


def _record(kind: Any, data: Mapping[str, Any]) -> Any:
    """Build a record from the entries that its class knows."""
    names = {each.name for each in fields(kind)}
    return kind(**{name: value for name, value in data.items() if name in names})


def _parse(data: Mapping[str, Any], origin: Path) -> MixoutMetadata:
    labels, head = data.get("labels"), data.get("head") or {}
    again = {name: tuple(found) for name, found in (data.get("reinitialized") or {}).items()}
    metadata = MixoutMetadata(
        config=MixoutConfig(
            p=data["p"],
            granularity=data["granularity"],
            target_modules=data.get("target_modules", "all-linear"),
            exclude_modules=data.get("exclude_modules"),
        ),
        modules=tuple(_record(MixedModule, module) for module in data["modules"]),
        base=_record(Base, data.get("base") or {}),
        pretrained_sha256=data.get("pretrained_sha256"),
        pretrained_xxh3=data.get("pretrained_xxh3"),
        task=data.get("task"),
        labels=None if labels is None else tuple(labels),
        head=_record(Head, {**head, "keys": tuple(head.get("keys", ()))}),
        dropout=data.get("dropout"),
        config_changes=tuple(_record(ConfigChange, c) for c in data.get("config_changes") or ()),
        seed=data.get("seed"),
        reinitialized=_record(Reinitialized, again),
        tool_version=data.get("tool_version", __version__),
    )
    unknown = {
        prefix + name
        for prefix, known, read in _objects(metadata.to_dict(), data)
        for name in read.keys() - known.keys()
    }
    if not unknown:
        return metadata
    logger.warning(
        "%s: keeps the unknown entries %s, written by version %s",
        origin,
        ", ".join(sorted(unknown)),
        data.get("tool_version"),
    )
    return replace(metadata, newer=data)


def parse_metadata(data: Mapping[str, Any], origin: Path) -> MixoutMetadata:
    """Parse the mixout metadata. Unknown entries are kept and reported in a warning.

    An unknown format version, or an entry that is missing or malformed, raises `CheckpointError`.
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
