"""Export a plain model to an ONNX graph with dynamic batch and sequence sizes."""

import ast
import logging
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from onnxscript.optimizer import optimize_ir
from torch import Tensor, nn
from transformers import PreTrainedModel

from mixout_export.checkpoint.interface import ModelInterface
from mixout_export.errors import ExportError
from mixout_export.export.opset import LOWEST_CAPTURED, check_opset, lower_to
from mixout_export.export.tracing import traceable
from mixout_export.export.transformers_exporter import capture_with_transformers
from mixout_export.quiet import quiet_libraries
from mixout_export.runners.torch_runner import forward_options

logger = logging.getLogger(__name__)

#: Sizes of the example input that the graph is captured with. They are primes so that no other
#: size in the model equals them by accident.
EXAMPLE_BATCH, EXAMPLE_CHOICES, EXAMPLE_LENGTH = 3, 5, 11

#: Prefix that the wrapper module adds to every name in the model.
_PREFIX = "model."

#: Operators that move a weight's values without changing them.
_LAYOUT_CHANGES = frozenset({"Transpose", "Identity"})

#: Messages with which PyTorch rejects code that fixes the size of an axis, or that takes another
#: path for small sizes, and our explanation of each.
_SIZE_REASONS = {
    re.compile(
        r"Not all values of (?P<axis>\w+) = .* guard (?P<size>\d+) <= .* and .* <= (?P=size)$"
    ): (
        "its code depends on the size of {axis}, so a graph captured at size {size} would be "
        "wrong for every other size"
    ),
    re.compile(r"Not all values of (?P<axis>\w+) = .* guard (?P<size>\d+) <= "): (
        "its code takes another path for small sizes of {axis}, so the graph would be right only "
        "from size {size} up"
    ),
    re.compile(r"Specializations unexpectedly required \((?P<axis>\w+)\)"): (
        "its code depends on the size of {axis}, so the graph would be right only for some sizes"
    ),
}

_NAME_SCOPES = "pkg.torch.onnx.name_scopes"

#: Capturing runs the model's own `forward` with symbolic sizes, so it can raise any of these.
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
        model: The graph. Its initializers are the model's own tensors, not copies.
        modules_by_node: Node name → qualified name of the module whose `forward` created the
            node; "" if no module did.
        opset: The ONNX operator set that it was captured with.
    """

    model: ir.Model
    modules_by_node: dict[str, str]
    opset: int


class _PositionalModel(nn.Module):
    """Wrap a model so that it takes positional inputs and returns a tuple."""

    def __init__(self, model: PreTrainedModel, interface: ModelInterface) -> None:
        super().__init__()
        self.model = model
        self._interface = interface
        self._options = forward_options(model)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run the model. Inputs and outputs are in the interface's order."""
        named = dict(zip(self._interface.inputs, inputs, strict=True))
        outputs = self.model(**named, **self._options)
        return tuple(outputs[name] for name in self._interface.outputs)


def _example(interface: ModelInterface) -> tuple[Tensor, ...]:
    """Return one small valid batch in the interface's order.

    For texts, the values are int64 and the last row is padded. For images, they are float32.
    """
    if interface.image is not None:
        return (torch.zeros(EXAMPLE_BATCH, *interface.image),)
    length = min(EXAMPLE_LENGTH, interface.sequence_limit or EXAMPLE_LENGTH)
    shape = (EXAMPLE_BATCH, EXAMPLE_CHOICES) if interface.choices else (EXAMPLE_BATCH,)
    pad = interface.pad_token_id or 0
    ids = torch.arange(length).expand(*shape, length) % interface.vocabulary_size
    taken = (pad, interface.final_token_id)
    replacement = next((i for i in range(interface.vocabulary_size) if i not in taken), 0)
    for token in taken:
        ids = ids if token is None else torch.where(ids == token, replacement, ids)
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
    """Return the dynamic axes that all inputs have, as axis → `torch.export.Dim`."""
    axes: dict[int, Any] = {0: torch.export.Dim("batch", min=1)}
    if interface.image is not None:
        return axes  # a vision transformer's position table fixes the image size
    if interface.choices:
        axes[1] = torch.export.Dim("choice", min=1)
    axes[len(axes)] = torch.export.Dim("sequence", min=1, max=interface.sequence_limit)
    return axes


def _reason(error: BaseException) -> str:
    """Return the message of the innermost cause as one line."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [line.strip(" -.") for line in str(cause).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].startswith("Constraints violated"):
        lines = lines[1:]
    for pattern, explanation in _SIZE_REASONS.items():
        found = pattern.search(lines[0]) if lines else None
        if found is not None:
            return explanation.format(**found.groupdict())
    return f"{type(cause).__name__}: {lines[0]}" if lines else type(cause).__name__


def _remedy(interface: ModelInterface) -> str:
    if interface.pad_token_id is not None:
        return ""
    return (
        ". config.json has no pad_token_id, but a decoder's classifier needs one to read batches; "
        "set it, for example to the value of eos_token_id"
    )


def modules_by_node(model: ir.Model, modules: Set[str], *, prefix: str = _PREFIX) -> dict[str, str]:
    """Return the name of the module that created each node, "" where no module did.

    The exporter records the nested scopes of each node. Their names start with `prefix`.
    """
    found: dict[str, str] = {}
    for node in model.graph:
        scopes = ast.literal_eval(node.metadata_props.get(_NAME_SCOPES, "[]"))
        names = (scope.removeprefix(prefix) for scope in reversed(scopes))
        found[node.name or ""] = next((name for name in names if name in modules), "")
    return found


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
        module: The module to capture, in evaluation mode.
        example: Example inputs, by position.
        dynamic_shapes: Dynamic axes of the inputs, as `torch.export.export` takes them.
        name: Name of the module in error messages.
        inputs: Names for the graph's inputs.
        outputs: Names for the graph's outputs.
        opset: ONNX operator set version.
        remedy: Advice that is appended to the error message if capturing fails.

    Raises:
        ExportError: The module cannot be captured, or an operation has no ONNX operator.
    """
    with quiet_libraries(), torch.no_grad():
        try:
            program = torch.export.export(
                module,
                example,
                dynamic_shapes=dynamic_shapes,
                strict=False,
                # A guard such as "sequence - 1 != 1" would forbid lengths that the graph can run.
                # The comparison with the model tests whether it computes them correctly.
                prefer_deferred_runtime_asserts_over_guards=True,
            )
        except _CAPTURE_ERRORS as error:
            raise ExportError(
                f"{name}: cannot be exported with dynamic batch and sequence sizes: "
                f"{_reason(error)}{remedy}"
            ) from error
        try:
            exported = torch.onnx.export(
                program,
                example,
                dynamo=True,
                opset_version=max(opset, LOWEST_CAPTURED),
                input_names=list(inputs),
                output_names=list(outputs),
                verbose=False,
                optimize=False,  # `_finish` does it without changing weights
            )
        except _CAPTURE_ERRORS as error:
            raise ExportError(
                f"{name}: cannot be written with opset {opset}: {_reason(error)}"
            ) from error
    if exported is None:
        raise ExportError(f"{name}: torch.onnx.export returned no graph")
    _finish(exported.model, module.state_dict().keys(), opset)
    return exported.model


def _finish(model: ir.Model, parameters: Set[str], opset: int) -> None:
    """Fold constants, and write the operators of the wanted set, in place."""
    _optimize(model, parameters)
    if opset < LOWEST_CAPTURED:
        lower_to(model, opset)


def _optimize(model: ir.Model, parameters: Set[str]) -> None:
    """Fold constants in place, but keep each weight as its own initializer.

    A norm may scale by `1 + weight`. If that sum were folded, the weight would no longer be in the
    graph, and it could not be compared with the model's. Changes of layout are folded because they
    keep every value. What they make is still a weight: Swin looks up rows of such a table.
    """
    weights = set(parameters)

    def should_fold(node: ir.Node) -> bool | None:
        if not any(value is not None and value.name in weights for value in node.inputs):
            return None
        if node.op_type not in _LAYOUT_CHANGES:
            return False
        weights.update(value.name for value in node.outputs if value.name is not None)
        return None

    with _batch_norms_apart(model):
        optimize_ir(model, should_fold=should_fold)


@contextmanager
def _batch_norms_apart(model: ir.Model) -> Iterator[None]:
    """Keep the optimizer from multiplying a batch normalization into the weight before it.

    The weight would no longer be in the graph. Runtimes do it when they load the graph. The
    optimizer leaves a normalization alone whose scale is also an input of the graph. A scale that
    the graph computes cannot be one. BiT standardizes its weights that way.
    """
    inputs, stored = model.graph.inputs, model.graph.initializers
    norms = [node for node in model.graph if node.op_type == "BatchNormalization"]
    names = {value.name for node in norms if (value := node.inputs[1]) is not None}
    scales = [value for name, value in stored.items() if name in names]
    before = len(inputs)
    inputs.extend(scales)
    try:
        yield
    finally:
        del inputs[before:]


def rename_values(
    model: ir.Model,
    axes: Sequence[Mapping[int, str]],
    *,
    default: str | None = None,
    prefix: str = _PREFIX,
) -> None:
    """Name weights as in the checkpoint and give dynamic axes readable names, in place.

    `axes` maps each input's axes to their names, and `default` is for axes that no input has.
    `prefix` is removed from the weights' names.
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
    """Export a plain model, which is put in evaluation mode, to an ONNX graph in memory.

    Raises:
        ArgumentError: The opset is not supported.
        ExportError: The model cannot be captured, or an operation has no ONNX operator.
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
        found = capture_with_transformers(
            model,
            named_inputs,
            axes,
            outputs=interface.outputs,
            opset=max(opset, LOWEST_CAPTURED),
        )
        if found is None:
            raise
        graph, prefix = found, ""
        _finish(graph, set(graph.graph.initializers), opset)
        logger.info("%s: exported with transformers' own exporter", type(model).__name__)
    modules = modules_by_node(graph, dict(model.named_modules()).keys(), prefix=prefix)
    named = {axis: str(dim.__name__) for axis, dim in axes.items()}
    rename_values(graph, [named for _ in example], prefix=prefix)
    return ExportedGraph(model=graph, modules_by_node=modules, opset=opset)
