"""Account for every weight of a folder among an ONNX graph's constants, by hash.

An exporter renames weights, transposes those of linear layers and drops biases that are all
zero, so keys say nothing; the bytes do. A tensor is found if a constant of the graph has the
hash of its values, as they are, transposed, or rounded to a dtype that the graph uses. The hash is
a quick one, and what it finds is compared byte by byte, so nothing can be made to look the same.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
import xxhash
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


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


class GraphConstants:
    """The constants of an ONNX graph, found by their bytes."""

    def __init__(self, path: Path) -> None:
        """Read the graph's initializers and constant nodes.

        Raises:
            CheckpointError: The file cannot be read, or its external data is missing.
        """
        self._path = path
        self._same_length: dict[int, list[tuple[str, ir.TensorProtocol]]] = {}
        self._by_hash: dict[int, dict[bytes, list[tuple[str, ir.TensorProtocol]]]] = {}
        self.sizes: dict[str, int] = {}
        self.dtypes: set[ir.DataType] = set()
        with self._reading():
            for name, tensor in _constants(ir.load(path)):
                self.dtypes.add(tensor.dtype)
                self._same_length.setdefault(tensor.nbytes, []).append((name, tensor))
                if tensor.dtype in _GRAPH_DTYPES:
                    self.sizes[name] = tensor.size

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{self._path}: the graph's weights cannot be read ({error}); export it again"
            ) from error

    def may_hold(self, nbytes: int) -> bool:
        """Tell whether any constant has that many bytes."""
        return nbytes in self._same_length

    def find(self, raw: memoryview) -> tuple[str, ...]:
        """Return the names of the constants with exactly these bytes.

        Raises:
            CheckpointError: The graph's external data cannot be read.
        """
        if not self.may_hold(raw.nbytes):
            return ()
        with self._reading():
            found = self._hashed(raw.nbytes).get(xxhash.xxh3_128_digest(raw), ())
            wanted = np.frombuffer(raw, np.uint8)  # compares faster than a memoryview does
            return tuple(
                name
                for name, tensor in found
                if np.array_equal(wanted, np.frombuffer(tensor.tobytes(), np.uint8))
            )

    def _hashed(self, nbytes: int) -> dict[bytes, list[tuple[str, ir.TensorProtocol]]]:
        """Return the constants of one length by their hash, computed when first asked for."""
        if nbytes not in self._by_hash:
            hashed = self._by_hash[nbytes] = {}
            for name, tensor in self._same_length[nbytes]:
                digest = xxhash.xxh3_128_digest(tensor.tobytes())
                hashed.setdefault(digest, []).append((name, tensor))
        return self._by_hash[nbytes]

    def floating(self) -> Iterator[tuple[str, memoryview]]:
        """Yield the name and the bytes of every floating-point constant."""
        for constants in self._same_length.values():
            for name, tensor in constants:
                if name in self.sizes:
                    with self._reading():
                        raw = memoryview(tensor.tobytes())
                    yield name, raw

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


def _find(entry: TensorEntry, constants: GraphConstants) -> tuple[str, tuple[str, ...]] | None:
    """Return how a tensor was found and the constants that hold it; None if it was not."""
    if entry.dtype not in FLOATING:
        names = constants.find(memoryview(entry.read())) if constants.may_hold(entry.nbytes) else ()
        return ("direct", names) if names else None
    size = math.prod(entry.shape)
    dtypes = [d for d in constants.float_dtypes if constants.may_hold(size * d.itemsize)]
    if not dtypes:
        return None
    stored = tensor_of(entry)
    for dtype in dtypes:
        value = stored.to(dtype)
        suffix = f", rounded to {_SHORT[dtype]}" if dtype.itemsize < stored.element_size() else ""
        if names := constants.find(_bytes_of(value)):
            return f"direct{suffix}", names
        if value.ndim == 2 and (names := constants.find(_bytes_of(value.T))):
            return f"transposed{suffix}", names
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
                left.difference_update(constants.find(_bytes_of(stored.to(dtype).T)))
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
        parameters: Keys on disk of what the loaded model has.
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
            used.update(found[1])
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
    missing = {name: not theirs.find(raw) for name, raw in ours.floating()}
    problems = [
        WeightProblem(name, "is not among the candidate's constants")
        for name, absent in missing.items()
        if absent
    ]
    return WeightAudit(
        total=len(missing),
        counts={"direct": len(missing) - len(problems)},
        problems=tuple(problems),
    )
