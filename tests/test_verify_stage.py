import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from checkpoints import TinyCheckpoints
from onnx import numpy_helper
from safetensors.torch import load_file, save_file
from tiny_models import POSITIONS, VOCABULARY, edit_config, make_model, save_checkpoint
from torch import Tensor

from mixout_export.checkpoint.base import BaseOptions
from mixout_export.checkpoint.folder import open_checkpoint
from mixout_export.errors import ArgumentError, CheckpointError, DataError
from mixout_export.parity.result import ParityResult
from mixout_export.stages.collapse import collapse_checkpoint
from mixout_export.stages.onnx_export import export_onnx
from mixout_export.stages.prepare import PrepareOptions, prepare_checkpoint
from mixout_export.stages.verify import verify_checkpoints

Tensors = dict[str, Tensor]


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    return save_checkpoint(make_model("bert"), tmp_path_factory.mktemp("plain") / "bert")


@pytest.fixture(scope="module")
def mixout(plain: Path, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("mixout") / "bert"
    prepare_checkpoint(str(plain), path)
    return path


@pytest.fixture(scope="module")
def graph(plain: Path, tmp_path_factory) -> Path:
    result = export_onnx(plain, tmp_path_factory.mktemp("graph") / "bert", verify=False)
    assert result.parity is None
    return result.path


def changed(source: Path, out: Path, change: Callable[[Tensors], object]) -> Path:
    """Copy a folder with its tensors changed in place."""
    shutil.copytree(source, out)
    tensors = load_file(out / "model.safetensors")
    change(tensors)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


def outputs_hold(result: ParityResult) -> bool:
    return all(output.holds for output in result.outputs)


def scale_one_linear(tensors: Tensors) -> str:
    tensors["bert.encoder.layer.1.intermediate.dense.weight"].mul_(1.001)
    return "bert.encoder.layer.1.intermediate.dense.weight"


def zero_one_position(tensors: Tensors) -> str:
    tensors["bert.embeddings.position_embeddings.weight"][POSITIONS - 1] = 0
    return "bert.embeddings.position_embeddings.weight"


def zero_second_segment(tensors: Tensors) -> str:
    tensors["bert.embeddings.token_type_embeddings.weight"][1] = 0
    return "bert.embeddings.token_type_embeddings.weight"


def zero_last_word(tensors: Tensors) -> str:
    tensors["bert.embeddings.word_embeddings.weight"][VOCABULARY - 1] = 0
    return "bert.embeddings.word_embeddings.weight"


def swap_labels(tensors: Tensors) -> str:
    tensors["classifier.weight"] = tensors["classifier.weight"][[1, 0, 2]].clone()
    return "classifier.weight"


def drop_a_bias(tensors: Tensors) -> str:
    tensors["bert.encoder.layer.0.output.dense.bias"].zero_()
    return "bert.encoder.layer.0.output.dense.bias"


FAULTS = [
    scale_one_linear,
    zero_one_position,
    zero_second_segment,
    zero_last_word,
    swap_labels,
    drop_a_bias,
]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("against", ["graph", "plain"])
def test_faults_are_caught_by_the_battery_and_by_the_audit(
    fault: Callable[[Tensors], str], against: str, plain: Path, graph: Path, tmp_path: Path
) -> None:
    broken = changed(plain, tmp_path / "broken", fault)
    result = verify_checkpoints(graph if against == "graph" else plain, broken)
    assert not result.holds
    assert not outputs_hold(result)
    assert [problem.key for problem in result.weights.problems] == [
        fault(load_file(plain / "model.safetensors"))
    ]


def test_battery_catches_what_weights_do_not_show(plain: Path, tmp_path: Path) -> None:
    shutil.copytree(plain, tmp_path / "broken")
    edit_config(tmp_path / "broken", layer_norm_eps=1e-3)
    result = verify_checkpoints(plain, tmp_path / "broken")
    assert result.weights.holds
    assert not result.holds
    assert "output 'logits' differs by" in result.reasons()[0]


def test_audit_catches_what_outputs_do_not_show(plain: Path, graph: Path, tmp_path: Path) -> None:
    def nudge(tensors: Tensors) -> None:
        flat = tensors["bert.encoder.layer.0.attention.self.query.weight"].view(-1)
        flat[0] = torch.nextafter(flat[0], torch.tensor(torch.inf))

    broken = changed(plain, tmp_path / "broken", nudge)
    for reference in (plain, graph):
        result = verify_checkpoints(reference, broken)
        assert outputs_hold(result)
        assert not result.holds
        assert "'bert.encoder.layer.0.attention.self.query.weight'" in result.reasons()[0]


@pytest.mark.parametrize("flip", [False, True])
def test_folder_and_graph_hold_both_ways(flip: bool, plain: Path, graph: Path) -> None:
    pair = (graph, plain) if flip else (plain, graph)
    result = verify_checkpoints(*pair)
    assert result.holds
    assert result.reasons() == ()
    assert result.outputs[0].elements > 0
    assert result.max_abs < 1e-5
    assert result.weights.counts["direct"] + result.weights.counts["transposed"] == 41


def test_lone_file_and_two_graphs_hold(plain: Path, graph: Path, tmp_path: Path) -> None:
    lone = shutil.copy(graph / "model.onnx", tmp_path / "lone.onnx")
    assert verify_checkpoints(plain, lone).holds
    both = verify_checkpoints(graph, lone)
    assert both.holds
    assert both.max_abs == 0


def test_collapse_computes_exactly_what_the_mixout_checkpoint_does(
    mixout: Path, plain: Path, graph: Path, tmp_path: Path
) -> None:
    collapse_checkpoint(mixout, tmp_path / "collapsed")
    for candidate in (tmp_path / "collapsed", plain):
        result = verify_checkpoints(mixout, candidate)
        assert result.holds
        assert result.max_abs == 0.0
        assert dict(result.weights.counts) == {"identical": 41}
    assert verify_checkpoints(mixout, graph).holds


def test_changed_anchors_are_said_and_the_rest_still_compared(mixout: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(mixout, broken)
    anchors = broken / "pretrained.safetensors"
    raw = bytearray(anchors.read_bytes())
    raw[-1] ^= 1
    anchors.unlink()
    anchors.write_bytes(raw)
    result = verify_checkpoints(mixout, broken)
    assert not result.holds
    assert "pretrained.safetensors: has SHA-256" in result.reasons()[0]
    assert outputs_hold(result)


def test_headless_base_is_compared_with_the_prepared_body(tmp_path: Path) -> None:
    base = save_checkpoint(make_model("bert", "Model"), tmp_path / "base")
    options = PrepareOptions(base=BaseOptions(task="text-classification", labels=2))
    prepare_checkpoint(str(base), tmp_path / "prepared", options)
    result = verify_checkpoints(base, tmp_path / "prepared")
    assert result.holds
    assert result.headless
    assert result.max_abs == 0.0
    assert [output.name for output in result.outputs] == ["last_hidden_state"]
    assert set(result.weights.ignored) == {"classifier.weight", "classifier.bias"}
    broken = changed(base, tmp_path / "broken", lambda t: t["embeddings.LayerNorm.bias"].add_(1))
    assert not outputs_hold(verify_checkpoints(broken, tmp_path / "prepared"))


def test_headless_folder_and_graph_with_a_head_cannot_be_compared(
    graph: Path, tmp_path: Path
) -> None:
    base = save_checkpoint(make_model("bert", "Model"), tmp_path / "base")
    with pytest.raises(CheckpointError, match="has no head"):
        verify_checkpoints(base, graph)


@pytest.mark.parametrize(
    ("dtype", "precision", "atol"), [(torch.float16, "fp16", 5e-3), (torch.bfloat16, "bf16", 4e-2)]
)
def test_rounded_copy_is_judged_by_its_precision(
    dtype: torch.dtype, precision: str, atol: float, plain: Path, tmp_path: Path
) -> None:
    def round_all(tensors: Tensors) -> None:
        tensors.update({key: value.to(dtype) for key, value in tensors.items()})

    rounded = changed(plain, tmp_path / "rounded", round_all)
    result = verify_checkpoints(plain, rounded)
    assert (result.precision, result.tolerance.atol) == (precision, atol)
    assert result.weights.holds
    assert 1e-5 < result.max_abs < atol
    assert result.holds
    assert not verify_checkpoints(plain, rounded, atol=1e-5, rtol=0.0).holds


def test_graph_of_a_half_precision_folder_is_exact(plain: Path, tmp_path: Path) -> None:
    def round_all(tensors: Tensors) -> None:
        tensors.update({key: value.bfloat16() for key, value in tensors.items()})

    half = changed(plain, tmp_path / "half", round_all)
    parity = export_onnx(half, tmp_path / "onnx").parity
    assert parity is not None
    assert (parity.holds, parity.precision) == (True, "fp32")


def test_given_tolerance_judges_weights_and_outputs(plain: Path, tmp_path: Path) -> None:
    near = changed(plain, tmp_path / "near", lambda t: t["classifier.bias"].add_(0.01))
    assert not verify_checkpoints(plain, near).holds
    result = verify_checkpoints(plain, near, atol=0.02)
    assert (result.holds, result.precision) == (True, "given")
    assert not verify_checkpoints(plain, near, atol=0.005).holds


def test_other_labels_and_other_task_do_not_hold(plain: Path, graph: Path, tmp_path: Path) -> None:
    for folder, entries, name in (
        ("labels", {"id2label": {"0": "a", "1": "b", "2": "c"}}, "labels: got a, b, c, expected"),
        ("task", {"problem_type": "multi_label_classification"}, "task: got multi-label"),
    ):
        other = tmp_path / folder
        shutil.copytree(plain, other)
        edit_config(other, **entries)
        for reference in (plain, graph):
            result = verify_checkpoints(reference, other)
            assert not result.holds
            assert any(name in reason for reason in result.reasons())


def test_other_vocabulary_and_other_head_do_not_hold(
    plain: Path, graph: Path, tmp_path: Path
) -> None:
    larger = save_checkpoint(make_model("bert", vocab_size=VOCABULARY + 1), tmp_path / "larger")
    tagger = save_checkpoint(make_model("bert", "ForQuestionAnswering"), tmp_path / "tagger")
    result = verify_checkpoints(graph, larger)
    assert "vocabulary size: got 91, expected 90" in result.reasons()
    result = verify_checkpoints(plain, tagger)
    assert "task: got question-answering, expected text-classification" in result.reasons()
    assert not result.holds


def test_graph_without_an_input_does_not_hold(plain: Path, graph: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(graph, bare)
    model = onnx.load(bare / "model.onnx")
    zeros = onnx.helper.make_node(
        "Mul", ["input_ids", "zero"], ["token_type_ids"], name="no_segments"
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(0), "zero"))
    kept = [value for value in model.graph.input if value.name != "token_type_ids"]
    nodes = [zeros, *model.graph.node]
    del model.graph.input[:], model.graph.node[:]
    model.graph.input.extend(kept)
    model.graph.node.extend(nodes)
    onnx.save(model, bare / "model.onnx")
    result = verify_checkpoints(plain, bare)
    assert any("'token_type_ids'" in reason for reason in result.mismatches)
    assert not outputs_hold(result)


def test_graph_by_another_tool_borrows_the_other_sides_ranges(
    plain: Path, graph: Path, tmp_path: Path
) -> None:
    model = onnx.load(graph / "model.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    result = verify_checkpoints(plain, tmp_path / "foreign.onnx")
    assert result.holds
    assert result.coverage is not None
    assert result.coverage.positions == POSITIONS
    with pytest.raises(CheckpointError, match="how large the vocabulary is"):
        verify_checkpoints(tmp_path / "foreign.onnx", tmp_path / "foreign.onnx")


def test_own_texts_are_run_and_cut_to_the_limit(plain: Path, graph: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.csv"
    data.write_text("sentence\n" + "the cat sees\n" * 40 + "a dog " * 50 + "\n")
    result = verify_checkpoints(plain, graph, data=data)
    assert result.holds
    without = verify_checkpoints(plain, graph)
    assert result.coverage is not None
    assert without.coverage is not None
    assert result.coverage.examples == without.coverage.examples + 41
    few = verify_checkpoints(plain, graph, data=data, max_examples=3)
    assert few.coverage is not None
    assert few.coverage.examples == without.coverage.examples + 3


def test_own_texts_may_come_in_pairs(plain: Path, graph: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.tsv"
    data.write_text("sentence1\tsentence2\nthe cat\ta dog\n")
    assert verify_checkpoints(plain, graph, data=data).holds


def test_bad_data_is_one_sentence(plain: Path, graph: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.csv"
    for content, message in (
        ("sentence,n\nthe cat,1\n,2\n", "row 2"),
        ("number\n1\n", "--text-column"),
        ("sentence\n", "no rows"),
    ):
        data.write_text(content)
        with pytest.raises(DataError, match=message):
            verify_checkpoints(plain, graph, data=data)


def test_texts_without_a_tokenizer_are_refused(plain: Path, tmp_path: Path) -> None:
    bare = save_checkpoint(make_model("bert"), tmp_path / "bare", tokenizer=False)
    data = tmp_path / "data.csv"
    data.write_text("sentence\nthe cat\n")
    assert verify_checkpoints(bare, bare).holds
    with pytest.raises(CheckpointError, match="no tokenizer files"):
        verify_checkpoints(bare, bare, data=data)


def test_decoder_without_a_padding_id_is_compared_row_by_row(tmp_path: Path) -> None:
    model = make_model("gpt2", pad_token_id=None)
    source = save_checkpoint(model, tmp_path / "source", tokenizer=False)
    result = verify_checkpoints(source, source)
    assert result.holds
    assert result.max_abs == 0.0


def test_nan_on_both_sides_does_not_hold(plain: Path, tmp_path: Path) -> None:
    broken = changed(plain, tmp_path / "nan", lambda t: t["classifier.bias"].fill_(torch.nan))
    result = verify_checkpoints(broken, broken)
    assert not result.holds
    assert "NaN" in result.reasons()[0]
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["holds"] is False


def test_bad_arguments_are_refused(plain: Path, graph: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="atol: got -1"):
        verify_checkpoints(plain, graph, atol=-1)
    with pytest.raises(ArgumentError, match="rtol: got nan"):
        verify_checkpoints(plain, graph, rtol=float("nan"))
    with pytest.raises(ArgumentError, match="label-column: names a column of a data file"):
        verify_checkpoints(plain, graph, label_column="label")
    with pytest.raises(ArgumentError, match="max-examples: got 0"):
        verify_checkpoints(plain, graph, max_examples=0)
    with pytest.raises(ArgumentError, match="provider: got 'Abacus'"):
        verify_checkpoints(plain, graph, provider="Abacus")
    with pytest.raises(ArgumentError, match="provider: got 'Abacus'"):
        verify_checkpoints(plain, plain, provider="Abacus")  # though no graph is run
    with pytest.raises(CheckpointError, match="no such file or folder"):
        verify_checkpoints(plain, tmp_path / "nowhere")


def test_result_is_plain_json(plain: Path, graph: Path) -> None:
    plain_values = json.loads(
        json.dumps(verify_checkpoints(plain, graph).to_dict(), allow_nan=False)
    )
    assert plain_values["holds"] is True
    assert plain_values["coverage"]["vocabulary"] == VOCABULARY
    assert plain_values["outputs"][0]["agreement"] == 1.0


def test_what_was_run_can_be_run_again(plain: Path, graph: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept.npz"
    first = verify_checkpoints(plain, graph, save_inputs_to=kept, seed=5)
    again = verify_checkpoints(plain, graph, inputs=kept)
    assert again.holds
    assert again.outputs == first.outputs
    assert again.coverage is not None
    assert first.coverage is not None
    assert again.coverage.examples == first.coverage.examples


def test_inputs_of_ones_own_find_what_they_touch(plain: Path, tmp_path: Path) -> None:
    def zero_row(tensors: Tensors) -> None:
        tensors["bert.embeddings.word_embeddings.weight"][7] = 0

    other = changed(plain, tmp_path / "other", zero_row)
    verdicts = {}
    for token in (7, 8):
        ids = np.full((2, 4), token)
        path = tmp_path / f"{token}.npz"
        np.savez(path, input_ids=ids, attention_mask=np.ones_like(ids), token_type_ids=ids * 0)
        verdicts[token] = verify_checkpoints(plain, other, inputs=path).outputs[0].holds
    assert verdicts == {7: False, 8: True}


def test_inputs_and_data_exclude_each_other(plain: Path, graph: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="inputs: replaces everything"):
        verify_checkpoints(plain, graph, inputs=tmp_path / "a.npz", data=tmp_path / "b.tsv")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> tuple[Path, Path]:
    path = tmp_path_factory.mktemp("classifier")
    model = make_model("bert", "ForSequenceClassification", num_labels=3)
    source = save_checkpoint(model, path / "bert")
    return source, export_onnx(source, path / "graph", verify=False).path


def labeled(path: Path, labels: list[int]) -> Path:
    rows = "".join(f"the dog number {i} runs\t{label}\n" for i, label in enumerate(labels))
    path.write_text("sentence\tlabel\n" + rows)
    return path


def predictions(source: Path, count: int) -> list[int]:
    """Return what a classifier says of the first texts of `labeled`."""
    checkpoint = open_checkpoint(source)
    assert checkpoint.tokenizer is not None
    texts = [f"the dog number {i} runs" for i in range(count)]
    encoded = checkpoint.tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        return checkpoint.model(**encoded).logits.argmax(-1).tolist()


def test_the_tasks_metrics_of_both_sides(classifier: tuple[Path, Path], tmp_path: Path) -> None:
    source, graph = classifier
    said = predictions(source, 40)
    labels = [label if i % 4 else (label + 1) % 3 for i, label in enumerate(said)]
    result = verify_checkpoints(source, graph, data=labeled(tmp_path / "a.tsv", labels))
    assert result.metrics is not None
    assert result.metrics["accuracy"] == (0.75, 0.75)
    assert result.to_dict()["metrics"]["accuracy"] == {"reference": 0.75, "candidate": 0.75}


def test_a_worse_candidate_has_a_worse_metric(
    classifier: tuple[Path, Path], tmp_path: Path
) -> None:
    def turn(tensors: Tensors) -> None:
        tensors["classifier.weight"] = -tensors["classifier.weight"]
        tensors["classifier.bias"] = -tensors["classifier.bias"]

    source, _ = classifier
    other = changed(source, tmp_path / "other", turn)
    data = labeled(tmp_path / "a.tsv", predictions(source, 15))
    result = verify_checkpoints(source, other, data=data)
    assert not result.holds
    assert result.metrics is not None
    assert result.metrics["accuracy"] == (1.0, 0.0)


def test_without_labels_there_are_no_metrics(classifier: tuple[Path, Path], tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("sentence\nthe dog runs\n")
    result = verify_checkpoints(*classifier, data=path)
    assert result.holds
    assert result.metrics is None


def test_a_folder_without_a_tokenizer_takes_what_the_other_side_takes(
    tiny: TinyCheckpoints, tmp_path: Path
) -> None:
    """A tokenizer that makes no segments says less than a forward that takes them."""
    plain = shutil.copytree(tiny.classifier("bert"), tmp_path / "plain")
    settings = plain / "tokenizer_config.json"
    names = {"model_input_names": ["input_ids", "attention_mask"]}
    settings.write_text(json.dumps({**json.loads(settings.read_text()), **names}))
    bare = shutil.copytree(plain, tmp_path / "bare", ignore=shutil.ignore_patterns("token*"))
    assert verify_checkpoints(plain, bare).holds
    assert verify_checkpoints(bare, plain).holds


def test_a_side_that_does_not_match_its_manifest_is_compared_all_the_same(
    tiny: TinyCheckpoints, tmp_path: Path
) -> None:
    plain = tiny.classifier("bert")
    graph = export_onnx(plain, tmp_path / "graph", verify=False).path
    assert verify_checkpoints(plain, graph).passed
    (graph / "config.json").write_text((graph / "config.json").read_text() + "\n")
    result = verify_checkpoints(plain, graph)
    assert result.holds
    assert not result.passed
    assert "config.json: was changed after onnx wrote it" in result.reasons()[0]


def test_why_there_is_no_drift_map_is_said(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    graph = export_onnx(tiny.classifier("bert"), tmp_path / "graph", verify=False).graph
    model = onnx.load(graph)
    kept = [entry for entry in model.metadata_props if entry.key != "module_values"]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    onnx.save(model, tmp_path / "other.onnx")
    result = verify_checkpoints(tiny.classifier("bert"), tmp_path / "other.onnx", drift=True)
    assert result.drift is None
    assert "other.onnx does not record its modules" in result.no_drift
