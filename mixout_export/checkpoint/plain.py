"""Plain checkpoints: Hugging Face folders.

What a folder holds is found out from file headers alone. PyTorch is loaded when the model is.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Set
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixout_export.checkpoint.artifact import HEADLESS_OUTPUTS, Hashes, LocalArtifact
from mixout_export.checkpoint.mixout_metadata import MixoutMetadata
from mixout_export.checkpoint.other_kinds import CHECK_PATH, other_kind, refuse_adapter
from mixout_export.errors import CheckpointError
from mixout_export.files.input_files import InputFiles
from mixout_export.files.layout import LAYOUT
from mixout_export.files.tensors import TensorEntry, digest_files, read_tensors
from mixout_export.files.weight_files import (
    WeightFiles,
    find_anchors,
    find_pickles,
    find_weights,
    newer_pickle,
    refuse_unlisted,
)
from mixout_export.tasks import Task, labels_of, task_of_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from mixout_export.checkpoint.interface import ModelInterface
    from mixout_export.checkpoint.model_inputs import Batch
    from mixout_export.runners.runner import Array
    from mixout_export.runners.torch_runner import TorchRunner
    from mixout_export.runners.trace import Trace

logger = logging.getLogger(__name__)


def collect(files: Iterable[Path]) -> dict[str, TensorEntry]:
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
    """A Hugging Face folder. Also the base class of `mixed.MixoutCheckpoint`.

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
        tensors = collect(self.weight_paths)
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
        from mixout_export.checkpoint.folder import open_checkpoint

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
