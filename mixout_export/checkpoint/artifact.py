"""What a folder holds, found out from file headers alone, without PyTorch."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from mixout_export.checkpoint.mixout_metadata import (
    MixedModule,
    MixoutMetadata,
    parse_metadata,
)
from mixout_export.config import MixoutConfig
from mixout_export.errors import CheckpointError, MixoutError
from mixout_export.files.json_files import read_json
from mixout_export.files.layout import LAYOUT
from mixout_export.files.streams import quick_digest
from mixout_export.files.tensors import TensorEntry, digest_files, read_tensors
from mixout_export.files.weight_files import weight_files
from mixout_export.tasks import Task, known_task, task_of_config

Kind = Literal["huggingface", "mixout", "onnx"]


def is_anchor(key: str) -> bool:
    """Tell whether a tensor's key is that of a pretrained value."""
    return key.rpartition(".")[2].startswith(LAYOUT.pretrained_prefix)


def anchor_key(key: str) -> str:
    """Return the key of a parameter's pretrained value: `a.weight` → `a.pretrained_weight`."""
    module, _, name = key.rpartition(".")
    return f"{module}.{LAYOUT.pretrained_prefix}{name}".lstrip(".")


def weight_key(key: str) -> str:
    """Return the key of the parameter an anchor belongs to, the inverse of `anchor_key`."""
    module, _, name = key.rpartition(".")
    return f"{module}.{name.removeprefix(LAYOUT.pretrained_prefix)}".lstrip(".")


def _collect(files: Iterable[Path]) -> dict[str, TensorEntry]:
    """Gather the tensors of several files; a key that two of them hold must be byte-equal."""
    tensors: dict[str, TensorEntry] = {}
    for file in files:
        for key, entry in read_tensors(file).items():
            earlier = tensors.setdefault(key, entry)
            if earlier is not entry and not entry.same_bytes(earlier):
                raise CheckpointError(
                    f"{file}: {key!r} differs from the one in {earlier.file.name}; "
                    "it is unclear which is right, so remove one of them"
                )
    return tensors


def _refuse_unlisted(path: Path, index: str, tensors: Mapping[str, TensorEntry]) -> None:
    """Refuse an index that lists a tensor which none of its files holds."""
    index_path = path / index
    if not index_path.exists():
        return
    for key, name in read_json(index_path)["weight_map"].items():
        if key not in tensors:
            raise CheckpointError(
                f"{index_path}: lists {key!r} in {name}, which does not hold it; restore the files"
            )


@dataclass(frozen=True)
class Artifact:
    """A checkpoint folder.

    Attributes:
        path: Where it lies.
        kind: "huggingface" (plain), "mixout" or "onnx".
        config: The parsed `config.json`; empty for a lone ONNX file.
        metadata: What the checkpoint says of its mixout; None unless `kind` is "mixout".
        native: Whether the metadata come from `mixout_config.json`, rather than from a folder
            that another trainer saved.
    """

    path: Path
    kind: Kind
    config: dict[str, Any]
    metadata: MixoutMetadata | None = None
    native: bool = False

    @cached_property
    def weight_paths(self) -> list[Path]:
        """The files of the ordinary tensors."""
        return weight_files(self.path, LAYOUT.weights, LAYOUT.weights_index)

    @cached_property
    def pretrained_paths(self) -> list[Path]:
        """The files of the anchors, empty where they lie among the ordinary tensors."""
        return weight_files(self.path, LAYOUT.pretrained, LAYOUT.pretrained_index)

    @cached_property
    def _all(self) -> dict[str, TensorEntry]:
        mixed = self.kind == "mixout"
        tensors = _collect([*self.weight_paths, *(self.pretrained_paths if mixed else [])])
        _refuse_unlisted(self.path, LAYOUT.weights_index, tensors)
        if mixed:
            _refuse_unlisted(self.path, LAYOUT.pretrained_index, tensors)
        return tensors

    @cached_property
    def tensors(self) -> dict[str, TensorEntry]:
        """The ordinary tensors by key, without the anchors of a mixout checkpoint."""
        if self.kind != "mixout":
            return self._all
        return {key: entry for key, entry in self._all.items() if not is_anchor(key)}

    @cached_property
    def anchors(self) -> dict[str, TensorEntry]:
        """The pretrained values by key, empty unless `kind` is "mixout"."""
        if self.kind != "mixout":
            return {}
        return {key: entry for key, entry in self._all.items() if is_anchor(key)}

    @property
    def task(self) -> Task | None:
        """The task of the checkpoint's head, None for a headless one."""
        if self.metadata is not None and self.metadata.task is not None:
            return known_task(self.metadata.task)
        return task_of_config(self.config)

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Label names in the order of the head's outputs, None where the task has none."""
        if self.task is None or not self.task.has_labels:
            return None
        names = self.config.get("id2label")
        if not isinstance(names, dict):  # transformers leaves its own default, two labels, out
            count = self.config.get("num_labels", 2)
            return tuple(f"LABEL_{index}" for index in range(count))
        return tuple(str(names[key]) for key in sorted(names, key=int))

    def weights_sha256(self) -> str:
        """Return the SHA-256 of the ordinary weight files."""
        return digest_files(self.weight_paths)

    def check_anchors(self, *, quickly: bool = False) -> None:
        """Compare the anchors with the SHA-256 that `prepare` recorded.

        Args:
            quickly: Whether a hash that shows damage, but not malice, is enough, where there is
                one: right where the anchors are not used.

        Raises:
            CheckpointError: They differ, or a mixed module's anchor is missing.
        """
        if self.metadata is None:
            return
        for module in self.metadata.modules:
            if module.pretrained_key not in self.anchors:
                raise CheckpointError(
                    f"{self.path}: the pretrained weight {module.pretrained_key!r} is missing; "
                    "restore the folder's pretrained weights or run prepare again"
                )
        expected = self.metadata.pretrained_sha256
        foreign = not self.native and not self.pretrained_paths  # anchors in the ordinary files
        if expected is None or foreign:
            return
        quick = self.metadata.pretrained_xxh3 if quickly else None
        if quick is not None and quick_digest(self.pretrained_paths) == quick:
            return
        found = digest_files(self.pretrained_paths) if self.pretrained_paths else "none"
        if found != expected:
            raise CheckpointError(
                f"{self.path / LAYOUT.pretrained}: has SHA-256 {found}, expected {expected} as "
                f"recorded in {LAYOUT.mixout_config}; the pretrained weights were changed, "
                "restore them or run prepare again"
            )

    def collapsed_config(self) -> dict[str, Any]:
        """Return `config.json` as a plain checkpoint has it, with what `prepare` changed undone."""
        config = {key: value for key, value in self.config.items() if key != "mixout"}
        for change in self.metadata.config_changes if self.metadata is not None else ():
            if config.get(change.key) != change.after:
                continue  # somebody set another value since: theirs stays
            if change.present:
                config[change.key] = change.before
            else:
                config.pop(change.key, None)
        return config


def _metadata_of_config(record: Mapping[str, Any], origin: Path) -> MixoutMetadata:
    """Build the metadata from what `inject_mixout` left in the model's configuration."""
    if "config_changes" in record or "base" in record:
        return parse_metadata(record, origin)
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
    keys = record.get("keys", {})  # of tensors that transformers stores under other names
    modules = tuple(
        MixedModule(name, "", keys.get(weight, weight), keys.get(anchor, anchor))
        for name in names
        for weight, anchor in [(f"{name}.weight", f"{name}.{LAYOUT.pretrained_prefix}weight")]
    )
    return MixoutMetadata(config=config, modules=modules)


def _open_onnx(path: Path) -> Artifact:
    folder = path if path.is_dir() else path.parent
    config_path = folder / LAYOUT.config
    config = read_json(config_path) if config_path.exists() else {}
    return Artifact(path, "onnx", config)


def other_kind(path: Path) -> str:
    """Say what a folder is that is no checkpoint, as the end of a sentence; "" if unknown."""
    if (path / LAYOUT.onnx).exists():
        return "; it is an ONNX folder, so give the checkpoint that it was exported from"
    try:
        step = read_json(path / LAYOUT.manifest).get("step")
    except CheckpointError:
        return ""
    return "; it is a bundle, so give the folder that it was made from" if step == "bundle" else ""


def open_artifact(path: Path) -> Artifact:
    """Find out what a path holds.

    Args:
        path: A mixout checkpoint, a Hugging Face folder, an ONNX folder or an ONNX file.

    Returns:
        The folder; its tensors' headers are read on first use.

    Raises:
        CheckpointError: There is no such folder, it holds no checkpoint, or a file is malformed.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: no such folder; check the path")
    if path.is_file():
        if path.suffix == ".onnx":
            return _open_onnx(path)
        raise CheckpointError(f"{path}: is a file, expected a checkpoint folder or an .onnx file")
    has_weights = any((path / n).exists() for n in (LAYOUT.weights, LAYOUT.weights_index))
    if (path / LAYOUT.onnx).exists() and not has_weights:
        return _open_onnx(path)
    config_path = path / LAYOUT.config
    if not config_path.exists():
        raise CheckpointError(
            f"{path}: holds no {LAYOUT.config}, expected a Hugging Face checkpoint folder"
            f"{other_kind(path)}"
        )
    config = read_json(config_path)
    metadata_path = path / LAYOUT.mixout_config
    if metadata_path.exists():
        metadata = parse_metadata(read_json(metadata_path), metadata_path)
        return Artifact(path, "mixout", config, metadata, native=True)
    record = config.get("mixout")
    if isinstance(record, dict):
        return Artifact(path, "mixout", config, _metadata_of_config(record, config_path))
    return Artifact(path, "huggingface", config)


def require_metadata(folder: Artifact) -> MixoutMetadata:
    """Return the folder's metadata.

    Raises:
        CheckpointError: It is not a mixout checkpoint.
    """
    if folder.metadata is None:
        raise CheckpointError(
            f"{folder.path}: is a plain checkpoint, expected a mixout checkpoint; run prepare on it"
        )
    return folder.metadata


def require_task(folder: Artifact) -> Task:
    """Return the task of the folder's head.

    Raises:
        CheckpointError: It has no head.
    """
    if folder.task is None:
        raise CheckpointError(
            f"{folder.path}: has no head, expected one; run prepare on it with --task"
        )
    return folder.task


def require_weights(folder: Artifact) -> Artifact:
    """Return the folder if it has safetensors weights.

    Raises:
        CheckpointError: It has none; the message says whether it has a pickle instead.
    """
    if folder.weight_paths:
        return folder
    if any((folder.path / n).exists() for n in (LAYOUT.pickle_weights, LAYOUT.pickle_index)):
        raise CheckpointError(
            f"{folder.path}: has its weights only as a pickle ({LAYOUT.pickle_weights}), which can "
            "run code when it is read; convert it, or run prepare with --allow-pickle"
        )
    raise CheckpointError(
        f"{folder.path}: holds no {LAYOUT.weights}, expected the weights there"
        f"{other_kind(folder.path)}"
    )
