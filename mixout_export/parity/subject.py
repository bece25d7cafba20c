"""One side of a comparison: a folder, a graph or a served model, opened and ready to run."""

from collections.abc import Set
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mixout_export.checkpoint.artifact import Artifact, open_artifact
from mixout_export.checkpoint.interface import (
    HEADLESS_OUTPUTS,
    ModelInterface,
    describe_interface,
    settle_pad_token,
)
from mixout_export.checkpoint.model import load_plain, load_tokenizer
from mixout_export.errors import CheckpointError
from mixout_export.files.graph_metadata import recorded_labels, recorded_object
from mixout_export.files.layout import LAYOUT
from mixout_export.parity.battery import shortest_batch, smallest_batch
from mixout_export.parity.weights import WeightSet
from mixout_export.runners.cached_graph import CachedGraph, open_graph
from mixout_export.runners.onnx_runner import CPU_PROVIDER, OnnxRunner
from mixout_export.runners.torch_runner import TorchRunner
from mixout_export.served.address import Address
from mixout_export.served.options import ServingOptions
from mixout_export.served.session import ServedModel, open_served
from mixout_export.surgery.key_names import disk_keys

#: Lengths that are tried until a model runs: those that pool need as many tokens as they pool.
_SHORTEST_SEQUENCES = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class TorchSubject:
    """A Hugging Face folder or a mixout checkpoint, which computes what the plain model does.

    Attributes:
        path: Where it lies.
        folder: What the folder holds.
        model: The plain model in float32.
        tokenizer: Its tokenizer, if it has one.
        interface: What the model takes and gives.
    """

    path: Path
    folder: Artifact
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    interface: ModelInterface

    @property
    def task(self) -> str | None:
        """Name of the head's task; None without a head."""
        return None if self.folder.task is None else self.folder.task.name

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Names of the labels; None where the task has none."""
        return self.folder.labels

    @property
    def headless(self) -> bool:
        """Whether the model has no head."""
        return self.interface.outputs == HEADLESS_OUTPUTS

    @cached_property
    def weights(self) -> WeightSet:
        """Its tensors, and what its architecture knows of them."""
        prefix = "" if self.headless else self.model.base_model_prefix
        return WeightSet(self.folder.tensors, set(disk_keys(self.model).values()), prefix)

    def runner(self, inputs: tuple[str, ...], *, headless: bool = False) -> TorchRunner:
        """Return something that runs the model, or only its body."""
        outputs = HEADLESS_OUTPUTS if headless else self.interface.outputs
        return TorchRunner(
            self.model,
            inputs=inputs,
            outputs=outputs,
            headless=headless,
            row_by_row=self.interface.pad_token_id is None,
        )


@dataclass(frozen=True)
class OnnxSubject:
    """An ONNX graph, with the folder around it if there is one.

    Attributes:
        path: The path the user named.
        folder: What lies beside the graph.
        graph: The graph's file.
        session: The graph, ready to run.
        tokenizer: The tokenizer beside it, if there is one.
        provider: onnxruntime's execution provider.
    """

    path: Path
    folder: Artifact
    graph: Path
    session: OnnxRunner | CachedGraph
    tokenizer: PreTrainedTokenizerBase | None
    provider: str = CPU_PROVIDER

    @property
    def cached_graph(self) -> Path | None:
        """The graph with a key/value cache that lies beside this one; None if there is none."""
        path = self.graph.with_name(LAYOUT.onnx_cached)
        return path if self.path.is_dir() and path.is_file() else None

    @property
    def task(self) -> str | None:
        """Name of the task the graph was made for; None if unknown."""
        recorded = self.session.metadata.get("task")
        if recorded:
            return recorded
        return None if self.folder.task is None else self.folder.task.name

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Names of the labels; None where unknown, or where the task has none."""
        recorded = recorded_labels(self.session.metadata, self.graph)
        return self.folder.labels if recorded is None else recorded or None

    @property
    def headless(self) -> bool:
        """Whether the graph has no head."""
        return self.session.outputs == HEADLESS_OUTPUTS

    @cached_property
    def interface(self) -> ModelInterface | None:
        """What the graph takes and gives, as recorded in it; None if it records nothing."""
        fields = recorded_object(self.session.metadata, "interface", self.graph)
        if fields is None:
            return None
        return ModelInterface.from_dict(
            {**fields, "inputs": self.session.inputs, "outputs": self.session.outputs}
        )


@dataclass(frozen=True)
class ServedSubject:
    """A model that a running server holds, of which it shows names, types and shapes.

    Attributes:
        session: The model, ready to be asked.
    """

    session: ServedModel
    tokenizer: None = None
    task: None = None
    interface: None = None

    @property
    def path(self) -> Address:
        """Where it is served."""
        return self.session.address

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Names of the labels; None where the server does not show them."""
        return self.session.facts.labels

    @property
    def headless(self) -> bool:
        """Whether the model has no head."""
        return self.session.outputs == HEADLESS_OUTPUTS


Subject = TorchSubject | OnnxSubject

#: What is judged may be on a server; what says what is right lies on a disk.
Candidate = Subject | ServedSubject


def _with_shortest(subject: TorchSubject) -> TorchSubject:
    """Find the shortest sequence a model of texts runs on, which no configuration says."""
    interface = subject.interface
    for length in _SHORTEST_SEQUENCES if interface.image is None else ():
        tried = replace(interface, shortest_sequence=length)
        try:
            subject.runner(interface.inputs).run(shortest_batch(tried).inputs)
        except CheckpointError:
            continue
        return replace(subject, interface=tried)
    return subject  # whatever it is that does not run will be said where it matters


def torch_subject(path: Path) -> TorchSubject:
    """Open a Hugging Face folder or a mixout checkpoint.

    Raises:
        CheckpointError: It cannot be loaded.
    """
    folder = open_artifact(path)
    if folder.kind == "onnx":
        raise CheckpointError(
            f"{path}: is an ONNX export, expected a Hugging Face folder or a mixout checkpoint"
        )
    model = load_plain(path, dtype=torch.float32)
    tokenizer = load_tokenizer(path)
    settle_pad_token(model, tokenizer)
    interface = describe_interface(model, folder.task, tokenizer)
    return _with_shortest(TorchSubject(path, folder, model, tokenizer, interface))


def onnx_subject(path: Path, *, provider: str = CPU_PROVIDER) -> OnnxSubject:
    """Open an ONNX folder or file.

    Raises:
        ArgumentError: No such provider.
        CheckpointError: The graph cannot be run.
    """
    folder = open_artifact(path)
    graph = path / LAYOUT.onnx if path.is_dir() else path
    tokenizer = load_tokenizer(graph.parent)
    return OnnxSubject(
        path, folder, graph, open_graph(graph, provider=provider), tokenizer, provider
    )


def served_subject(
    address: Address, options: ServingOptions, *, reference: Subject
) -> ServedSubject:
    """Ask a server for a model.

    Args:
        address: Where it is served.
        options: How to ask.
        reference: What it will be compared with.

    Raises:
        ArgumentError: An option is outside its domain.
        ServerError: The server cannot be reached, has no such model, or says what cannot be read.
    """
    named = reference.interface if isinstance(reference, TorchSubject) else reference.session
    session = open_served(address, options, inputs=named.inputs, outputs=named.outputs)
    return ServedSubject(session)


def open_subject(path: Path, *, provider: str = CPU_PROVIDER) -> Subject:
    """Open whatever a path holds.

    Args:
        path: A mixout checkpoint, a Hugging Face folder, an ONNX folder or an `.onnx` file.
        provider: onnxruntime's execution provider, for a graph.

    Raises:
        ArgumentError: No such provider.
        CheckpointError: It cannot be opened.
    """
    if open_artifact(path).kind == "onnx":
        return onnx_subject(path, provider=provider)
    return torch_subject(path)


def _differentiable(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return a model's parameters and floating-point buffers by name."""
    named = chain(
        model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)
    )
    return {key: value for key, value in named if value.is_floating_point()}


def unused_tensors(subject: TorchSubject) -> Set[str]:
    """Return the keys on disk of what no output depends on, by differentiating once.

    Those are parameters, and buffers such as the decay from block to block of a model that reads
    texts of a single block.
    """
    model, interface = subject.model, subject.interface
    batch = smallest_batch(interface).inputs
    inputs = {name: torch.from_numpy(batch[name]) for name in interface.inputs}
    wanted = _differentiable(model)
    frozen = [value for value in wanted.values() if not value.requires_grad]
    try:
        for value in frozen:
            value.requires_grad_(True)
        with torch.enable_grad():
            outputs = model(**inputs, return_dict=True)
            total = torch.stack([outputs[name].sum() for name in interface.outputs]).sum()
            gradients = torch.autograd.grad(total, list(wanted.values()), allow_unused=True)
    finally:
        for value in frozen:
            value.requires_grad_(False)
    unused = {key for key, gradient in zip(wanted, gradients, strict=True) if gradient is None}
    keys = disk_keys(model)
    return {keys[key] for key in unused & keys.keys()}
