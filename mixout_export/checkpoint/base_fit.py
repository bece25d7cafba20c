"""What a model takes over from its base, and what it does not.

transformers loads what fits, initializes the rest at random, and only logs that. Here nothing of
the base is left out, or used in another way than before, without an error, a warning or a note.
"""

import copy
import logging
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import transformers
from torch import Size
from transformers import PreTrainedModel

from mixout_export.checkpoint.plain import PlainCheckpoint
from mixout_export.errors import ArgumentError, CheckpointError
from mixout_export.files.layout import LAYOUT
from mixout_export.files.tensors import DTYPE_SIZES, FLOATING
from mixout_export.quiet import quiet_libraries
from mixout_export.tasks import Task, known_task, labels_of, own_task_name

logger = logging.getLogger(__name__)

#: Names that transformers gives to labels without names.
_GENERIC_LABEL = re.compile(r"LABEL_(\d+)")


#: What a wrapper puts before the names of a model's weights, and the wrapper.
_WRAPPERS = {"module.": "DistributedDataParallel", "_orig_mod.": "torch.compile"}


@dataclass(frozen=True)
class BaseFit:
    """How the tensors of a base fit the model of a task.

    Attributes:
        folder: The base.
        model: The model that transformers loaded from it.
        task: The model's task.
        asked: Whether the user named the task. Otherwise it is that of the base's own head.
        missing: State-dict keys that the base lacks.
        mismatched: State-dict keys whose tensor in the base has another shape.
        unexpected: Keys of the base that the model has no place for.
    """

    folder: PlainCheckpoint
    model: PreTrainedModel
    task: Task
    asked: bool
    missing: Sequence[str]
    mismatched: Sequence[str]
    unexpected: Sequence[str]

    @classmethod
    def of(
        cls,
        folder: PlainCheckpoint,
        model: PreTrainedModel,
        task: Task,
        info: Mapping[str, Any],
        *,
        asked: bool,
    ) -> "BaseFit":
        """Build it from the loading info of transformers."""
        mismatched: Iterable[tuple[str, Size, Size]] = info["mismatched_keys"]
        return cls(
            folder,
            model,
            task,
            asked,
            sorted(info["missing_keys"]),
            sorted(key for key, *_ in mismatched),
            sorted(info["unexpected_keys"]),
        )

    @property
    def fresh(self) -> tuple[str, ...]:
        """State-dict keys whose value did not come from the base."""
        return tuple(sorted({*self.missing, *self.mismatched}))

    def check(self) -> tuple[str, ...]:
        """Refuse what cannot be right, warn of what is rarely right, and return the rest as notes.

        Raises:
            ArgumentError: The label names contradict those of the trained head.
            CheckpointError: The base has tensors under names that nothing reads, or lacks some.
        """
        self._refuse_foreign()
        self._refuse_nan()
        self._refuse_lost()
        self._refuse_headless()
        self._check_rounding()
        notes = [*self._check_body(), *self._check_unused()]
        if self.own_task is not None:
            self._check_head(self.own_task)
        return tuple(notes)

    @cached_property
    def own_task(self) -> str | None:
        """Name of the task of the base's own head; None without one."""
        return own_task_name(self.folder.config)

    @cached_property
    def _own_keys(self) -> Collection[str] | None:
        """Keys that the base's own architecture reads, without its prefix; None if unknown."""
        names = self.folder.config.get("architectures") or [""]
        own = getattr(transformers, str(names[0]), None)
        if not (isinstance(own, type) and issubclass(own, PreTrainedModel)):
            return None
        with quiet_libraries(), torch.device("meta"):
            try:
                model = own(copy.deepcopy(self.model.config))
            except Exception:  # an architecture that these settings do not fit raises anything
                return None
        return {self._in_body(key) for key in model.state_dict()}

    def _in_body(self, key: str) -> str:
        return key.removeprefix(f"{self.model.base_model_prefix}.")

    def _is_body(self, key: str) -> bool:
        return key.startswith(f"{self.model.base_model_prefix}.")

    def _refuse_foreign(self) -> None:
        """Refuse weights of which nothing fits the model: training would start from noise."""
        names = {name for name, _ in self.model.named_parameters()}
        if names <= set(self.fresh):
            wrapper = next(
                (w for w in _WRAPPERS if all(k.startswith(w) for k in self.unexpected)), ""
            )
            remedy = f"check that {LAYOUT.config} belongs to these weights"
            if wrapper and self.unexpected:
                remedy = (
                    f"all their names begin with {wrapper!r}, which {_WRAPPERS[wrapper]} adds, so "
                    "save the model inside the wrapper"
                )
            model = type(self.model).__name__
            raise CheckpointError(f"{self.folder.path}: none of its weights fits {model}; {remedy}")

    def _refuse_nan(self) -> None:
        """Refuse weights that are not numbers: a run that diverged was saved."""
        for name, parameter in self.model.named_parameters():
            if torch.isnan(parameter).any():
                raise CheckpointError(
                    f"{self.folder.path}: {name!r} has values that are not numbers (NaN); take a "
                    "checkpoint from before the run diverged"
                )

    def _refuse_lost(self) -> None:
        """Refuse trained weights that another tool has stored under longer names."""
        for key in self.missing:
            if lost := [other for other in self.unexpected if _contains(other, self._in_body(key))]:
                raise CheckpointError(
                    f"{self.folder.path}: has no {key!r}; instead it has {_listed(lost)}, which "
                    "nothing reads. Another tool has probably renamed the weights. Restore the "
                    "names with that tool and save again (PEFT: model.merge_and_unload()), or "
                    "delete those tensors if you do not need them"
                )

    def _refuse_headless(self) -> None:
        """Refuse, or warn of, a checkpoint that lacks the head that its configuration names."""
        head = [key for key in self.missing if not self._is_body(key)]
        if not head or self.own_task != self.task.name or not self._has_own_head(head):
            return
        said = (
            f"{self.folder.path}: {LAYOUT.config} names {self.folder.architecture}, but the "
            f"weights lack its head, {_listed(head)}"
        )
        if not self.asked:
            raise CheckpointError(
                f"{said}; restore the head, or give --task {self.task.name} to begin with a fresh "
                "one"
            )
        logger.warning("%s, so the head is new", said)

    def _has_own_head(self, head: Sequence[str]) -> bool:
        """Tell whether the base's own architecture has these parameters of the head."""
        own = self._own_keys
        return own is None or any(key in own for key in head)

    def _check_body(self) -> Iterable[str]:
        """Refuse a body with gaps. Warn, or return a note, of parts that are new as a whole."""
        missing = [key for key in self.missing if self._is_body(key)]
        if not missing:
            return
        own = self._own_keys
        lost = [key for key in missing if own is None or self._in_body(key) in own]
        present = {self._part(key) for key in self.model.state_dict() if key not in set(self.fresh)}
        gaps = [key for key in lost if self._part(key) in present]
        if gaps:
            raise CheckpointError(
                f"{self.folder.path}: lacks {len(gaps)} tensors in the middle of the model, "
                f"{_listed(gaps)}; restore the weights. If random values are right there, load "
                "the folder with transformers and save it"
            )
        what = f"{_listed(missing)} are missing in the base, so they are new"
        if lost:
            logger.warning("%s: %s", self.folder.path, what)
        else:
            yield f"{what}; {self.folder.architecture} has no such parameters"

    def _part(self, key: str) -> str:
        """Return the part of the body to which a parameter belongs, such as `encoder`."""
        return self._in_body(key).partition(".")[0] if self._is_body(key) else ""

    def _check_rounding(self) -> None:
        """Warn if `config.json` names a dtype that is narrower than that of the weights."""
        found = {e.dtype for e in self.folder.tensors.values() if e.dtype in FLOATING}
        dtype = self.model.dtype
        if found and min(DTYPE_SIZES[name] for name in found) > dtype.itemsize:
            logger.warning(
                "%s: names the dtype %s, and the weights are %s, so they are rounded; to keep "
                "the exact weights, correct the dtype in this file",
                self.folder.path / LAYOUT.config,
                str(dtype).removeprefix("torch."),
                " and ".join(sorted(found)),
            )

    def _check_unused(self) -> Iterable[str]:
        """Return a note on the unused head of another task; warn of what nothing reads."""
        own = (self._own_keys if self.unexpected else None) or ()
        known = [key for key in self.unexpected if self._in_body(key) in own]
        if known:
            head = f"the head of {self.folder.architecture}"
            yield f"{head} is not used: {_listed(known)}"
        if unknown := [key for key in self.unexpected if key not in known]:
            names = dict.fromkeys((type(self.model).__name__, self.folder.architecture))
            logger.warning(
                "%s: %s belong to no part of %s and are not used",
                self.folder.path,
                _listed(unknown),
                " or ".join(name for name in names if name),
            )

    def _check_head(self, own_task: str) -> None:
        """Warn of a trained head that is replaced, or that gets another meaning."""
        head = [key for key in self.model.state_dict() if not self._is_body(key)]
        kept = [key for key in head if key not in self.fresh]
        before = labels_of(self.folder.config, known_task(own_task))
        after = labels_of(self.model.config.to_dict(), self.task)
        replaced = [key for key in self.mismatched if not self._is_body(key)]
        if replaced:
            logger.warning(
                "%s: its trained head for %s%s is replaced by a new one: %s",
                self.folder.path,
                own_task,
                "" if before is None else f" ({', '.join(before)})",
                _listed(replaced),
            )
        if not kept or replaced:
            return
        if own_task != self.task.name:
            logger.warning(
                "%s: its head was trained for %s, and training for %s starts from this head: %s",
                self.folder.path,
                own_task,
                self.task.name,
                _listed(kept),
            )
        if before is not None and after is not None and len(before) == len(after):
            _compare_ids(self.folder)
            _compare_labels(self.folder, before, after)


def _contains(longer: str, key: str) -> bool:
    """Tell whether all parts of a key occur in a longer one, in the same order."""
    parts = iter(longer.split("."))
    return longer != key and all(part in parts for part in key.split("."))


def _listed(keys: Sequence[str]) -> str:
    """Name up to three keys, and how many there are if there are more."""
    shown = ", ".join(keys[:3])
    return shown if len(keys) <= 3 else f"{shown}, … ({len(keys)} tensors)"


def _plain(label: str) -> str:
    """Return what identifies a label whatever its spelling; LABEL_1 is the same as 1."""
    generic = _GENERIC_LABEL.fullmatch(label)
    return generic[1] if generic else re.sub(r"[\W_]+", "", label.casefold()) or label


def _compare_ids(folder: PlainCheckpoint) -> None:
    """Warn if `config.json` numbers a label in two ways."""
    names, ids = folder.config.get("id2label"), folder.config.get("label2id")
    if not isinstance(names, dict) or not isinstance(ids, dict):
        return
    for number, name in names.items():
        if str(ids.get(name, number)) != str(number):
            logger.warning(
                "%s: id2label calls output %s %r, but label2id gives this label to output %s. The "
                "names of id2label are used. If label2id is right, correct id2label",
                folder.path / LAYOUT.config,
                number,
                name,
                ids[name],
            )
            return


def _renamed(before: Sequence[str], after: Sequence[str]) -> list[str]:
    """Return which outputs of a trained head get another name."""
    return [
        f"{old} -> {new}"
        for old, new in zip(before, after, strict=True)
        if _plain(old) != _plain(new) and not _GENERIC_LABEL.fullmatch(old)
    ]


def _in_places(before: Sequence[str], after: Sequence[str]) -> str:
    """Return the labels with each known one at its output, and which outputs are then renamed."""
    given = {_plain(name): name for name in after}
    new = iter(name for name in after if _plain(name) not in set(map(_plain, before)))
    names = [given.get(_plain(old)) or next(new) for old in before]
    renamed = _renamed(before, names)
    also = f", which renames {', '.join(renamed)}" if renamed else ""
    return f"--labels {','.join(names)}{also}"


def _compare_labels(folder: PlainCheckpoint, before: Sequence[str], after: Sequence[str]) -> None:
    """Refuse names that a trained head gives to other outputs, and warn of new names."""
    places = {_plain(name): place for place, name in enumerate(before)}
    for place, name in enumerate(after):
        own = places.get(_plain(name), place)
        if own != place:
            raise ArgumentError(
                f"labels: output {own} of the trained head of {folder.path} means {before[own]!r}, "
                f"and --labels gives {name!r} to output {place}; leave --labels out, or give "
                f"{_in_places(before, after)}"
            )
    renamed = _renamed(before, after)
    if renamed:
        logger.warning(
            "%s: its trained head is kept, and its outputs are renamed: %s",
            folder.path,
            ", ".join(renamed),
        )
