import json
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from cli_runs import Program
from onnx import numpy_helper
from tiny_models import VOCABULARY, make_model, save_checkpoint

from mixout_export.errors import ArgumentError, DataError, ParityError
from mixout_export.export import precision
from mixout_export.export.precision import Conversion, convert_graph
from mixout_export.parity.decisions import DECISION_LIMITS, DecisionLimits
from mixout_export.stages import onnx_export
from mixout_export.stages.onnx_export import ExportData, export_onnx
from mixout_export.stages.verify import verify_checkpoints


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    model = make_model("bert", hidden_size=64, intermediate_size=128)
    with torch.no_grad():
        for parameter in model.bert.parameters():
            parameter.mul_(0.3)  # or three layers of noise would drown any rounding
    return save_checkpoint(model, tmp_path_factory.mktemp("source") / "bert")


@pytest.fixture(scope="module")
def graphs(bert: Path, tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("graphs")
    return {
        name: export_onnx(bert, root / name, conversion=Conversion(name)).path
        for name in ("fp32", "fp16", "int8")
    }


def data(path: Path, rows: int = 40) -> Path:
    words = ("the cat sees", "a dog hears the bird", "a bird runs", "the dog likes a cat")
    lines = [words[i % 4] + " the cat" * (i // 4) for i in range(rows)]
    path.write_text("\n".join(["sentence", *lines]) + "\n")
    return path


@pytest.mark.parametrize("name", ["fp16", "int8"])
def test_folder_in_any_precision_holds_against_the_checkpoint(
    name: str, bert: Path, graphs: dict[str, Path]
) -> None:
    result = verify_checkpoints(bert, graphs[name])
    assert (result.holds, result.precision) == (True, name)
    assert result.weights.accounted == result.weights.total
    assert any(name in how for how in result.weights.counts)
    assert result.max_abs > 1e-5
    metadata = {
        entry.key: entry.value for entry in onnx.load(graphs[name] / "model.onnx").metadata_props
    }
    assert metadata["precision"] == name


@pytest.mark.parametrize("name", ["fp16", "int8"])
@pytest.mark.parametrize("flip", [False, True])
def test_graphs_of_two_precisions_hold_both_ways(
    name: str, flip: bool, graphs: dict[str, Path]
) -> None:
    pair = graphs["fp32"], graphs[name]
    result = verify_checkpoints(*(reversed(pair) if flip else pair))
    assert (result.holds, result.precision) == (True, name)


def test_fp16_is_judged_by_values_and_int8_by_decisions(
    bert: Path, graphs: dict[str, Path]
) -> None:
    half = verify_checkpoints(bert, graphs["fp16"])
    assert half.tolerance is not None
    assert (half.tolerance.atol, half.limits.agreement) == (5e-3, None)
    small = verify_checkpoints(bert, graphs["int8"])
    assert (small.tolerance, small.limits.agreement) == (None, 0.97)
    plain = json.loads(json.dumps(small.to_dict(), allow_nan=False))
    assert (plain["tolerance"], plain["bounds"]["agreement"]) == (None, 0.97)
    assert not verify_checkpoints(bert, graphs["int8"], atol=1e-5).holds


def test_a_damaged_int8_weight_is_named(
    bert: Path, graphs: dict[str, Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(graphs["int8"], broken)
    model = onnx.load(broken / "model.onnx")
    tensor = next(t for t in model.graph.initializer if t.name.endswith("val_61_quantized"))
    values = numpy_helper.to_array(tensor).copy()
    values[3, 3] = 100 if values[3, 3] < 0 else -100
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, broken / "model.onnx")
    result = verify_checkpoints(bert, broken)
    assert not result.holds
    assert "layer.0.attention.self.query.weight' is 1" in result.reasons()[0]


def test_foreign_int8_graph_is_known_by_its_weights(
    bert: Path, graphs: dict[str, Path], tmp_path: Path
) -> None:
    model = onnx.load(graphs["int8"] / "model.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    result = verify_checkpoints(bert, tmp_path / "foreign.onnx")
    assert (result.holds, result.precision) == (True, "int8")


def test_too_few_equal_decisions_are_exit_code_3_and_leave_nothing(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantize = precision.quantize_weights

    def turned_round(*arguments, **options):
        model = quantize(*arguments, **options)
        bias = next(t for t in model.graph.initializer if t.name == "classifier.bias")
        values = numpy_helper.to_array(bias) + np.array([50.0, 0.0, 0.0], np.float32)
        bias.CopyFrom(numpy_helper.from_array(values, bias.name))
        return model

    monkeypatch.setattr(precision, "quantize_weights", turned_round)
    with pytest.raises(ParityError, match="not the same model") as caught:
        export_onnx(bert, tmp_path / "out", conversion=Conversion("int8"))
    assert caught.value.exit_code == 3
    assert list(tmp_path.iterdir()) == []


def test_refusal_of_int8_says_what_to_try(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DECISION_LIMITS, "int8", DecisionLimits(mean_shift=0.0, relative_l2=0.0))
    with pytest.raises(ParityError, match=r"Try --calibration-data FILE, or --precision fp16$"):
        export_onnx(bert, tmp_path / "out", conversion=Conversion("int8"))


def test_advice_of_a_refusal_can_be_followed(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = DecisionLimits(agreement=1.5, mean_shift=0.0)  # neither can be reached
    monkeypatch.setitem(DECISION_LIMITS, "int8", limits)
    settings = {"conversion": Conversion("int8"), "data": ExportData(data(tmp_path / "data.csv"))}
    with pytest.raises(ParityError) as refused:
        export_onnx(bert, tmp_path / "out", **settings)
    share = float(str(refused.value).rpartition("or accept it with --min-agreement ")[2])
    done = export_onnx(bert, tmp_path / "out", min_agreement=share, **settings)
    assert done.parity is not None
    assert done.parity.holds
    assert done.parity.limits == DecisionLimits(agreement=share)


def test_card_says_how_much_padding_matters(graphs: dict[str, Path]) -> None:
    cards = {name: (path / "README.md").read_text("utf-8") for name, path in graphs.items()}
    assert "predictions change when a text is padded on the right to 24 tokens" in cards["int8"]
    for exact in ("fp32", "fp16"):
        assert "Padding: the result of a row changes by at most" in cards[exact]
        assert "Padding: a row padded on the left gets other results from PyTorch" in cards[exact]
    assert "It needs onnxruntime 1.17 or newer, and Triton 24.03 or newer." in cards["fp16"]


def test_fp16_is_measured_on_every_id_and_on_the_users_texts(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[np.ndarray] = []

    def convert(graph, conversion, *, samples, calibration):
        seen.extend(batch["input_ids"] for batch in samples)
        return convert_graph(graph, conversion, samples=samples[:1], calibration=calibration)

    monkeypatch.setattr(onnx_export, "convert_graph", convert)
    monkeypatch.setattr(onnx_export, "CALIBRATION_ROWS", 2)  # which are for int8
    file = data(tmp_path / "data.csv", rows=3)
    export_onnx(
        bert,
        tmp_path / "out",
        conversion=Conversion("fp16"),
        data=ExportData(calibration=file),
        verify=False,
    )
    assert set(np.concatenate([ids.ravel() for ids in seen])) == set(range(VOCABULARY))
    assert len(seen[-1]) == 3


def test_terminal_and_card_of_fp16_count_the_same_predictions(
    bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    shown = Program(capsys)("onnx", bert, out, "--precision", "fp16").done().out
    (counted,) = re.findall(r"logits: (\d+ %) of \d+ predictions equal PyTorch's", shown)
    card = (out / "README.md").read_text("utf-8")
    assert re.search(rf"^\| logits \|.*\| {counted} \|$", card, re.MULTILINE)


def test_stated_agreement_decides(bert: Path, tmp_path: Path) -> None:
    texts = ExportData(data=data(tmp_path / "data.csv"))
    done = export_onnx(
        bert, tmp_path / "out", conversion=Conversion("int8"), data=texts, min_agreement=0.1
    )
    assert done.parity is not None
    (output,) = done.parity.outputs
    assert (output.on_data, output.judged.decisions) == (True, 40)
    assert done.parity.limits.agreement == 0.1
    equal = f"{40 - output.judged.flips} of 40"
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert f"| logits: equal decisions on the data (these count) | {equal} |" in card
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(ArgumentError, match="min-agreement"):
            export_onnx(bert, tmp_path / "other", min_agreement=share)


def test_static_int8_is_calibrated_on_texts(bert: Path, tmp_path: Path) -> None:
    texts = ExportData(calibration=data(tmp_path / "data.csv"), calibration_examples=24)
    done = export_onnx(
        bert, tmp_path / "out", conversion=Conversion("int8"), data=texts, min_agreement=0.5
    )
    entries = {entry.key: entry.value for entry in onnx.load(done.graph).metadata_props}
    made = json.loads(entries["conversion"])
    assert (made["method"], made["calibration_rows"]) == ("static", 24)
    assert done.parity is not None
    assert not done.parity.outputs[0].on_data


@pytest.mark.parametrize("name", ["fp32", "int8"])
def test_optimized_graph_is_smaller_and_holds(
    name: str, bert: Path, graphs: dict[str, Path], tmp_path: Path
) -> None:
    done = export_onnx(bert, tmp_path / "out", conversion=Conversion(name, optimize=True))
    assert done.optimized
    assert done.nodes == len(onnx.load(done.graph).graph.node)
    assert done.nodes < len(onnx.load(graphs[name] / "model.onnx").graph.node)
    assert verify_checkpoints(graphs[name], done.path).holds


def test_optimization_that_breaks_parity_is_left_out(
    bert: Path, graphs: dict[str, Path], tmp_path: Path, monkeypatch, caplog
) -> None:
    def broken(model, level):
        for tensor in model.graph.initializer:
            if tensor.name == "classifier.bias":
                values = numpy_helper.to_array(tensor) + np.float32(1.0)
                tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        return model

    monkeypatch.setattr(precision, "optimize", broken)
    done = export_onnx(bert, tmp_path / "out", conversion=Conversion("fp32", optimize=True))
    assert not done.optimized
    assert done.graph.read_bytes() == (graphs["fp32"] / "model.onnx").read_bytes()
    assert "the optimized graph does not compute the same (weight 'classifier.bias'" in caplog.text


@pytest.mark.parametrize("name", ["fp16", "int8"])
def test_language_model_is_converted_with_its_cache(name: str, tmp_path: Path) -> None:
    model = make_model("gpt2", "LMHeadModel")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.3)
    source = save_checkpoint(model, tmp_path / "source")
    done = export_onnx(source, tmp_path / "out", conversion=Conversion(name), min_agreement=0.5)
    assert done.cached_graph is not None
    entries = {entry.key: entry.value for entry in onnx.load(done.cached_graph).metadata_props}
    assert entries["precision"] == name
    assert done.parity is not None
    assert done.parity.generation is not None
    assert done.parity.generation.weights is not None
    assert done.parity.generation.weights.holds
    inputs = {value.name: value for value in onnx.load(done.cached_graph).graph.input}
    assert inputs["past_key_values.0.key"].type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def test_int8_is_calibrated_on_some_rows_and_fp16_measured_on_all() -> None:
    assert ExportData().calibration_rows("int8") == 256
    assert ExportData().calibration_rows("fp16") is None
    assert ExportData(calibration_examples=7).calibration_rows("fp16") == 7


def test_options_without_effect_are_refused(bert: Path, tmp_path: Path) -> None:
    file = data(tmp_path / "data.csv")
    out = tmp_path / "out"
    with pytest.raises(ArgumentError, match="calibration-data: is for int8 and fp16"):
        export_onnx(bert, out, data=ExportData(calibration=file))
    with pytest.raises(ArgumentError, match="--no-verify"):
        export_onnx(bert, out, data=ExportData(data=file), verify=False)
    with pytest.raises(ArgumentError, match="max-examples: limits"):
        export_onnx(bert, out, data=ExportData(max_examples=3))
    with pytest.raises(ArgumentError, match="calibration-examples: limits"):
        export_onnx(bert, out, data=ExportData(calibration_examples=3))
    with pytest.raises(ArgumentError, match="min-agreement: is for the comparison"):
        export_onnx(bert, out, verify=False, min_agreement=0.9)
    with pytest.raises(ArgumentError, match="calibration-examples: got 0"):
        export_onnx(
            bert,
            out,
            conversion=Conversion("int8"),
            data=ExportData(calibration=file, calibration_examples=0),
        )
    with pytest.raises(DataError, match="no such file"):
        export_onnx(bert, out, data=ExportData(data=tmp_path / "none.csv"))
    assert not out.exists()


def test_result_says_precision(graphs: dict[str, Path], bert: Path, tmp_path: Path) -> None:
    done = export_onnx(bert, tmp_path / "out", conversion=Conversion("fp16"), verify=False)
    plain = json.loads(json.dumps(done.to_dict(), allow_nan=False))
    assert (plain["precision"], plain["optimized"], plain["parity"]) == ("fp16", False, None)
    assert done.graph.read_bytes() == (graphs["fp16"] / "model.onnx").read_bytes()
