"""Changed copies of an ONNX graph."""

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import uses_external_data

from mixout_export.artifacts.onnx_model import external_files
from mixout_export.checkpoint.artifact import Artifact
from mixout_export.files.graph_metadata import LABELS
from mixout_export.files.json_files import write_json
from mixout_export.files.layout import LAYOUT, is_tokenizer_file
from mixout_export.parity.self_test.faults import Array, NotApplicableError, Part, Role
from mixout_export.parity.self_test.folder_copy import link_beside, with_labels
from mixout_export.parity.self_test.graph_parts import Constant, GraphParts, LinearNode

_MASK = "attention_mask"


class GraphCopier:
    """Writes changed copies of a graph, into folders beside one another.

    A copy may lose its external data to the next one.
    """

    def __init__(self, artifact: Artifact, sequence_limit: int | None) -> None:
        """Take a graph. The longest sequence that it takes identifies its table of positions."""
        if artifact.graph is None:
            raise TypeError(f"{artifact.where} is no graph")
        self._artifact = artifact
        self._graph = artifact.graph
        self._limit = sequence_limit
        self._folder = artifact.graph.parent
        self._data_folder = self._folder
        self._found: dict[str, tuple[Constant, bool]] = {}  # name → constant, whether by rows

    def _read(self) -> onnx.ModelProto:
        return onnx.load(self._graph, load_external_data=False)

    def part(self, role: Role) -> Part:
        """Return the tensor with a role; see `Copier`."""
        parts = GraphParts(self._read().graph)
        if role in ("linear", "classifier"):
            layer = self._middle(parts) if role == "linear" else self._head(parts)
            constant, by_rows, label = layer.weight, layer.by_rows, layer.label
        else:
            bias = role == "classifier bias"
            constant = self._head_bias(parts) if bias else self._table(parts, role)
            by_rows, label = True, constant.name
        self._found[constant.name] = constant, by_rows
        value = self._value(parts, constant)
        value = value if by_rows else np.ascontiguousarray(value.T)
        return Part(constant.name, label, value, self._precision(parts, constant))

    def write(self, out: Path, values: Mapping[str, Array]) -> Path:
        """Write a copy with other values; see `Copier`."""
        model = self._read()
        parts = GraphParts(model.graph)
        for name, value in values.items():
            constant, by_rows = self._found[name]
            self._set_value(parts, constant, value if by_rows else value.T)
        return self._write(out, model)

    def write_without_bias(self, out: Path) -> tuple[Path, str]:
        """Write a copy without a bias and its addition; see `Copier`.

        The longest bias is taken. That of a key would not do: attention does not depend on it.
        """
        model = self._read()
        parts = GraphParts(model.graph)
        biases = [
            (layer, layer.bias.name, value)
            for layer in parts.linears
            if layer.bias is not None and (value := self._value(parts, layer.bias)).any()
        ]
        if not biases:
            raise NotApplicableError("its linear layers have no biases other than zero")
        layer, name, _ = max(biases, key=lambda bias: (bias[2].size, np.linalg.norm(bias[2])))
        layer.drop_bias()
        if not GraphParts(model.graph).users(name):
            model.graph.initializer.remove(parts.tensors[name])
        return self._write(out, model), name

    def write_with_epsilon(self, out: Path, choose: Callable[[float], float]) -> tuple[Path, str]:
        """Write a copy in which every normalization has another epsilon; see `Copier`."""
        model = self._read()
        found = list(GraphParts(model.graph).epsilons())
        if not found:
            raise NotApplicableError("it has no normalization with an epsilon")
        epsilon = min(epsilon for _, epsilon in found)
        for place, _ in found:
            if isinstance(place, TensorProto):
                old = numpy_helper.to_array(place)
                _replace(place, np.full(old.shape, choose(epsilon), old.dtype))
            else:
                place.f = choose(epsilon)
        return self._write(out, model), f"epsilon {epsilon:g} → {choose(epsilon):g}"

    def write_with_labels(self, out: Path, labels: Sequence[str]) -> Path:
        """Write a copy with other label names, in the graph and beside it; see `Copier`."""
        model = self._read()
        for entry in model.metadata_props:
            if entry.key == LABELS:
                entry.value = json.dumps(list(labels), ensure_ascii=False)
        out.mkdir()
        if self._artifact.config:
            write_json(out / LAYOUT.config, with_labels(self._artifact.config, labels))
        return self._write(out, model)

    def write_without_mask(self, out: Path) -> Path:
        """Write a copy that takes an attention mask and computes with ones; see `Copier`."""
        model = self._read()
        graph = model.graph
        kinds = {each.name: each.type.tensor_type.elem_type for each in graph.input}
        if _MASK not in kinds:
            raise NotApplicableError(f"it takes no {_MASK}")
        for node in graph.node:
            node.input[:] = ["every_token" if name == _MASK else name for name in node.input]
        one = helper.make_tensor("one", kinds[_MASK], [1], [1])
        ones = helper.make_node("ConstantOfShape", ["mask_shape"], ["every_token"], value=one)
        graph.node.insert(0, ones)
        graph.node.insert(0, helper.make_node("Shape", [_MASK], ["mask_shape"]))
        return self._write(out, model)

    def _write(self, out: Path, model: onnx.ModelProto) -> Path:
        out.mkdir(exist_ok=True)
        path = out / LAYOUT.onnx
        path.write_bytes(model.SerializeToString())
        self._bring_data(out, set(external_files(model)))
        for file in self._folder.iterdir():
            if file.name == LAYOUT.config or is_tokenizer_file(file.name):
                link_beside(file, out)
        return out

    def _bring_data(self, out: Path, names: Set[str]) -> None:
        """Copy external data the first time, then move it on from copy to copy.

        It cannot be linked: onnx refuses a file that has another name.
        """
        for name in names:
            earlier = self._data_folder / name
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            if self._data_folder == self._folder:
                shutil.copyfile(earlier, out / name)
            else:
                earlier.rename(out / name)
        self._data_folder = out

    def _array(self, tensor: TensorProto) -> Array:
        """Return an initializer's value as it is stored."""
        if uses_external_data(tensor):  # a copy, because onnx reads the data into the tensor
            copy = TensorProto()
            copy.CopyFrom(tensor)
            return numpy_helper.to_array(copy, str(self._folder))
        return numpy_helper.to_array(tensor)

    def _steps(self, parts: GraphParts, constant: Constant, shape: tuple[int, ...]) -> list[Array]:
        """Return the quantization steps and zero points, which broadcast to `shape`."""
        scale = self._array(parts.tensors[constant.scale]).astype(np.float32).reshape(-1)
        zero = np.zeros_like(scale)
        if constant.zero_point in parts.tensors:
            stored = self._array(parts.tensors[constant.zero_point]).reshape(-1)
            zero = np.broadcast_to(stored.astype(np.float32), scale.shape)
        axes = [axis for axis, length in enumerate(shape) if length == scale.size]
        lengths = [1] * len(shape)
        if scale.size > 1:
            lengths[axes[-1]] = -1
        return [scale.reshape(lengths), zero.reshape(lengths)]

    def _value(self, parts: GraphParts, constant: Constant) -> Array:
        """Return the values of a constant, dequantized, float32, in the graph's shape."""
        stored = self._array(parts.tensors[constant.name])
        if not constant.scale:
            return stored.astype(np.float32)
        scale, zero = self._steps(parts, constant, stored.shape)
        return (stored.astype(np.float32) - zero) * scale

    def _set_value(self, parts: GraphParts, constant: Constant, value: Array) -> None:
        """Replace the values of a constant, quantized with its own steps."""
        tensor = parts.tensors[constant.name]
        stored = self._array(tensor)
        if constant.scale:
            scale, zero = self._steps(parts, constant, stored.shape)
            limits = np.iinfo(stored.dtype)
            value = np.clip(np.rint(value / scale + zero), limits.min, limits.max)
        _replace(tensor, np.ascontiguousarray(value).astype(stored.dtype))

    def _precision(self, parts: GraphParts, constant: Constant) -> float:
        """Return the distance from 1 to the next number, if the tensor's largest is near 1."""
        kind = self._array(parts.tensors[constant.name]).dtype
        if constant.scale:
            return 2.0 ** (1 - 8 * kind.itemsize)
        return 2.0**-7 if kind == ml_dtypes.bfloat16 else float(np.finfo(kind).eps)

    def _middle(self, parts: GraphParts) -> LinearNode:
        """Return the middle one of the body's largest linear layers."""
        head = None if self._artifact.headless else parts.linear_before(self._artifact.outputs[0])
        layers = [layer for layer in parts.linears if layer != head]
        if not layers:
            raise NotApplicableError("it has no linear layers with constant weights")
        sizes = [math.prod(parts.tensors[layer.weight.name].dims) for layer in layers]
        layers = [layer for layer, size in zip(layers, sizes, strict=True) if size == max(sizes)]
        return layers[len(layers) // 2]

    def _head(self, parts: GraphParts) -> LinearNode:
        if self._artifact.headless:
            raise NotApplicableError("it has no head")
        layer = parts.linear_before(self._artifact.outputs[0])
        if layer is None:
            raise NotApplicableError("its head has no constant weights")
        return layer

    def _head_bias(self, parts: GraphParts) -> Constant:
        bias = self._head(parts).bias
        if bias is None:
            raise NotApplicableError("its classifier has no bias")
        return bias

    def _table(self, parts: GraphParts, role: Role) -> Constant:
        inputs = {"vocabulary": "input_ids", "segments": "token_type_ids"}
        for table, source, rows in parts.tables():
            sized = self._limit is not None and 0 <= rows - self._limit <= 8
            positions = sized and source not in inputs.values()
            if source == inputs.get(role) or (role == "positions" and positions):
                return table
        raise NotApplicableError(f"it has no table of {role}")


def _replace(tensor: TensorProto, value: Array) -> None:
    """Replace a tensor's value. It is then stored in the graph, not in a file beside it."""
    tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
