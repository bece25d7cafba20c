"""Find every weight of a checkpoint among an ONNX graph's constants.

Names do not help: an exporter renames weights, transposes those of linear layers, and drops biases
that are all zero. So the search compares values. A weight is found if a constant has the same
bytes, either directly, or transposed, or rounded to a dtype that the graph uses. A fast hash
selects candidates, and their bytes are then compared. For int8 constants, every value must be
within half a quantization step of the weight.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
import xxhash
from torch import Tensor

from mixout_export.checkpoint.torch_tensors import tensor_of
from mixout_export.errors import CheckpointError
from mixout_export.files.tensors import FLOATING, TensorEntry
from mixout_export.parity.quantized_weights import QuantizedConstant, quantized_constants
from mixout_export.parity.weights import WeightAudit, WeightProblem

#: Floating-point dtypes that a graph may use for weights.
_GRAPH_DTYPES = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.DOUBLE: torch.float64,
}

_SHORT = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}

#: A quantized constant at least this many steps away is another weight, not a damaged copy.
_ANOTHER_WEIGHT = 16.0

#: Smallest number of elements of a constant that is listed as unexplained.
_SMALL_CONSTANT = 64


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


class GraphConstants:
    """The constants of an ONNX graph, which can be looked up by their bytes.

    Raises:
        CheckpointError: The file cannot be read, or its external data is missing.
    """

    def __init__(self, path: Path) -> None:
        """Read the graph's initializers and constant nodes."""
        self._path = path
        self._same_length: dict[int, list[tuple[str, ir.TensorProtocol]]] = {}
        self._by_hash: dict[int, dict[bytes, list[tuple[str, ir.TensorProtocol]]]] = {}
        self.sizes: dict[str, int] = {}
        self.dtypes: set[ir.DataType] = set()
        self.quantized: tuple[QuantizedConstant, ...] = ()
        with self._reading():
            model = ir.load(path)
            constants = list(_constants(model))
            self.quantized = quantized_constants(model, dict(constants))
            steps = {part for constant in self.quantized for part in constant.parts}
            for name, tensor in constants:
                self._same_length.setdefault(tensor.nbytes, []).append((name, tensor))
                if tensor.dtype in _GRAPH_DTYPES and name not in steps:
                    self.dtypes.add(tensor.dtype)
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
        """Return whether any constant has that many bytes."""
        return nbytes in self._same_length

    def find(self, raw: memoryview) -> tuple[str, ...]:
        """Return the names of the constants with exactly these bytes."""
        if not self.may_hold(raw.nbytes):
            return ()
        with self._reading():
            found = self._hashed(raw.nbytes).get(xxhash.xxh3_128_digest(raw), ())
            wanted = np.frombuffer(raw, np.uint8)  # NumPy compares faster than a memoryview
            return tuple(
                name
                for name, tensor in found
                if np.array_equal(wanted, np.frombuffer(tensor.tobytes(), np.uint8))
            )

    def _hashed(self, nbytes: int) -> dict[bytes, list[tuple[str, ir.TensorProtocol]]]:
        """Return hash → constants of one length in bytes. The hashes are computed once."""
        if nbytes not in self._by_hash:
            hashed = self._by_hash[nbytes] = {}
            for name, tensor in self._same_length[nbytes]:
                digest = xxhash.xxh3_128_digest(tensor.tobytes())
                hashed.setdefault(digest, []).append((name, tensor))
        return self._by_hash[nbytes]

    def floating(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the name and value of every floating-point constant."""
        for constants in self._same_length.values():
            for name, tensor in constants:
                if name in self.sizes:
                    with self._reading():
                        raw = bytearray(tensor.tobytes())
                    flat = torch.frombuffer(raw, dtype=_GRAPH_DTYPES[tensor.dtype])
                    yield name, flat.reshape(tuple(tensor.shape.numpy()))

    def quantized_as(self, size: int) -> list[QuantizedConstant]:
        """Return the quantized constants with that many elements."""
        return [constant for constant in self.quantized if constant.values.size == size]

    @property
    def coarseness(self) -> int:
        """How weights were rounded: 0 not at all, 1 to half precision, 2 to integers."""
        if self.quantized:
            return 2
        return int(any(dtype.itemsize < 4 for dtype in self.float_dtypes))

    @property
    def float_dtypes(self) -> list[torch.dtype]:
        """The floating-point dtypes of the constants, widest first."""
        found = [_GRAPH_DTYPES[dtype] for dtype in self.dtypes if dtype in _GRAPH_DTYPES]
        return sorted(found, key=lambda dtype: (-dtype.itemsize, str(dtype)))


def _constants(model: ir.Model) -> Iterator[tuple[str, ir.TensorProtocol]]:
    """Yield the name and value of every initializer and constant attribute, also in subgraphs."""
    for graph in model.graphs():
        for name, value in graph.initializers.items():
            if value.const_value is not None:
                yield name, value.const_value
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                yield node.name or node.outputs[0].name or "", attribute.as_tensor()


def _find(entry: TensorEntry, constants: GraphConstants) -> tuple[str, tuple[str, ...]] | None:
    """Return how a tensor was found and which constants hold it; None if it was not found."""
    if entry.dtype not in FLOATING:
        names = constants.find(memoryview(entry.read())) if constants.may_hold(entry.nbytes) else ()
        return ("direct", names) if names else None
    size = math.prod(entry.shape)
    lengths = (size * dtype.itemsize for dtype in constants.float_dtypes)
    if not constants.quantized_as(size) and not any(map(constants.may_hold, lengths)):
        return None
    return _find_values(tensor_of(entry), constants)


def _find_values(
    stored: Tensor, constants: GraphConstants, *, in_half: bool = False
) -> tuple[str, tuple[str, ...]] | None:
    """Return how values were found and which constants hold them; None if they were not found.

    `in_half` says that they were rounded to fp16 before.
    """
    for dtype in constants.float_dtypes:
        if not constants.may_hold(stored.numel() * dtype.itemsize):
            continue
        value = stored.to(dtype)
        suffix = f", rounded to {_SHORT[dtype]}" if dtype.itemsize < stored.element_size() else ""
        if names := constants.find(_bytes_of(value)):
            return f"direct{suffix}", names
        if value.ndim == 2 and (names := constants.find(_bytes_of(value.T))):
            return f"transposed{suffix}", names
    for constant in constants.quantized_as(stored.numel()):
        if (how := constant.holds(stored.float().numpy(), in_half=in_half)) is not None:
            return f"{how}, rounded to int8", (constant.name,)
    return None


def _unexplained(
    tensors: Mapping[str, TensorEntry], constants: GraphConstants, used: Set[str]
) -> set[str]:
    """Return the constants, except scalars, that are not a checkpoint tensor in any form.

    A graph may hold a tied embedding twice, directly and transposed. Tensors that were found
    directly are therefore also searched in transposed form.
    """
    left = {name for name, size in constants.sizes.items() if name not in used and size > 1}
    sizes = {constants.sizes[name] for name in left}
    for entry in tensors.values():
        if len(entry.shape) == 2 and math.prod(entry.shape) in sizes:
            stored = tensor_of(entry)
            for dtype in constants.float_dtypes:
                left.difference_update(constants.find(_bytes_of(stored.to(dtype).T)))
    return left | _unexplained_integers(tensors, constants, used)


def _unexplained_integers(
    tensors: Mapping[str, TensorEntry], constants: GraphConstants, used: Set[str]
) -> set[str]:
    """Return the quantized constants that are not a checkpoint tensor in any form."""
    left = {
        constant.name: constant for constant in constants.quantized if constant.name not in used
    }
    for entry in tensors.values():
        size = math.prod(entry.shape)
        if entry.dtype in FLOATING and any(size == other.values.size for other in left.values()):
            stored = tensor_of(entry).float().numpy()
            left = {name: other for name, other in left.items() if other.holds(stored) is None}
    return set(left)


def _missing(entry: TensorEntry, constants: GraphConstants, unexplained: Set[str]) -> WeightProblem:
    """Describe the problem with a tensor that was not found."""
    reason = "is not among the graph's constants"
    left = [c for c in constants.quantized_as(math.prod(entry.shape)) if c.name in unexplained]
    if not left or entry.dtype not in FLOATING:
        return WeightProblem(entry.key, reason)
    stored = tensor_of(entry).float().numpy()
    distance, nearest = min(
        (constant.distance(form), constant.name) for constant in left for form in (stored, stored.T)
    )
    if not math.isfinite(distance) or (len(left) > 1 and distance > _ANOTHER_WEIGHT):
        return WeightProblem(entry.key, reason)
    return WeightProblem(
        entry.key,
        f"is {distance:.3g} quantization steps from the graph's {nearest!r}, expected at most half "
        "a step",
    )


def audit_graph(
    tensors: Mapping[str, TensorEntry],
    graph: Path,
    *,
    parameters: Set[str],
    unused: Callable[[], Set[str]],
) -> WeightAudit:
    """Search every tensor of a checkpoint, without anchors, among a graph's constants.

    Tensors are found "direct" or "transposed", either of them also "rounded to …". "zero" counts
    tensors that are all zero, which an exporter may drop.

    Args:
        tensors: The checkpoint's tensors.
        graph: The `.onnx` file.
        parameters: Keys on disk of the loaded model's parameters.
        unused: Returns the parameters that no output depends on. It is called only if a tensor is
            missing.
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
    # A bias of zeros may be absent, unless the graph has an unexplained constant of its size.
    floating = [name for name in unexplained if name in constants.sizes]
    sizes = {constants.sizes[name] for name in floating}
    zero = {
        key
        for key, entry in absent.items()
        if math.prod(entry.shape) not in sizes and not any(map(any, entry.chunks()))
    }
    absent = {key: entry for key, entry in absent.items() if key not in zero}
    counts["zero"] = len(zero)
    ignored = {key: "no parameter of the architecture" for key in absent if key not in parameters}
    if absent.keys() - ignored:
        idle = absent.keys() & unused() - ignored.keys()
        ignored |= dict.fromkeys(idle, "no output depends on it")
    return WeightAudit(
        total=len(tensors),
        counts=dict(sorted((+counts).items())),
        problems=tuple(
            _missing(entry, constants, unexplained)
            for key, entry in absent.items()
            if key not in ignored
        ),
        ignored=dict(sorted(ignored.items())),
        extra=tuple(
            sorted(n for n in unexplained if constants.sizes.get(n, math.inf) >= _SMALL_CONSTANT)
        ),
    )


def _rounded_hashes(constants: GraphConstants, dtypes: Iterable[torch.dtype]) -> set[bytes]:
    """Return the hashes of a graph's constants, rounded to each narrower dtype."""
    return {
        xxhash.xxh3_128_digest(_bytes_of(value.to(dtype)))
        for dtype in dtypes
        for _, value in constants.floating()
        if dtype.itemsize < value.element_size()
    }


def audit_graphs(reference: Path, candidate: Path) -> WeightAudit:
    """Search every floating-point constant of one graph in another.

    If the reference was rounded more than the candidate, the candidate's constants are searched in
    the reference. An int8 graph keeps biases in fp32. So those of an fp16 graph are also compared
    with them after rounding.
    """
    ours, theirs = GraphConstants(reference), GraphConstants(candidate)
    where = "candidate"
    if ours.coarseness > theirs.coarseness:
        ours, theirs, where = theirs, ours, "reference"
    counts: Counter[str] = Counter()
    problems: list[WeightProblem] = []
    ignored: dict[str, str] = {}
    rounded = _rounded_hashes(theirs, ours.float_dtypes)
    for name, value in ours.floating():
        found = _find_values(value, theirs, in_half=value.dtype == torch.float16)
        if found is not None:
            counts[found[0]] += 1
        elif xxhash.xxh3_128_digest(_bytes_of(value)) in rounded:
            counts[f"direct, rounded to {_SHORT[value.dtype]}"] += 1
        elif value.ndim:
            problems.append(WeightProblem(name, f"is not among the {where}'s constants"))
        else:
            ignored[name] = "a scalar that may be part of an operator now"
    for constant in ours.quantized:
        if theirs.find(memoryview(constant.values.tobytes())):
            counts["direct"] += 1
        else:
            problems.append(WeightProblem(constant.name, f"is not among the {where}'s constants"))
    return WeightAudit(
        total=counts.total() + len(problems) + len(ignored),
        counts=dict(sorted(counts.items())),
        problems=tuple(problems),
        ignored=ignored,
    )
