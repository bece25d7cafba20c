"""The metadata of mixout in folders that other tools saved from a model with mixout.

Such a folder has its anchors among the ordinary tensors and no `mixout_config.json`.
`inject_mixout` leaves a record in the model's configuration. The record may be missing, and it has
the modules' names in the model that it was written for.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mixout_export.checkpoint.mixout_metadata import MixedModule, MixoutMetadata, parse_metadata
from mixout_export.config import MixoutConfig
from mixout_export.errors import CheckpointError, MixoutError
from mixout_export.files.layout import LAYOUT

_ANCHOR = f"{LAYOUT.pretrained_prefix}weight"


def anchored_modules(keys: Collection[str]) -> tuple[MixedModule, ...]:
    """Return the modules whose anchor is among the keys of a folder's tensors."""
    found = []
    for key in keys:
        module, _, name = key.rpartition(".")
        if module and name == _ANCHOR:
            found.append(MixedModule(module, "", f"{module}.weight", key))
    return tuple(found)


def metadata_of_config(
    record: Mapping[str, Any], keys: Collection[str], origin: Path
) -> MixoutMetadata:
    """Build the metadata from what `inject_mixout` left in the model's configuration.

    If the folder holds none of the anchors that the record names, but others, it was saved from a
    model inside or around the recorded one. Then the modules are those of the anchors it holds.

    Args:
        record: The entry of `config.json`.
        keys: Keys of the folder's tensors.
        origin: The configuration's file, for error messages.

    Raises:
        CheckpointError: The record is malformed.
    """
    if "config_changes" in record or "base" in record:
        metadata = parse_metadata(record, origin)
    else:
        metadata = _parse_short(record, origin)
    held = anchored_modules(keys)
    if held and not any(module.pretrained_key in keys for module in metadata.modules):
        return replace(metadata, modules=held)
    return metadata


def _parse_short(record: Mapping[str, Any], origin: Path) -> MixoutMetadata:
    try:
        names = list(record["modules"])
        config = MixoutConfig(
            record["p"],
            record["granularity"],
            record.get("target_modules", "all-linear"),
            record.get("exclude_modules"),
        )
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{origin}: the entry 'mixout' is malformed ({error!r})") from error
    except MixoutError as error:
        raise CheckpointError(f"{origin}: the entry 'mixout' is malformed: {error}") from error
    keys = record.get("keys", {})  # for tensors that transformers stores under other names
    modules = tuple(
        MixedModule(name, "", keys.get(weight, weight), keys.get(anchor, anchor))
        for name in names
        for weight, anchor in [(f"{name}.weight", f"{name}.{_ANCHOR}")]
    )
    return MixoutMetadata(config=config, modules=modules)
