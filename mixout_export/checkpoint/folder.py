"""Checkpoint folders: plain ones, and those with mixout.

What a folder holds is found out from file headers alone. PyTorch is loaded when the model is.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixout_export.checkpoint.artifact import HEADLESS_OUTPUTS, Hashes, LocalArtifact
from mixout_export.checkpoint.mixout_metadata import MixoutMetadata, parse_metadata
from mixout_export.checkpoint.saved_by_others import anchored_modules, metadata_of_config
from mixout_export.config import MixoutConfig
from mixout_export.errors import CheckpointError
from mixout_export.files.input_files import InputFiles
from mixout_export.files.layout import LAYOUT
from mixout_export.files.streams import quick_digest
from mixout_export.files.tensors import TensorEntry, digest_files, read_tensors
from mixout_export.files.weight_files import (
    WeightFiles,
    find_anchors,
    find_pickles,
    find_weights,
    newer_pickle,
    refuse_unlisted,
)
from mixout_export.tasks import Task, known_task, task_of_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from mixout_export.checkpoint.interface import ModelInterface
    from mixout_export.checkpoint.model_inputs import Batch
    from mixout_export.runners.runner import Array
    from mixout_export.runners.torch_runner import TorchRunner
    from mixout_export.runners.trace import Trace

logger = logging.getLogger(__name__)


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


#: What batch normalization learns in buffers, not in parameters.
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def is_statistic(key: str) -> bool:
    """Tell whether a tensor holds statistics of batch normalization, by its key or its name."""
    return key.rpartition(".")[2] in _STATISTICS


def _collect(files: Iterable[Path]) -> dict[str, TensorEntry]:
    """Gather the tensors of several files. A key that occurs twice must hold equal bytes."""
    tensors: dict[str, TensorEntry] = {}
    for file in files:
        for key, entry in read_tensors(file).items():
            earlier = tensors.setdefault(key, entry)
            if earlier is not entry and not entry.same_bytes(earlier):
                raise CheckpointError(
                    f"{file}: {key!r} differs from the one in {earlier.file.name}; "
                    "it is unclear which of them is right, so remove one of the files"
                )
    return tensors


class PlainCheckpoint(LocalArtifact):
    """A Hugging Face folder. Also the base class of `MixoutCheckpoint`.

    Attributes:
        metadata: The metadata of mixout; None for a plain checkpoint.
    """

    kind = "huggingface"
    title = "Hugging Face folder"
    knows_modules = True
    runs_in = "PyTorch, float32, on the CPU"

    def __init__(self, files: InputFiles) -> None:
        super().__init__(files.folder, files)
        self.metadata: MixoutMetadata | None = None

    @property
    def checkpoint(self) -> "PlainCheckpoint":
        """This checkpoint."""
        return self

    @cached_property
    def weights(self) -> WeightFiles:
        """Which files hold the ordinary tensors. Every reader of the folder is told by this."""
        found = find_weights(self.files)
        if found.stale is not None:
            logger.warning(
                "%s: is stale, because the shards that it lists are gone; the weights are those "
                "of %s, which is newer; delete the index",
                found.stale,
                found.name,
            )
        newer = newer_pickle(self.path, found)
        if newer is not None:
            logger.warning(
                "%s: is newer than %s and is not read, as in transformers; if it holds the right "
                "weights, delete %s and run prepare with --allow-pickle, else delete the pickle",
                newer,
                found.name,
                found.name,
            )
        return found

    @property
    def weight_paths(self) -> list[Path]:
        """The files of the ordinary tensors."""
        return list(self.weights.files)

    @cached_property
    def pretrained(self) -> WeightFiles:
        """Which files hold the anchors; none if they are among the ordinary tensors."""
        return find_anchors(self.path)

    @property
    def pretrained_paths(self) -> list[Path]:
        """The files of the anchors; empty if they are stored among the ordinary tensors."""
        return list(self.pretrained.files)

    @cached_property
    def tensors(self) -> Mapping[str, TensorEntry]:
        """The ordinary tensors by key, without the anchors of a mixout checkpoint."""
        tensors = _collect(self.weight_paths)
        refuse_unlisted(self.weights.index, tensors)
        return tensors

    @property
    def anchors(self) -> Mapping[str, TensorEntry]:
        """The pretrained values by key; empty for a plain checkpoint."""
        return {}

    @property
    def task(self) -> Task | None:
        """The task of the checkpoint's head, None for a headless one."""
        return task_of_config(self.config)

    @property
    def task_name(self) -> str | None:
        """Name of the head's task; None without a head."""
        return None if self.task is None else self.task.name

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Label names in the order of the head's outputs, None where the task has none."""
        return labels_of(self.config, self.task)

    def weights_sha256(self) -> str:
        """Return the SHA-256 of the ordinary weight files."""
        return digest_files(self.weight_paths)

    def collapsed_config(self) -> dict[str, Any]:
        """Return `config.json` without mixout and without the changes that `prepare` made."""
        return {key: value for key, value in self.config.items() if key != "mixout"}

    def check_anchors(self, *, quickly: bool = False) -> None:
        """Compare the anchors with the SHA-256 that `prepare` recorded, if there are any.

        Args:
            quickly: Whether to use a faster hash, if one is recorded. It shows damage but not
                malice, which is enough if the anchors are not used.
        """

    def require_task(self) -> Task:
        """Return the task of the checkpoint's head, or raise `CheckpointError` if it has none."""
        if self.task is None:
            raise CheckpointError(
                f"{self.path}: has no head, expected one; run prepare on it with --task"
            )
        return self.task

    def require_metadata(self) -> MixoutMetadata:
        """Return the metadata of mixout, or raise `CheckpointError` for a plain checkpoint."""
        if self.metadata is None:
            raise CheckpointError(
                f"{self.path}: is a plain checkpoint, expected a mixout checkpoint; run prepare "
                "on it"
            )
        return self.metadata

    def require_weights(self) -> None:
        """Raise `CheckpointError` if there are no safetensors weights, perhaps only a pickle.

        Weights beside an adapter are refused: whether they contain it is unknown, and transformers
        applies it or not, depending on whether PEFT is installed.
        """
        refuse_adapter(self.path, bool(self.weight_paths))
        if self.weight_paths:
            return
        if find_pickles(self.path).files:
            raise CheckpointError(
                f"{self.path}: has its weights only as a pickle ({LAYOUT.pickle_weights}), which "
                "can run code when it is read; convert it, or run prepare with --allow-pickle"
            )
        raise CheckpointError(
            f"{self.path}: holds no {LAYOUT.weights}, expected the weights there"
            f"{other_kind(self.files) or CHECK_PATH}"
        )

    @cached_property
    def model(self) -> "PreTrainedModel":
        """The plain model in float32, in evaluation mode, with a padding id if there is one."""
        import torch

        from mixout_export.checkpoint.interface import settle_pad_token
        from mixout_export.checkpoint.loading import load_plain
        from mixout_export.checkpoint.padding import count_positions_in_text, must_pad_right

        model = load_plain(self, dtype=torch.float32)
        settle_pad_token(model, self.tokenizer)
        if must_pad_right(model, self.tokenizer, self.task):
            logger.warning(
                "%s: the tokenizer pads on the left, where the answer of %s to a text depends on "
                "the other texts of its batch; this tool pads on the right where it matters; for "
                'other programs, set "padding_side": "right" in tokenizer_config.json',
                self.path,
                type(model).__name__,
            )
        count_positions_in_text(model)
        return model

    @cached_property
    def interface(self) -> "ModelInterface":
        """What the model takes and gives."""
        from mixout_export.checkpoint.interface import describe_interface
        from mixout_export.checkpoint.model_inputs import shortest_batches
        from mixout_export.checkpoint.padding import settle_padding
        from mixout_export.checkpoint.vocabulary import require_rows, vocabulary_rows

        if self.tokenizer is not None:
            require_rows(self.path, self.tokenizer, vocabulary_rows(self.model))
        described = describe_interface(self.model, self.task, self.tokenizer)
        if described.image is not None:
            return self._fit_images(described)
        for tried, batch in shortest_batches(described):
            try:
                self._runner(tried, described.inputs).run(batch.inputs)
            except CheckpointError:
                continue
            return settle_padding(self.model, tried)
        return described  # if the model does not run, that is reported when it is used

    def _fit_images(self, described: "ModelInterface") -> "ModelInterface":
        """Return the interface for images of the processor's size, if the model takes them."""
        from mixout_export.checkpoint.image_processor import fit_images

        def run(batch: "Batch") -> None:
            self._runner(described, described.inputs).run(batch.inputs)

        try:
            if self.image_processor is not None:
                return fit_images(described, self.image_processor, run)
        except CheckpointError as error:
            logger.warning("%s; the size in %s is used", error, LAYOUT.config)
        return described

    def load(self) -> None:
        """Load the model and find out its interface."""
        _ = self.interface

    def reopen(self, path: Path) -> "PlainCheckpoint":
        """Open another checkpoint."""
        return open_checkpoint(path)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the model's inputs."""
        return self.interface.inputs

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the model's outputs."""
        return self.interface.outputs

    @property
    def accepted_inputs(self) -> frozenset[str]:
        """Inputs that the model's forward accepts."""
        import inspect

        return frozenset(inspect.signature(self.model.forward).parameters)

    @property
    def row_by_row(self) -> bool:
        """Whether it is run one row at a time, because rows of texts have no padding."""
        return not self.interface.takes_batches

    def runner(self, inputs: tuple[str, ...], *, headless: bool = False) -> "TorchRunner":
        """Return what runs the model on these inputs, or only its body."""
        return self._runner(self.interface, inputs, headless=headless)

    def _runner(
        self, interface: "ModelInterface", inputs: tuple[str, ...], *, headless: bool = False
    ) -> "TorchRunner":
        from mixout_export.runners.torch_runner import TorchRunner

        return TorchRunner(
            self.model,
            inputs=inputs,
            outputs=HEADLESS_OUTPUTS if headless else interface.outputs,
            headless=headless,
            row_by_row=not interface.takes_batches,
        )

    def described_by(self, other: "ModelInterface | None") -> "ModelInterface":
        """Return the interface, which a checkpoint always knows."""
        return self.interface

    def epsilons(self, *, headless: bool) -> dict[str, float]:
        """Return the epsilon of each normalization by the module's name."""
        from mixout_export.runners.torch_modules import model_epsilons

        return model_epsilons(self.model.base_model if headless else self.model)

    def trace(self, inputs: "Mapping[str, Array]", *, headless: bool) -> "Trace":
        """Run the model and return the output of each call of each module."""
        from mixout_export.runners.torch_modules import trace_modules
        from mixout_export.runners.torch_runner import gathered_experts

        runner = self.runner(self.interface.inputs, headless=headless)
        with gathered_experts(self.model):
            return trace_modules(
                self.model.base_model if headless else self.model, lambda: runner.run(inputs)
            )

    @cached_property
    def parameter_keys(self) -> Set[str]:
        """Keys on disk of what the architecture has."""
        from mixout_export.surgery.key_names import disk_keys

        return set(disk_keys(self.model).values())

    @cached_property
    def unused_keys(self) -> Set[str]:
        """Keys on disk of what no output depends on."""
        from mixout_export.checkpoint.model_state import unused_keys

        return unused_keys(self.model, self.interface)

    def hashes(self, *, with_cache: bool) -> Hashes:
        """Return the hash of the weights, which graphs that were exported from them record."""
        return Hashes(source=self.weights_sha256())

    def part_files(self) -> Iterator[Path]:
        """Yield the configuration and the files of the weights."""
        yield self.path / LAYOUT.config
        yield from self.weight_paths


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
        tensors = _collect([*self.weight_paths, *self.pretrained_paths])
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


def own_task_name(config: Mapping[str, Any]) -> str | None:
    """Return the task of a configuration's own head; None if it has none, or an unknown one."""
    try:
        task = task_of_config(config)
    except CheckpointError:
        return None
    return None if task is None else task.name


def labels_of(config: Mapping[str, Any], task: Task | None) -> tuple[str, ...] | None:
    """Return label names in the order of the head's outputs, None where the task has none."""
    if task is None or not task.has_labels:
        return None
    names = config.get("id2label")
    if not isinstance(names, dict):  # transformers omits its default of two labels
        return tuple(f"LABEL_{index}" for index in range(config.get("num_labels", 2)))
    return tuple(str(names[key]) for key in sorted(names, key=int))


#: The end of an error about a folder that lacks a file, if nothing else is known.
CHECK_PATH = "; check the path, or download the missing file"


def other_kind(files: InputFiles) -> str:
    """Say what a folder is that is not a checkpoint, as the end of a sentence; "" if unknown."""
    if (files.folder / LAYOUT.onnx).exists():
        return "; it is an ONNX folder, so give the checkpoint that it was exported from"
    if files.is_bundle:
        return "; it is a bundle, so give the folder that it was made from"
    inside = sorted(path.parent for path in files.folder.glob(f"*/{LAYOUT.config}"))
    if inside:
        return f"; a checkpoint is in {_newest(inside)}, so give that folder"
    return ""


def _newest(folders: Sequence[Path]) -> Path:
    """Return the folder with the highest number at its end, such as a Trainer's checkpoint-500."""

    def number(folder: Path) -> int:
        digits = folder.name.rpartition("-")[2]
        return int(digits) if digits.isdecimal() else -1

    return max(folders, key=number)


def refuse_adapter(folder: Path, has_weights: bool) -> None:
    """Raise `CheckpointError` if a folder holds an adapter of PEFT."""
    if not (folder / LAYOUT.adapter_config).exists():
        return
    if has_weights:
        raise CheckpointError(
            f"{folder}: holds a PEFT adapter ({LAYOUT.adapter_config}) beside its weights, so it "
            "is unclear whether they contain it; delete the adapter's files if they do, else run "
            "prepare with --merge-adapter"
        )
    raise CheckpointError(
        f"{folder}: holds a PEFT adapter ({LAYOUT.adapter_config}) and no weights; run prepare "
        "with --merge-adapter, which merges it into its base"
    )


def _module_with_mixout(files: InputFiles) -> str:
    """Say that a folder without a configuration is a saved module with mixout; "" if it is not."""
    try:
        modules = anchored_modules(PlainCheckpoint(files).tensors)
    except CheckpointError:
        modules = ()
    if not modules:
        return ""
    return (
        "; it has the state of a module with mixout, so load it into that module and write the "
        "folder with save_mixout"
    )


def is_onnx_folder(folder: Path) -> bool:
    """Tell whether a folder holds a graph, and no weights besides it."""
    has_weights = any((folder / n).exists() for n in (LAYOUT.weights, LAYOUT.weights_index))
    return (folder / LAYOUT.onnx).exists() and not has_weights


def checkpoint_in(files: InputFiles) -> PlainCheckpoint:
    """Open the checkpoint in a folder, which must have a `config.json`."""
    config_path = files.folder / LAYOUT.config
    if not config_path.exists():
        refuse_adapter(files.folder, has_weights=False)
        raise CheckpointError(
            f"{files.folder}: holds no {LAYOUT.config}, expected a Hugging Face checkpoint folder"
            f"{other_kind(files) or _module_with_mixout(files) or CHECK_PATH}"
        )
    metadata_path = files.folder / LAYOUT.mixout_config
    if metadata_path.exists():
        metadata = parse_metadata(files.read_json(LAYOUT.mixout_config), metadata_path)
        return MixoutCheckpoint(files, metadata, native=True)
    plain, record = PlainCheckpoint(files), files.config.get("mixout")
    try:
        keys: Set[str] = plain.tensors.keys()
    except CheckpointError:
        keys = frozenset()  # damaged, which is reported when the weights are used
    if isinstance(record, dict):
        metadata = metadata_of_config(record, keys, config_path)
        return MixoutCheckpoint(files, metadata, native=False)
    if modules := anchored_modules(keys):
        metadata = MixoutMetadata(MixoutConfig(), modules)
        return MixoutCheckpoint(files, metadata, native=False, recorded=False)
    return plain


def open_checkpoint(path: Path) -> PlainCheckpoint:
    """Open a plain or a mixout checkpoint. Its tensors' headers are read on first use."""
    if not path.exists():
        raise CheckpointError(f"{path}: no such folder; check the path")
    if path.suffix == ".onnx" or is_onnx_folder(path):
        raise CheckpointError(
            f"{path}: is an ONNX export, expected a Hugging Face folder or a mixout checkpoint"
        )
    if path.is_file():
        raise CheckpointError(f"{path}: is a file, expected a checkpoint folder or an .onnx file")
    return checkpoint_in(InputFiles(path))
