import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from tiny_models import make_model, make_tokenizer

import mixout_export
from mixout_export.checkpoint.interface import ModelInterface, describe_interface
from mixout_export.errors import ArgumentError, ExportError
from mixout_export.export.document import finalize_graph, write_graph
from mixout_export.export.graph import ExportedGraph, export_graph
from mixout_export.export.half import measure_magnitudes, to_half
from mixout_export.export.precision import PRECISIONS, Conversion, convert_graph
from mixout_export.export.quantization import quantize_weights
from mixout_export.files.graph_metadata import Provenance
from mixout_export.tasks import TASKS

IDS = np.arange(24, dtype=np.int64).reshape(2, 12)


def captured_bert() -> tuple[ExportedGraph, ModelInterface]:
    torch.set_num_threads(1)
    model = make_model("bert")
    interface = describe_interface(model, TASKS["text-classification"], make_tokenizer())
    return export_graph(model, interface), interface


@pytest.fixture(scope="module")
def captured() -> tuple[ExportedGraph, ModelInterface]:
    return captured_bert()


def batch(interface: ModelInterface) -> dict[str, np.ndarray]:
    made = {"input_ids": IDS, "attention_mask": np.ones_like(IDS)}
    made["attention_mask"][1, 7:] = 0
    return {name: made.get(name, np.zeros_like(IDS)) for name in interface.inputs}


def write(
    captured: tuple[ExportedGraph, ModelInterface], folder: Path, conversion: Conversion, **options
) -> Path:
    """Convert, finalize and write a captured graph, as the `onnx` command does."""
    graph, interface = captured
    inputs = [batch(interface)]
    converted, made = convert_graph(graph, conversion, samples=inputs, **options)
    provenance = Provenance("", (), "", {}, precision=conversion.precision, conversion=made)
    if converted is not graph:  # finalizing changes the graph, which other tests use too
        finalize_graph(converted, provenance, captured=graph)
    (path,) = write_graph(converted, folder)
    return path


def run(path: Path, interface: ModelInterface) -> np.ndarray:
    """Run a graph without the overflow of 8-bit products on x86 processors that lack VNNI.

    Those processors cut off the sum of two products at 16 bits. The result would then depend on
    the processor as well as on the conversion.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.x64quantprecision", "1")
    return onnxruntime.InferenceSession(path, options).run(None, batch(interface))[0]


CONVERSIONS = [
    Conversion("fp32", optimize=True),
    Conversion("fp16"),
    Conversion("fp16", optimize=True),
    Conversion("int8"),
    Conversion("int8", optimize=True),
    Conversion("int8", reduce_range=True),
]


@pytest.mark.parametrize("conversion", CONVERSIONS, ids=str)
def test_conversions_compute_nearly_the_same(captured, conversion, tmp_path: Path) -> None:
    reference = run(write(captured, tmp_path, Conversion()), captured[1])
    path = write(captured, tmp_path, conversion)
    found = run(path, captured[1])
    assert found.dtype == np.float32
    scale = np.abs(reference).max()
    limit = {"fp32": 1e-6, "fp16": 5e-3, "int8": 0.1}[conversion.precision]
    np.testing.assert_allclose(found, reference, atol=limit * scale)
    if conversion.precision != "fp32":
        assert np.abs(found - reference).max() > 0


def test_static_quantization_does_not_depend_on_the_batch(captured, tmp_path: Path) -> None:
    reference = run(write(captured, tmp_path, Conversion()), captured[1])
    calibration = [batch(captured[1])]
    path = write(captured, tmp_path, Conversion("int8"), calibration=calibration)
    operators = {node.op_type for node in onnx.load(path).graph.node}
    assert "DynamicQuantizeLinear" not in operators
    assert "QuantizeLinear" in operators
    np.testing.assert_allclose(
        run(path, captured[1]), reference, atol=0.1 * np.abs(reference).max()
    )


def dtypes(path: Path) -> dict[str, int]:
    """Return the bytes of weights by their dtype."""
    found: dict[str, int] = {}
    for tensor in onnx.load(path).graph.initializer:
        name = TensorProto.DataType.Name(tensor.data_type)
        found[name] = found.get(name, 0) + len(tensor.raw_data)
    return found


def test_weights_and_tables_have_the_requested_precision(captured, tmp_path: Path) -> None:
    whole = dtypes(write(captured, tmp_path, Conversion()))["FLOAT"]
    half = dtypes(write(captured, tmp_path, Conversion("fp16")))
    assert (half["FLOAT16"], "FLOAT" in half) == (pytest.approx(whole / 2, rel=0.01), False)
    small = dtypes(write(captured, tmp_path, Conversion("int8")))
    matrices = sum(p.numel() for p in make_model("bert").parameters() if p.ndim == 2)
    assert small["INT8"] + small["UINT8"] == matrices


@pytest.mark.parametrize("conversion", CONVERSIONS, ids=str)
def test_only_extended_optimization_adds_other_operators(
    captured, conversion, tmp_path: Path
) -> None:
    model = onnx.load(write(captured, tmp_path, conversion))
    domains = {opset.domain for opset in model.opset_import}
    extended = conversion.optimize and conversion.precision != "fp16"
    assert domains == ({"", "com.microsoft"} if extended else {""})
    assert domains == {node.domain for node in model.graph.node}


def test_metadata_records_the_conversion(captured, tmp_path: Path) -> None:
    path = write(captured, tmp_path, Conversion("int8"), calibration=[batch(captured[1])])
    found = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert found["precision"] == "int8"
    made = {
        "calibration_rows": 2,
        "method": "static",
        "onnxruntime": onnxruntime.__version__,
        "operators": ["Gather", "MatMul"],
        "per_channel": True,
        "weight_bits": 8,
    }
    assert onnxruntime.__version__ in found["conversion"]
    assert (
        convert_graph(captured[0], Conversion("int8"), calibration=[batch(captured[1])])[1] == made
    )
    assert "onnx.quant.pre_process" not in found


@pytest.mark.repeats  # test_export_document.py has one without a conversion
def test_files_are_the_same_from_process_to_process(captured, tmp_path: Path) -> None:
    precisions = [name for name in PRECISIONS if name != "fp32"]
    for folder in ("mine", "other"):
        for name in precisions:
            (tmp_path / folder / name).mkdir(parents=True)
    for name in precisions:
        write(captured, tmp_path / "mine" / name, Conversion(name))
    script = (
        "import sys; from pathlib import Path; import test_export_precision as t; "
        "captured = t.captured_bert(); "
        f"[t.write(captured, Path(sys.argv[1]) / n, t.Conversion(n)) for n in {precisions!r}]"
    )
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "other")],
        check=True,
        cwd=Path(__file__).parent,
        env={
            **os.environ,
            "PYTHONPATH": str(Path(mixout_export.__file__).parents[1]),
            "PYTHONHASHSEED": "7",
            "OMP_NUM_THREADS": "1",
        },
    )
    for name in precisions:
        mine, other = (tmp_path / f / name / "model.onnx" for f in ("mine", "other"))
        assert other.read_bytes() == mine.read_bytes(), name


def test_conversion_logs_nothing(captured, tmp_path: Path, capfd) -> None:
    capfd.readouterr()
    write(captured, tmp_path, Conversion("int8"), calibration=[batch(captured[1])])
    write(captured, tmp_path, Conversion("fp16", optimize=True))
    assert capfd.readouterr() == ("", "")


def test_bad_conversions_are_refused() -> None:
    with pytest.raises(ArgumentError, match="precision: got 'fp8', expected one of fp32"):
        Conversion("fp8")
    with pytest.raises(ArgumentError, match="reduce-range"):
        Conversion("fp16", reduce_range=True)


def small_graph(nodes: list, weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    """Return a graph from x to y, both float `(1, n)`. A node may end with its attributes."""
    graph = helper.make_graph(
        [
            helper.make_node(*node[:3], name=f"{node[0]}_{i}", **dict(*node[3:]))
            for i, node in enumerate(nodes)
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])],
        [
            numpy_helper.from_array(array.astype(np.float32), name)
            for name, array in weights.items()
        ],
    )
    opset = helper.make_opsetid("", 20)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def run_small(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, {"x": x.astype(np.float32)})[0]


def test_nodes_beyond_the_range_of_fp16_stay_in_fp32() -> None:
    nodes = [
        ("Mul", ["x", "large"], ["a"]),
        ("Add", ["a", "a"], ["b"]),
        ("Div", ["b", "larger"], ["c"]),
        ("Add", ["c", "one"], ["y"]),
    ]
    weights = {"large": np.array(3e4), "larger": np.array(1e5), "one": np.array(1.0)}
    model = small_graph(nodes, weights)
    x = np.array([[5.0, -7.0]])
    expected = run_small(model, x)
    converted, kept = to_half(model, [{"x": x.astype(np.float32)}])
    assert kept == ("Mul_0", "Add_1", "Div_2")
    np.testing.assert_allclose(run_small(converted, x), expected, rtol=2e-3)
    stored = {tensor.name: tensor.data_type for tensor in converted.graph.initializer}
    assert stored == {"large": 1, "larger": 1, "one": TensorProto.FLOAT16}


def test_an_output_beyond_the_range_of_fp16_is_never_in_fp16() -> None:
    nodes = [("Mul", ["x", "one"], ["a"]), ("Mul", ["a", "large"], ["y"]), ("Relu", ["y"], ["z"])]
    weights = {"one": np.array(1.0), "large": np.array(3e4)}
    model = small_graph(nodes, weights)
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 2]))
    converted, kept = to_half(model, [{"x": np.array([[5.0, -7.0]], np.float32)}])
    assert kept == ("Mul_1", "Relu_2")
    maker = {name: node for node in converted.graph.node for name in node.output}
    assert [maker[name].op_type for name in ("y", "z")] == ["Mul", "Relu"]  # not a cast
    assert maker["z"].input == ["y"]
    np.testing.assert_allclose(run_small(converted, np.array([[5.0, -7.0]])), [[1.5e5, -2.1e5]])


def test_weights_of_nodes_in_fp32_keep_their_value() -> None:
    nodes = [("Mul", ["x", "large"], ["a"]), ("Mul", ["a", "small"], ["b"]), ("Relu", ["b"], ["y"])]
    weights = {"large": np.array([[33333.3, 0.1]]), "small": np.array([[1e-3, 1.0 / 3.0]])}
    converted, kept = to_half(small_graph(nodes, weights), [{"x": np.ones((1, 2), np.float32)}])
    assert kept == ("Mul_0", "Mul_1")
    for tensor in converted.graph.initializer:
        expected = weights[tensor.name].astype(np.float32)
        np.testing.assert_array_equal(numpy_helper.to_array(tensor), expected)


def test_magnitudes_ignore_masks() -> None:
    nodes = [("Add", ["x", "mask"], ["a"]), ("Relu", ["a"], ["y"])]
    model = small_graph(nodes, {"mask": np.array([[0.0, np.finfo(np.float32).min]])})
    batches = [{"x": np.array(x, np.float32)} for x in ([[3.0, 7.0]], [[-9.0, 5.0]])]
    before = model.SerializeToString()
    assert measure_magnitudes(model, batches) == {"mask": 0.0, "a": 9.0, "y": 3.0}
    assert model.SerializeToString() == before


def test_an_attention_masks_infinity_does_not_keep_a_node_in_fp32() -> None:
    nodes = [("Add", ["x", "mask"], ["a"]), ("Softmax", ["a"], ["y"])]
    mask = np.array([[0.0, np.finfo(np.float32).min]])
    x = np.array([[3.0, 5.0]])
    converted, kept = to_half(small_graph(nodes, {"mask": mask}), [{"x": x.astype(np.float32)}])
    assert kept == ()
    np.testing.assert_array_equal(run_small(converted, x), [[1.0, 0.0]])


def test_a_normalization_of_small_numbers_stays_accurate() -> None:
    nodes = [
        ("Pow", ["x", "two"], ["square"]),
        ("ReduceMean", ["square"], ["mean"]),
        ("Add", ["mean", "epsilon"], ["sum"]),
        ("Sqrt", ["sum"], ["root"]),
        ("Div", ["x", "root"], ["y"]),
    ]
    weights = {"two": np.array(2.0), "epsilon": np.array(1e-12)}
    model = small_graph(nodes, weights)
    x = np.array([[1e-4, -2e-4]])
    expected = run_small(model, x)
    converted, kept = to_half(model, [{"x": x.astype(np.float32)}])
    assert {"Pow_0", "ReduceMean_1", "Add_2", "Sqrt_3"} <= set(kept)
    np.testing.assert_allclose(run_small(converted, x), expected, rtol=2e-3)


@pytest.mark.parametrize(
    "last",
    [
        [("Cast", ["a"], ["whole"], {"to": TensorProto.INT64}),
         ("Cast", ["whole"], ["y"], {"to": TensorProto.FLOAT})],
        [("Sin", ["a"], ["y"])],
    ],
)  # fmt: skip
def test_what_needs_all_digits_stays_in_fp32(last: list) -> None:
    model = small_graph([("Mul", ["x", "factor"], ["a"]), *last], {"factor": np.array([[8.001]])})
    x = np.array([[0.9999, 400.0]])
    expected = run_small(model, x)
    converted, kept = to_half(model, [{"x": x.astype(np.float32)}])
    assert {"Mul_0", f"{last[0][0]}_1"} <= set(kept)
    np.testing.assert_allclose(run_small(converted, x), expected, rtol=1e-3)


def test_tiny_weights_are_rounded_as_numpy_does() -> None:
    weight = np.array([1e-8, -1e-8, 4e-8, 1.0 / 3.0])
    model = small_graph([("Mul", ["x", "w"], ["y"])], {"w": weight[None, :2]})
    converted, _ = to_half(model, [{"x": np.ones((1, 2), np.float32)}])
    (stored,) = converted.graph.initializer
    np.testing.assert_array_equal(
        numpy_helper.to_array(stored), weight[None, :2].astype(np.float16)
    )


def test_graph_without_weights_cannot_be_quantized() -> None:
    with pytest.raises(ExportError, match="no MatMul or Gather with a weight"):
        quantize_weights(small_graph([("Relu", ["x"], ["y"])], {}))
