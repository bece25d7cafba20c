"""The pretrained checkpoint that everything starts from: where it lies, and loading it."""

import logging
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from mixout_export.checkpoint.base_fit import BaseFit
from mixout_export.checkpoint.demo_base import DEMO_BASE, demo_base
from mixout_export.checkpoint.folder import checkpoint_in
from mixout_export.checkpoint.loading import (
    LOADING_ERRORS,
    forget_weights_name,
    needs_remote_code,
    refuse_mismatched,
    settle_tied_flag,
)
from mixout_export.checkpoint.mixout_metadata import Base
from mixout_export.checkpoint.other_kinds import CHECK_PATH, other_kind, refuse_adapter
from mixout_export.checkpoint.padding import must_pad_right
from mixout_export.checkpoint.plain import PlainCheckpoint
from mixout_export.checkpoint.saved_by_others import anchored_modules
from mixout_export.checkpoint.vocabulary import (
    AddedRows,
    add_rows,
    highest_token,
    pad_beyond_rows,
    require_pad_row,
    require_rows,
    vocabulary_rows,
)
from mixout_export.errors import ArgumentError, CheckpointError
from mixout_export.files.input_files import InputFiles
from mixout_export.files.layout import LAYOUT, TOKENIZER_PATTERNS
from mixout_export.files.tensors import read_tensors
from mixout_export.files.weight_files import BaseDigest, find_pickles
from mixout_export.printable import first_line
from mixout_export.quiet import quiet_libraries
from mixout_export.tasks import Task, check_outputs, get_task, own_task_name

logger = logging.getLogger(__name__)

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_HEADING = re.compile(r"^# +(\S+) *$", re.MULTILINE)

#: Folder names that do not say which model is inside.
_GENERIC = re.compile(
    r"(model|base|checkpoint(-\d+)?|out(put)?|best|final|last|pretrained|[0-9a-f]{40})",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class BaseOptions:
    """How a base is read and which head it gets.

    Attributes:
        task: Task name; None takes what the checkpoint's own head says.
        labels: Number of labels, or their names; None keeps the checkpoint's own or the default.
        revision: Branch, tag or commit of a hub id.
        allow_pickle: Whether a pickle may be read (with `weights_only=True`).
        trust_remote_code: Whether code that comes with the checkpoint may run.
        seed: Seed of a fresh head.
        resize_embeddings: Whether the embedding gets a row for each id of the tokenizer.
        merge_adapter: Whether PEFT merges the base's adapter into its weights first.
    """

    task: str | None = None
    labels: int | Sequence[str] | None = None
    revision: str | None = None
    allow_pickle: bool = False
    trust_remote_code: bool = False
    seed: int = 0
    resize_embeddings: bool = False
    merge_adapter: bool = False


@dataclass(frozen=True)
class LoadedBase:
    """A base with the head of the task.

    Attributes:
        model: The model in evaluation mode.
        task: The task.
        labels: Label names, None where the task has none.
        fresh_keys: State-dict keys whose value did not come from the base.
        unused_keys: Tensors of the base that the model has no place for.
        notes: What else a user should know of how the base is used.
        base: Name, revision and SHA-256.
        folder: The checkpoint that was read.
        files: Its safetensors weights; empty if they are a pickle.
        resized: State-dict key → its rows, for each tensor with rows that the base does not have.
        pads_right: Whether the tokenizer pads on the left, where the model must not be padded.
    """

    model: PreTrainedModel
    task: Task
    labels: tuple[str, ...] | None
    fresh_keys: tuple[str, ...]
    unused_keys: tuple[str, ...]
    notes: tuple[str, ...]
    base: Base
    folder: PlainCheckpoint
    files: tuple[Path, ...]
    resized: Mapping[str, AddedRows] = field(default_factory=dict)
    pads_right: bool = False


def locate_base(base: str, *, revision: str | None) -> tuple[Path, str | None]:
    """Return the local folder of a base, and its commit if it came from the hub.

    A base is a folder, "demo-base", or a hub id, which is downloaded into the hub's cache.
    """
    path = Path(base)
    if path.is_dir():
        return path, None
    if base == DEMO_BASE:
        return demo_base(), None
    if path.exists():
        raise CheckpointError(
            f"{base}: is a file, expected a checkpoint folder or a name on the hub"
        )
    if not _HUB_ID.fullmatch(base):
        raise CheckpointError(f"{base}: no such folder; check the path")
    patterns = ["*.json", "*.safetensors", "*.py", "*.bin", LAYOUT.card, *TOKENIZER_PATTERNS]
    try:
        with quiet_libraries():
            local = snapshot_download(base, revision=revision, allow_patterns=patterns)
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{base}: no such folder, and the hub cannot be reached for a model of that name; "
            "check the path, or the network"
        ) from error
    except Exception as error:  # the hub client's errors share no base class with the network's
        raise CheckpointError(
            f"{base}: no such folder, and the hub did not provide it ({first_line(error)}); "
            "check the name and the network"
        ) from error
    return Path(local), Path(local).name


def _snapshot_name(path: Path) -> str | None:
    """Return "org/name" for a folder `models--org--name/snapshots/COMMIT` of the hub's cache."""
    owner = path.parent.parent.name
    if path.parent.name != "snapshots" or not owner.startswith("models--"):
        return None
    return owner.removeprefix("models--").replace("--", "/")


def _card_title(path: Path) -> str | None:
    """Return the first heading of the base's card if it is the name of a model."""
    try:
        text = (path / LAYOUT.card).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    found = _HEADING.search(text)
    is_name = found is not None and _HUB_ID.fullmatch(found[1]) and re.search(r"[-/\d]", found[1])
    return found[1] if found is not None and is_name else None


def base_name(folder: Path, config: Mapping[str, Any]) -> str:
    """Return the name of the model in a folder, never a path of this machine.

    The hub's cache and the title of the model's card are trusted first. The folder's own name comes
    next, unless it could be anybody's, such as `model`. The last resort is the name in
    `config.json`, which may be that of the model from which this one was finetuned.
    """
    path = folder.resolve()
    own = None if _GENERIC.fullmatch(path.name) else path.name
    configured = config.get("_name_or_path")
    if not (isinstance(configured, str) and _HUB_ID.fullmatch(configured)):
        configured = None
    return _snapshot_name(path) or _card_title(path) or own or configured or path.name or "model"


def _weight_paths(folder: PlainCheckpoint, *, allow_pickle: bool) -> tuple[list[Path], bool]:
    """Return the base's weight files and whether they are safetensors."""
    path, files = folder.path, folder.weight_paths
    refuse_adapter(path, bool(files))
    if files:
        for file in files:
            read_tensors(file)  # names what is truncated or malformed before anything is loaded
        if allow_pickle and find_pickles(path).files:
            logger.warning(
                "%s: its pickle was not read, because transformers prefers %s; delete the one "
                "that is wrong if they differ",
                path,
                folder.weights.name,
            )
        return files, True
    files = list(find_pickles(path).files)
    if not files:
        raise CheckpointError(
            f"{path}: holds no {LAYOUT.weights}, expected the weights there"
            f"{other_kind(folder.files) or CHECK_PATH}"
        )
    if not allow_pickle:
        raise CheckpointError(
            f"{files[0]}: is a pickle, which can run code when it is read; give --allow-pickle to "
            "read it restricted to tensors, or convert it to safetensors"
        )
    return files, False


def _load_config(folder: PlainCheckpoint, options: BaseOptions) -> PretrainedConfig:
    path, raw = folder.path, folder.config
    if needs_remote_code(raw) and not options.trust_remote_code:
        raise CheckpointError(
            f"{path / LAYOUT.config}: the model needs Python code that comes with the checkpoint; "
            "read that code, then give --trust-remote-code to run it"
        )
    if "model_type" not in raw:
        raise CheckpointError(
            f"{path / LAYOUT.config}: has no 'model_type', so the architecture is unknown; add "
            'it, for example "model_type": "bert"'
        )
    try:
        with quiet_libraries():
            config: PretrainedConfig = AutoConfig.from_pretrained(
                path, trust_remote_code=options.trust_remote_code
            )
    except LOADING_ERRORS as error:
        raise CheckpointError(
            f"{path / LAYOUT.config}: cannot be used ({first_line(error)})"
        ) from error
    if not options.resize_embeddings:
        require_pad_row(path, config)
    return config


def _choose_task(base: str, folder: PlainCheckpoint, options: BaseOptions) -> Task:
    if options.task is not None:
        return get_task(options.task)
    task = folder.task
    if task is None:
        raise ArgumentError(
            f"{base}: has no task head, so its task is unknown; give --task, for example --task "
            "text-classification"
        )
    return task


def _set_labels(
    config: PretrainedConfig, task: Task, options: BaseOptions, path: Path, *, own: bool
) -> None:
    """Set the head's labels in the configuration; `own` tells whether the base has such a head."""
    labels = options.labels
    if not task.has_labels:
        if labels is not None:
            raise ArgumentError(f"labels: the task {task.name} has no labels; leave --labels out")
        return
    if labels is None and not own:
        labels = task.default_labels
        if labels is None:
            raise ArgumentError(
                f"labels: the task {task.name} needs labels; give --labels a number or names"
            )
    if task.single_output and labels is not None and labels != 1:
        raise ArgumentError(f"labels: {task.name} has one output; leave --labels out")
    if isinstance(labels, int):
        _check_label_count(labels, task)
        if not own or labels != len(_label_names(config)):  # the same number keeps the names
            config.id2label = {index: f"LABEL_{index}" for index in range(labels)}
    elif labels is not None:
        names = [str(name).strip() for name in labels]
        _check_label_names(names, task)
        config.id2label = dict(enumerate(names))
    else:
        _check_own_labels(config, path)
    check_outputs(task, config.to_dict())
    config.label2id = {name: index for index, name in enumerate(_label_names(config))}
    if task.problem_type is not None:
        if own and config.problem_type not in (None, task.problem_type):
            logger.warning(
                "the head of the base was trained for %s; training for %s starts from this head",
                config.problem_type,
                task.name,
            )
        config.problem_type = task.problem_type  # type: ignore[assignment]


def _check_own_labels(config: PretrainedConfig, path: Path) -> None:
    """Refuse the labels of a trained head if it is unclear which output each of them names."""
    where, names = path / LAYOUT.config, dict(config.id2label or {})
    if sorted(map(int, names)) != list(range(len(names))):
        raise CheckpointError(
            f"{where}: id2label numbers the labels {', '.join(map(str, names))}, expected 0 to "
            f"{len(names) - 1}, the outputs of the head; correct the numbers"
        )
    twice = sorted({name for name in names.values() if [*names.values()].count(name) > 1})
    if twice:
        raise CheckpointError(
            f"{where}: id2label gives several outputs the name {twice[0]!r}; give each its own "
            "name, or name the labels with --labels"
        )


def _label_names(config: PretrainedConfig) -> tuple[str, ...]:
    names: dict[Any, str] = dict(config.id2label or {})
    return tuple(names[index] for index in sorted(names, key=int))


def _check_label_count(count: int, task: Task) -> None:
    lowest = 2 if task.problem_type == "single_label_classification" else 1
    if count < lowest:
        raise ArgumentError(f"labels: got {count}, expected at least {lowest} for {task.name}")


def _check_label_names(names: list[str], task: Task) -> None:
    _check_label_count(len(names), task)
    if "" in names or len(set(names)) != len(names):
        raise ArgumentError(f"labels: got {names}, expected different, non-empty names")
    for name in names:
        if len(name.splitlines()) > 1:
            raise ArgumentError(f"labels: got {name!r}, expected names of one line")


def load_base(base: str, options: BaseOptions, *, digest: BaseDigest | None = None) -> LoadedBase:
    """Load a pretrained checkpoint with the head of a task.

    A head that the base lacks is initialized from `options.seed`, so that strategies can be
    compared from the same start.

    Args:
        base: A folder or hub id.
        options: Task, labels and how to read.
        digest: The base's SHA-256, if it is being computed already.

    Raises:
        ArgumentError: The task or the labels do not fit.
        CheckpointError: The base cannot be loaded.
    """
    path, commit = locate_base(base, revision=options.revision)
    folder = checkpoint_in(InputFiles(path) if digest is None else digest.opened(path))
    if folder.metadata is not None:  # a second snapshot would move its anchors
        raise CheckpointError(
            f"{path}: is already a mixout checkpoint; train it, or collapse it and prepare the "
            "result"
        )
    files, safe = _weight_paths(folder, allow_pickle=options.allow_pickle)
    if digest is None or list(digest.files) != files:
        digest = BaseDigest(files)
    task = _choose_task(base, folder, options)
    config = _load_config(folder, options)
    tokenizer = folder.tokenizer  # says what is missing before the weights are read
    own = own_task_name(folder.config) == task.name
    _set_labels(config, task, options, path, own=own)
    pad = _hide_pad_id(config)
    model, info = _instantiate(path, task, config, options, folder.weights.name)
    if modules := anchored_modules(info["unexpected_keys"]):
        raise CheckpointError(
            f"{path}: holds the pretrained weight {modules[0].pretrained_key!r} of mixout, so its "
            "trained weights would become new anchors; save the model as safetensors and collapse "
            "it first"
        )
    # a fresh head replaces one of another shape; everything else has to fit
    kept = "" if own and options.labels is None else model.base_model_prefix + "."
    refuse_mismatched(path, (m for m in info["mismatched_keys"] if m[0].startswith(kept)))
    fit = BaseFit.of(folder, model, task, info, asked=options.task is not None)
    notes = fit.check()
    settle_tied_flag(model, path)
    resized = _fit_vocabulary(folder, model, options, pad)
    name = base if commit is not None else base_name(path, folder.config)
    labels = _label_names(model.config) if task.has_labels else None
    return LoadedBase(
        model=model,
        task=task,
        labels=labels,
        fresh_keys=fit.fresh,
        unused_keys=tuple(fit.unexpected),
        notes=notes,
        base=Base(name=name, revision=commit, sha256=digest.result()),
        folder=folder,
        files=tuple(files) if safe else (),
        resized=resized,
        pads_right=must_pad_right(model, tokenizer, task),
    )


def _hide_pad_id(config: PretrainedConfig) -> int | None:
    """Remove a padding id outside the vocabulary while the model is built, and return it."""
    pad = pad_beyond_rows(config)
    if pad is not None:
        config.get_text_config().pad_token_id = None
    return pad


def _fit_vocabulary(
    folder: PlainCheckpoint, model: PreTrainedModel, options: BaseOptions, pad: int | None
) -> dict[str, AddedRows]:
    """Add rows for the ids of the tokenizer if they are wanted, else refuse ids without a row.

    `pad` is the padding id if it was hidden.
    """
    try:
        tokenizer = folder.tokenizer
    except CheckpointError:
        if options.resize_embeddings:
            raise
        return {}  # it matters only where text is read
    if not options.resize_embeddings:
        if tokenizer is not None:
            require_rows(folder.path, tokenizer, vocabulary_rows(model))
        return {}
    highest = None if tokenizer is None else highest_token(tokenizer)
    if highest is None or vocabulary_rows(model) is None:
        raise ArgumentError(
            f"resize-embeddings: {folder.path} has no tokenizer, or no embedding of words, so the "
            "number of rows is unknown; leave the option out"
        )
    resized = add_rows(model, max(highest[0], -1 if pad is None else pad) + 1)
    if pad is not None:
        model.config.get_text_config().pad_token_id = pad
    return resized


def _instantiate(
    path: Path, task: Task, config: PretrainedConfig, options: BaseOptions, weights: str | None
) -> tuple[PreTrainedModel, dict[str, Any]]:
    auto_class = getattr(transformers, task.auto_class)
    if weights is not None:
        config.transformers_weights = weights  # else transformers would choose for itself
    torch.manual_seed(options.seed)
    with quiet_libraries():
        try:
            model, info = auto_class.from_pretrained(
                path,
                config=config,
                dtype="auto",
                output_loading_info=True,
                use_safetensors=weights is not None,
                local_files_only=True,
                trust_remote_code=options.trust_remote_code,
                ignore_mismatched_sizes=True,  # refused below unless it is a head to be replaced
                weights_only=True,
            )
        except (pickle.UnpicklingError, EOFError) as error:
            raise CheckpointError(
                f"{path / LAYOUT.pickle_weights}: is damaged or holds more than tensors, and was "
                "not read; get the checkpoint as safetensors"
            ) from error
        except LOADING_ERRORS as error:
            raise CheckpointError(
                f"{path}: cannot be loaded for {task.name} ({first_line(error)})"
            ) from error
    forget_weights_name(model)
    return model.eval(), info
