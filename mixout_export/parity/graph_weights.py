"""Account for every weight of a folder among an ONNX graph's constants, by hash.

An exporter renames weights, transposes those of linear layers and drops biases that are all
zero, so keys say nothing; the bytes do. A tensor is found if a constant of the graph has the
hash of its values, as they are, transposed, or rounded to a dtype that the graph uses.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Set
from pathlib import Path

import onnx_ir as ir
import torch
from torch import Tensor

from mixout_export.checkpoint.model import tensor_of
from mixout_export.checkpoint.tensors import FLOATING, TensorEntry
from mixout_export.errors import CheckpointError
from mixout_export.parity.weights import WeightAudit, WeightProblem

#: Floating-point dtypes a graph may hold weights in.
_GRAPH_DTYPES = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.DOUBLE: torch.float64,
}

_SHORT = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}

#: A graph's constants of fewer elements than this are not worth listing.
_SMALL_CONSTANT = 64


def _hash(raw: bytes | memoryview) -> str:
    return hashlib.sha256(raw).hexdigest()


def _hash_tensor(tensor: Tensor) -> str:
    return _hash(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)


class GraphConstants:
    """The constants of an ONNX graph, by the hash of their bytes."""

    def __init__(self, path: Path) -> None:
        """Read the graph's initializers and constant nodes.

        Raises:
            CheckpointError: The file cannot be read, or its external data is missing.
        """
        self.names: dict[str, list[str]] = {}
        self.sizes: dict[str, int] = {}
        self.dtypes: set[ir.DataType] = set()
        try:
            for name, tensor in _constants(ir.load(path)):
                self.dtypes.add(tensor.dtype)
                self.names.setdefault(_hash(tensor.tobytes()), []).append(name)
                if tensor.dtype in _GRAPH_DTYPES:
                    self.sizes[name] = tensor.size
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{path}: the graph's weights cannot be read ({error}); export it again"
            ) from error

    @property
    def float_dtypes(self) -> list[torch.dtype]:
        """The floating-point dtypes among the constants, widest first."""
        found = [_GRAPH_DTYPES[dtype] for dtype in self.dtypes if dtype in _GRAPH_DTYPES]
        return sorted(found, key=lambda dtype: (-dtype.itemsize, str(dtype)))


def _constants(model: ir.Model) -> Iterator[tuple[str, ir.TensorProtocol]]:
    """Yield the name and value of every initializer and constant attribute, subgraphs too."""
    for graph in model.graphs():
        for name, value in graph.initializers.items():
            if value.const_value is not None:
                yield name, value.const_value
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                yield node.name or node.outputs[0].name or "", attribute.as_tensor()


def _find(entry: TensorEntry, constants: GraphConstants) -> tuple[str, str] | None:
    """Return how a tensor was found and the hash that found it; None if it was not."""
    if entry.dtype not in FLOATING:
        digest = _hash(entry.read())
        return ("direct", digest) if digest in constants.names else None
    stored = tensor_of(entry)
    for dtype in constants.float_dtypes:
        value = stored.to(dtype)
        suffix = f", rounded to {_SHORT[dtype]}" if dtype.itemsize < stored.element_size() else ""
        digest = _hash_tensor(value)
        if digest in constants.names:
            return f"direct{suffix}", digest
        if value.ndim == 2:
            digest = _hash_tensor(value.T)
            if digest in constants.names:
                return f"transposed{suffix}", digest
    return None


def _unexplained(
    tensors: Mapping[str, TensorEntry], constants: GraphConstants, used: Set[str]
) -> set[str]:
    """Return the floating-point constants, scalars aside, that are no tensor in any form.

    An output embedding tied to the input's lies in the graph both ways, so the transposes of
    tensors that were found as they are count too.
    """
    left = {name for name, size in constants.sizes.items() if name not in used and size > 1}
    sizes = {constants.sizes[name] for name in left}
    for entry in tensors.values():
        if len(entry.shape) == 2 and math.prod(entry.shape) in sizes:
            stored = tensor_of(entry)
            for dtype in constants.float_dtypes:
                left.difference_update(constants.names.get(_hash_tensor(stored.to(dtype).T), ()))
    return left


def _explain_absence(
    absent: Mapping[str, TensorEntry], parameters: Set[str], unused: Callable[[], Set[str]]
) -> dict[str, str]:
    """Return the reasons why tensors may be absent from a graph, where there are any."""
    reasons = {key: "no parameter of the architecture" for key in absent if key not in parameters}
    if absent.keys() - reasons:
        idle = unused()
        reasons |= {
            key: "no output depends on it" for key in absent if key in idle and key not in reasons
        }
    return reasons


def audit_graph(
    tensors: Mapping[str, TensorEntry],
    graph: Path,
    *,
    parameters: Set[str],
    unused: Callable[[], Set[str]],
) -> WeightAudit:
    """Look for every tensor of a folder among a graph's constants.

    Args:
        tensors: The folder's tensors, without anchors.
        graph: The `.onnx` file.
        parameters: Keys of the loaded model's `state_dict()`.
        unused: Gives the parameters that no output depends on; called only if something is
            missing.

    Returns:
        The audit. Found "direct", "transposed" (either also "rounded"), or "zero": not there
        because adding zero changes nothing.
    """
    constants = GraphConstants(graph)
    counts: Counter[str] = Counter()
    used: set[str] = set()
    absent: dict[str, TensorEntry] = {}
    for key, entry in tensors.items():
        found = _find(entry, constants)
        if found is None:
            absent[key] = entry
        else:
            counts[found[0]] += 1
            used.update(constants.names[found[1]])
    unexplained = _unexplained(tensors, constants, used)
    # a zero bias is dropped, unless the graph has a constant of its size that is not zero
    sizes = {constants.sizes[name] for name in unexplained}
    zero = {
        key
        for key, entry in absent.items()
        if math.prod(entry.shape) not in sizes and not any(map(any, entry.chunks()))
    }
    absent = {key: entry for key, entry in absent.items() if key not in zero}
    counts["zero"] = len(zero)
    ignored = _explain_absence(absent, parameters, unused)
    return WeightAudit(
        total=len(tensors),
        counts=dict(sorted((+counts).items())),
        problems=tuple(
            WeightProblem(key, "is not among the graph's constants")
            for key in absent
            if key not in ignored
        ),
        ignored=dict(sorted(ignored.items())),
        extra=tuple(sorted(n for n in unexplained if constants.sizes[n] >= _SMALL_CONSTANT)),
    )


def audit_graphs(reference: Path, candidate: Path) -> WeightAudit:
    """Look for every floating-point constant of one graph in another, by hash."""
    ours, theirs = GraphConstants(reference), GraphConstants(candidate)
    names = [
        (name, digest)
        for digest, names in ours.names.items()
        for name in names
        if name in ours.sizes
    ]
    problems = [
        WeightProblem(name, "is not among the candidate's constants")
        for name, digest in names
        if digest not in theirs.names
    ]
    return WeightAudit(
        total=len(names),
        counts={"direct": len(names) - len(problems)},
        problems=tuple(problems),
    )
