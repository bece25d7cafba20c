"""Checkpoints with mixout: a model, and the pretrained weights of its mixed layers."""

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from mixout_export.checkpoint.artifact import Hashes
from mixout_export.checkpoint.keys import is_anchor
from mixout_export.checkpoint.mixout_metadata import MixoutMetadata
from mixout_export.checkpoint.plain import PlainCheckpoint, collect
from mixout_export.errors import CheckpointError
from mixout_export.files.input_files import InputFiles
from mixout_export.files.layout import LAYOUT
from mixout_export.files.streams import quick_digest
from mixout_export.files.tensors import TensorEntry, digest_files
from mixout_export.files.weight_files import refuse_unlisted
from mixout_export.tasks import Task, known_task


class MixoutCheckpoint(PlainCheckpoint):
    """A checkpoint that also holds the pretrained weights of its mixed layers.

    As a model it is the plain model that it computes in evaluation.

    Attributes:
        metadata: The content of `mixout_config.json`, or of the entry that replaces it.
        native: Whether the metadata come from `mixout_config.json`. Folders that another trainer
            saved have an entry in `config.json` instead.
        recorded: Whether p is known. If not, the folder has anchors, but nothing records how they
            were used, and p is the default.
    """

    kind = "mixout"
    title = "mixout checkpoint"

    def __init__(
        self,
        files: InputFiles,
        metadata: MixoutMetadata,
        *,
        native: bool,
        recorded: bool = True,
    ) -> None:
        super().__init__(files)
        self.metadata: MixoutMetadata = metadata
        self.native = native
        self.recorded = recorded

    @cached_property
    def _all(self) -> dict[str, TensorEntry]:
        tensors = collect([*self.weight_paths, *self.pretrained_paths])
        for index in (self.weights.index, self.pretrained.index):
            refuse_unlisted(index, tensors)
        return tensors

    @cached_property
    def tensors(self) -> Mapping[str, TensorEntry]:
        """The ordinary tensors by key, without the anchors."""
        return {key: entry for key, entry in self._all.items() if not is_anchor(key)}

    @cached_property
    def anchors(self) -> Mapping[str, TensorEntry]:
        """The pretrained values by key."""
        return {key: entry for key, entry in self._all.items() if is_anchor(key)}

    @property
    def task(self) -> Task | None:
        """The task of the checkpoint's head, None for a headless one."""
        name = self.metadata.task
        return super().task if name is None else known_task(name)

    def require_task(self) -> Task:
        """Return the task of the checkpoint's head, or raise `CheckpointError` if it has none."""
        if self.task is None:
            raise CheckpointError(
                f"{self.path}: is a mixout checkpoint without a head, expected one with a head; "
                "load it with load_mixout, and train it in your own loop"
            )
        return self.task

    def collapsed_config(self) -> dict[str, Any]:
        """Return `config.json` without mixout and without the changes that `prepare` made."""
        config = super().collapsed_config()
        for change in self.metadata.config_changes:
            if config.get(change.key) != change.after:
                continue  # somebody has set another value since, which is kept
            if change.present:
                config[change.key] = change.before
            else:
                config.pop(change.key, None)
        return config

    def check_anchors(self, *, quickly: bool = False) -> None:
        """Compare the anchors with the SHA-256 that `prepare` recorded."""
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

    def damage(self) -> tuple[str, ...]:
        """Return what is wrong with the anchors, as a sentence."""
        try:
            self.check_anchors()
        except CheckpointError as error:
            return (str(error),)
        return ()

    def hashes(self, *, with_cache: bool) -> Hashes:
        """Return no hash: graphs record those of the files that `collapse` writes."""
        return Hashes()

    def part_files(self) -> Iterator[Path]:
        """Yield the configuration and the files of the weights and anchors."""
        yield from super().part_files()
        yield from self.pretrained_paths
