"""Capture a plain model as an ONNX graph with dynamic batch and sequence."""

import ast
import logging
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from onnxscript.optimizer import optimize_ir
from torch import Tensor, nn
from transformers import PreTrainedModel

from mixout_export.checkpoint.interface import ModelInterface, forward_options
from mixout_export.errors import ArgumentError, ExportError
from mixout_export.export.patched import capture_patched
from mixout_export.export.tracing import traceable
from mixout_export.quiet import quiet_libraries

logger = logging.getLogger(__name__)

#: Operator sets that can be written.
OPSETS = range(18, 24)

#: Shape of the example the graph is captured with: primes, so that no other size equals them.
EXAMPLE_BATCH, EXAMPLE_CHOICES, EXAMPLE_LENGTH = 3, 5, 11

#: What the wrapper puts before every name of the model's own.
_PREFIX = "model."

#: Operators that move a weight's values without changing them.
_LAYOUT_CHANGES = frozenset({"Transpose", "Identity"})

#: What PyTorch says where a model's code makes an axis a constant, or differs for small ones, and
#: what that means.
_SIZE_REASONS = {
    re.compile(
        r"Not all values of (?P<axis>\w+) = .* guard (?P<size>\d+) <= .* and .* <= (?P=size)$"
    ): "its code depends on the size of {axis}, so a graph of {size} would hold for no other",
    re.compile(
        r"Not all values of (?P<axis>\w+) = .* guard (?P<size>\d+) <= "
    ): "its code differs for small sizes of {axis}, so a graph would hold from {size} on only",
    re.compile(
        r"Specializations unexpectedly required \((?P<axis>\w+)\)"
    ): "its code depends on the size of {axis}, so a graph would hold for few of them",
}

_NAME_SCOPES = "pkg.torch.onnx.name_scopes"

#: Capturing runs the model's own forward, so it fails with whatever that raises on symbolic sizes.
_CAPTURE_ERRORS = (
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    LookupError,
    ArithmeticError,
)


@dataclass(frozen=True)
class ExportedGraph:
    """An ONNX graph in memory.

    Attributes:
        model: The graph; its initializers are the model's own tensors, not copies.
        modules_by_node: For each node, the qualified name of the module whose forward made it
            ("" where none did).
        opset: The ONNX operator set version.
    """

    model: ir.Model
    modules_by_node: dict[str, str]
    opset: int


class _PositionalModel(nn.Module):
    """A model called with positional inputs that returns its outputs as a tuple."""

    def __init__(self, model: PreTrainedModel, interface: ModelInterface) -> None:
        super().__init__()
        self.model = model
        self._interface = interface
        self._options = forward_options(model)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run the model on inputs in the interface's order -> outputs in the interface's order."""
        named = dict(zip(self._interface.inputs, inputs, strict=True))
        outputs = self.model(**named, **self._options)
        return tuple(outputs[name] for name in self._interface.outputs)


def _example(interface: ModelInterface) -> tuple[Tensor, ...]:
    """Return one small valid batch, int64, in the interface's order; its last row is padded.

    Of a model of images, it is a few images, float32.
    """
    if interface.image is not None:
        return (torch.zeros(EXAMPLE_BATCH, *interface.image),)
    length = min(EXAMPLE_LENGTH, interface.sequence_limit or EXAMPLE_LENGTH)
    shape = (EXAMPLE_BATCH, EXAMPLE_CHOICES) if interface.choices else (EXAMPLE_BATCH,)
    pad = interface.pad_token_id or 0
    ids = torch.arange(length).expand(*shape, length) % interface.vocabulary_size
    taken = (pad, interface.final_token_id)
    ordinary = next((i for i in range(interface.vocabulary_size) if i not in taken), 0)
    for token in taken:
        ids = ids if token is None else torch.where(ids == token, ordinary, ids)
    mask = torch.ones_like(ids)
    if interface.final_token_id is not None:
        ids[..., -1] = interface.final_token_id
        ids[-1, ..., -2:-1] = interface.final_token_id
    if length > 1:
        mask[-1, ..., -1] = 0
        ids[-1, ..., -1] = pad
    made = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    return tuple(made[name] for name in interface.inputs)


def _axes(interface: ModelInterface) -> dict[int, Any]:
    """Return the dynamic axes that every input shares, as `torch.export.Dim`s."""
    axes: dict[int, Any] = {0: torch.export.Dim("batch", min=1)}
    if interface.image is not None:
        return axes  # a vision transformer has a position for each patch of one size of image
    if interface.choices:
        axes[1] = torch.export.Dim("choice", min=1)
    axes[len(axes)] = torch.export.Dim("sequence", min=1, max=interface.sequence_limit)
    return axes


def _reason(error: BaseException) -> str:
    """Return what the innermost cause says, as one line."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [line.strip(" -.") for line in str(cause).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].startswith("Constraints violated"):
        lines = lines[1:]
    for pattern, says in _SIZE_REASONS.items():
        found = pattern.search(lines[0]) if lines else None
        if found is not None:
            return says.format(**found.groupdict())
    return f"{type(cause).__name__}: {lines[0]}" if lines else type(cause).__name__


def _remedy(interface: ModelInterface) -> str:
    if interface.pad_token_id is not None:
        return ""
    return (
        "; config.json has no pad_token_id, which a decoder's classifier needs for batches: set "
        "it, to the eos_token_id for instance"
    )


def modules_by_node(model: ir.Model, modules: Set[str], *, prefix: str = _PREFIX) -> dict[str, str]:
    """Read which module made each node, from the nested scopes that the exporter recorded."""
    found: dict[str, str] = {}
    for node in model.graph:
        scopes = ast.literal_eval(node.metadata_props.get(_NAME_SCOPES, "[]"))
        names = (scope.removeprefix(prefix) for scope in reversed(scopes))
        found[node.name or ""] = next((name for name in names if name in modules), "")
    return found


def check_opset(opset: int) -> None:
    """Refuse an operator set that the exporter cannot write.

    Raises:
        ArgumentError: It is outside `OPSETS`.
    """
    if opset not in OPSETS:
        raise ArgumentError(f"opset: got {opset!r}, expected {OPSETS.start} to {OPSETS.stop - 1}")


def capture(
    module: nn.Module,
    example: tuple[Any, ...],
    dynamic_shapes: Any,
    *,
    name: str,
    inputs: Sequence[str],
    outputs: Sequence[str],
    opset: int,
    remedy: str = "",
) -> ir.Model:
    """Capture a module as an ONNX graph.

    Args:
        module: What to capture, in evaluation mode.
        example: Positional inputs.
        dynamic_shapes: Their dynamic axes, as `torch.export.export` takes them.
        name: What to call the module in messages.
        inputs: Names of the graph's inputs.
        outputs: Names of its outputs.
        opset: ONNX operator set version.
        remedy: What may help where the module cannot be captured, for the message.

    Raises:
        ExportError: The module cannot be captured, or an operator has no ONNX counterpart.
    """
    with quiet_libraries(), torch.no_grad():
        try:
            program = torch.export.export(
                module,
                example,
                dynamic_shapes=dynamic_shapes,
                strict=False,
                # a guard like "sequence - 1 != 1" would forbid lengths that the graph can run;
                # whether it runs them right is for the comparison to say
                prefer_deferred_runtime_asserts_over_guards=True,
            )
        except _CAPTURE_ERRORS as error:
            raise ExportError(
                f"{name}: cannot be captured with dynamic batch and sequence "
                f"({_reason(error)}){remedy}"
            ) from error
        try:
            exported = torch.onnx.export(
                program,
                example,
                dynamo=True,
                opset_version=opset,
                input_names=list(inputs),
                output_names=list(outputs),
                verbose=False,
                optimize=False,  # below, with the weights kept
            )
        except _CAPTURE_ERRORS as error:
            raise ExportError(
                f"{name}: cannot be written at opset {opset} ({_reason(error)})"
            ) from error
    if exported is None:
        raise ExportError(f"{name}: the exporter returned no graph")
    _optimize(exported.model, module.state_dict().keys())
    return exported.model


def _optimize(model: ir.Model, parameters: Set[str]) -> None:
    """Fold constants in place, but leave each weight its own initializer.

    A norm that scales by `1 + weight` would otherwise lose its weight to the sum, and nothing
    could find it in the graph again. Changes of layout are folded, as they keep every value.
    """

    def should_fold(node: ir.Node) -> bool | None:
        takes_weight = any(value is not None and value.name in parameters for value in node.inputs)
        return False if takes_weight and node.op_type not in _LAYOUT_CHANGES else None

    optimize_ir(model, should_fold=should_fold)


def rename_values(
    model: ir.Model,
    axes: Sequence[Mapping[int, str]],
    *,
    default: str | None = None,
    prefix: str = _PREFIX,
) -> None:
    """Give weights their names in the checkpoint and dynamic axes readable ones, in place.

    Args:
        model: The graph.
        axes: For each input, axis → name.
        default: Name of axes that are none of an input's.
        prefix: What stands before every weight's name.
    """
    for name in list(model.graph.initializers):
        value = model.graph.initializers.pop(name)
        value.name = name.removeprefix(prefix)
        model.graph.initializers[value.name] = value
    names: dict[str, str] = {}
    for value, named in zip(model.graph.inputs, axes, strict=True):
        if value.shape is not None:
            names |= {str(value.shape[axis]): name for axis, name in named.items()}
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.shape is not None:
            value.shape = ir.Shape(
                [
                    dim if isinstance(dim, int) else names.get(str(dim), default)
                    for dim in value.shape
                ]
            )


def export_graph(
    model: PreTrainedModel, interface: ModelInterface, *, opset: int = 20
) -> ExportedGraph:
    """Capture `model` as an ONNX graph.

    Args:
        model: A plain model; it is put in evaluation mode.
        interface: Its inputs and outputs.
        opset: ONNX operator set version.

    Raises:
        ArgumentError: The opset is not supported.
        ExportError: The model cannot be captured, or an operator has no ONNX counterpart.
    """
    check_opset(opset)
    example, axes = _example(interface), _axes(interface)
    prefix = _PREFIX
    try:
        with traceable(model):
            graph = capture(
                _PositionalModel(model, interface).eval(),
                example,
                (tuple(axes for _ in example),),
                name=type(model).__name__,
                inputs=interface.inputs,
                outputs=interface.outputs,
                opset=opset,
                remedy=_remedy(interface),
            )
    except ExportError:
        named_inputs = dict(zip(interface.inputs, example, strict=True))
        found = capture_patched(model, named_inputs, axes, outputs=interface.outputs, opset=opset)
        if found is None:
            raise
        graph, prefix = found, ""
        _optimize(graph, set(graph.graph.initializers))
        logger.info("%s: exported with transformers' own patches", type(model).__name__)
    modules = modules_by_node(graph, dict(model.named_modules()).keys(), prefix=prefix)
    named = {axis: str(dim.__name__) for axis, dim in axes.items()}
    rename_values(graph, [named for _ in example], prefix=prefix)
    return ExportedGraph(model=graph, modules_by_node=modules, opset=opset)
