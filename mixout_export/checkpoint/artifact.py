"""What all artifacts have in common, whatever they are stored as."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mixout_export.errors import CheckpointError
from mixout_export.files.input_files import InputFiles
from mixout_export.files.layout import PROCESSOR_FILES
from mixout_export.provenance.manifest import Manifest, ManifestCheck, check_manifest, find_manifest

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedTokenizerBase

    from mixout_export.checkpoint.interface import ModelInterface
    from mixout_export.checkpoint.plain import PlainCheckpoint
    from mixout_export.runners.cache import CachedRunner
    from mixout_export.runners.onnx_runner import OnnxRunner
    from mixout_export.runners.runner import Array, Runner
    from mixout_export.runners.trace import Trace
    from mixout_export.served.session import ServedSession

#: Outputs of a model without a head.
HEADLESS_OUTPUTS = ("last_hidden_state",)


@dataclass(frozen=True)
class Generators:
    """What a causal language model generates with.

    Attributes:
        plain: Reads everything again for each token; None if there is no such graph.
        cached: Keeps a key/value cache; None if there is no such graph.
    """

    plain: "OnnxRunner | None" = None
    cached: "CachedRunner | None" = None


@dataclass(frozen=True)
class Hashes:
    """SHA-256 of a graph and of the weights it was made from; None where unknown."""

    graph: str | None = None
    source: str | None = None


class Artifact(ABC):
    """A model that can be run and compared: on a disk or on a server.

    What a kind of artifact does not know has the default given here.
    """

    #: The kind as programs read it, and in words.
    kind: ClassVar[str]
    title: ClassVar[str]

    @property
    def task_name(self) -> str | None:
        """Name of the head's task; None for a model without a head, or where unknown."""
        return None

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Names of the labels; None where unknown, or where the task has none."""
        return None

    @property
    def architecture(self) -> str | None:
        """Class name of the model; None if unknown."""
        return None

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase | None":
        """The tokenizer; None if the artifact has no tokenizer."""
        return None

    @property
    def image_processor(self) -> "BaseImageProcessor | None":
        """The image processor; None if the artifact has none."""
        return None

    @property
    def interface(self) -> "ModelInterface | None":
        """What the model takes and gives; None if it does not say."""
        return None

    @property
    def graph(self) -> Path | None:
        """The ONNX file that is run; None for a model that is not ONNX."""
        return None

    @property
    def cached_graph(self) -> Path | None:
        """The ONNX file with a key/value cache; None if it was not exported."""
        return None

    @property
    def other_graphs(self) -> tuple[Path, ...]:
        """The ONNX files of a bundle besides the one that is run."""
        return ()

    @property
    def config(self) -> Mapping[str, Any]:
        """The content of `config.json`; empty if the file is missing."""
        return {}

    @property
    def checkpoint(self) -> "PlainCheckpoint | None":
        """This object as a checkpoint; None if it is another kind of artifact."""
        return None

    @property
    def session(self) -> "ServedSession | None":
        """The connection to a server; None where the model is not on one."""
        return None

    @property
    def precision(self) -> str:
        """The precision that the artifact records; "" if it records none."""
        return ""

    @property
    def knows_modules(self) -> bool:
        """Whether the outputs of its modules can be traced."""
        return False

    @property
    @abstractmethod
    def where(self) -> str:
        """The path or address, as messages name it."""

    @property
    @abstractmethod
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs."""

    @property
    @abstractmethod
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs."""

    @property
    def headless(self) -> bool:
        """Whether the model has no head."""
        return self.outputs == HEADLESS_OUTPUTS

    @property
    @abstractmethod
    def runs_in(self) -> str:
        """What computes the outputs, in words."""

    @abstractmethod
    def runner(self, inputs: tuple[str, ...], *, headless: bool = False) -> "Runner":
        """Return what runs the model on these inputs, or only its body."""

    def half_runner(self) -> "Runner | None":
        """Return what runs the model with each result rounded to fp16, as a GPU computes it.

        None unless the model is in fp16 and `runner` computes in fp32.
        """
        return None

    @abstractmethod
    def described_by(self, other: "ModelInterface | None") -> "ModelInterface":
        """Return the interface, completed from the other side's where this side records nothing."""

    def can_answer(self, ours: "ModelInterface", theirs: "ModelInterface") -> bool:
        """Tell whether the outputs of a reference with `ours` can be compared with this side's."""
        return set(ours.outputs) == set(theirs.outputs)

    def generators(self) -> Generators:
        """Return what a causal language model generates with, besides PyTorch."""
        return Generators()

    def epsilons(self, *, headless: bool) -> dict[str, float]:
        """Return the epsilon of each normalization by the module's name, as far as known."""
        return {}

    def trace(self, inputs: "Mapping[str, Array]", *, headless: bool) -> "Trace":
        """Run the model and return the outputs of its modules, if they are known."""
        raise CheckpointError(f"{self.where}: does not record its modules")

    def hashes(self, *, with_cache: bool) -> Hashes:
        """Return the hashes that identify the model, of the graph with a cache if asked for."""
        return Hashes()

    def parts(self) -> Iterator[tuple[Path, str]]:
        """Yield the files that decide what the model computes, each with its SHA-256."""
        yield from ()

    def reopen(self, path: Path) -> "Artifact":
        """Open a changed copy of the artifact, to be run in the same way, if it can be copied."""
        raise CheckpointError(f"{self.where}: cannot be copied")

    def manifest_problems(self) -> tuple[str, ...]:
        """Return what does not match the manifest, as sentences."""
        return ()

    def damage(self) -> tuple[str, ...]:
        """Return what is damaged, as sentences, as far as the artifact itself shows it."""
        return ()


class LocalArtifact(Artifact):
    """An artifact on a disk: at the path that the user named, with the files of its folder."""

    def __init__(self, path: Path, files: InputFiles) -> None:
        self.path = path
        self.files = files

    @property
    def folder(self) -> Path:
        """The folder of the model and of its tokenizer."""
        return self.files.folder

    @cached_property
    def config(self) -> dict[str, Any]:
        """The content of `config.json`; empty if the file is missing."""
        return self.files.at(self.folder).config

    @property
    def where(self) -> str:
        """The path, as messages name it."""
        return str(self.path)

    @property
    def architecture(self) -> str | None:
        """Class name of the model; None if unknown."""
        names = self.config.get("architectures") or [None]
        return names[0]  # type: ignore[no-any-return]

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase | None":
        """The tokenizer; None if the folder has no tokenizer files."""
        from mixout_export.checkpoint.tokenizer import load_tokenizer

        return load_tokenizer(self.folder)

    @property
    def trained_max_length(self) -> int | None:
        """Longest sequence, in tokens, of the model's training; None if unknown."""
        from mixout_export.checkpoint.tokenizer import trained_max_length

        return None if self.tokenizer is None else trained_max_length(self.tokenizer)

    def require_tokenizer(self) -> "PreTrainedTokenizerBase":
        """Return the tokenizer; raise `CheckpointError` if the folder has no tokenizer files."""
        if self.tokenizer is None:
            raise CheckpointError(
                f"{self.where}: has no tokenizer files, which are needed to read text; copy those "
                "of the base into it"
            )
        return self.tokenizer

    @cached_property
    def image_processor(self) -> "BaseImageProcessor | None":
        """The image processor; None if the folder has none."""
        from mixout_export.checkpoint.image_processor import load_image_processor

        return load_image_processor(self.folder)

    def require_image_processor(self) -> "BaseImageProcessor":
        """Return the image processor; raise `CheckpointError` if the folder has none."""
        if self.image_processor is None:
            raise CheckpointError(
                f"{self.where}: has no {PROCESSOR_FILES[0]}, which is needed to read images; copy "
                "that of the base into it"
            )
        return self.image_processor

    @cached_property
    def manifest(self) -> Manifest | None:
        """The manifest; None without one. A damaged one raises `CheckpointError`."""
        return find_manifest(self.files) if self.path.is_dir() else None

    @cached_property
    def manifest_check(self) -> ManifestCheck:
        """What does not match the manifest; nothing for a single file."""
        return check_manifest(self.files) if self.path.is_dir() else ManifestCheck(None)

    def manifest_problems(self) -> tuple[str, ...]:
        """Return what does not match the manifest, as sentences."""
        return self.manifest_check.problems

    def check_single(self) -> None:
        """Refuse a bundle of several precisions where one model is meant.

        Raises:
            ArgumentError: The artifact is such a bundle; the message names its graphs.
        """

    @abstractmethod
    def load(self) -> None:
        """Load what running the model needs, so that damage shows now."""

    @abstractmethod
    def part_files(self) -> Iterator[Path]:
        """Yield the files that decide what the model computes."""

    def parts(self) -> Iterator[tuple[Path, str]]:
        """Yield the files that decide what the model computes, each with its SHA-256."""
        for file in self.part_files():
            yield file, self.files.digest(file)
