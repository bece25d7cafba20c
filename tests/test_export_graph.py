from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from tiny_models import POSITIONS, VOCABULARY, make_model, make_tokenizer
from torch import nn

from mixout_export.checkpoint.interface import (
    ModelInterface,
    describe_interface,
    settle_pad_token,
)
from mixout_export.errors import ArgumentError, ExportError
from mixout_export.export.document import write_graph
from mixout_export.export.graph import ExportedGraph, export_graph
from mixout_export.export.opset import declare_lowest, lower_to
from mixout_export.tasks import TASKS, get_task


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def interface_of(
    kind: str, head: str = "ForSequenceClassification", task="text-classification", **settings
) -> ModelInterface:
    return describe_interface(make_model(kind, head, **settings), get_task(task), make_tokenizer())


@pytest.mark.parametrize(
    ("kind", "inputs", "limit"),
    [
        ("bert", ("input_ids", "attention_mask", "token_type_ids"), POSITIONS),
        ("roberta", ("input_ids", "attention_mask"), POSITIONS),
        ("distilbert", ("input_ids", "attention_mask"), POSITIONS),
        ("albert", ("input_ids", "attention_mask", "token_type_ids"), POSITIONS),
        ("gpt2", ("input_ids", "attention_mask"), POSITIONS),
        ("llama", ("input_ids", "attention_mask"), POSITIONS),
    ],
)
def test_interface_of_each_architecture(kind: str, inputs: tuple[str, ...], limit: int) -> None:
    model = make_model(kind)
    for tokenizer in (make_tokenizer(), None):
        interface = describe_interface(model, TASKS["text-classification"], tokenizer)
        assert interface.inputs == inputs
        assert interface.sequence_limit == limit
        assert interface.vocabulary_size == VOCABULARY
        assert ModelInterface.from_dict(interface.to_dict()) == interface


def test_positions_of_roberta_are_limited_where_the_model_says_so() -> None:
    model = make_model("roberta")
    limit = interface_of("roberta").sequence_limit
    assert limit is not None
    model(input_ids=torch.full((1, limit), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, limit + 1), 5))


def test_tokenizer_without_segments_leaves_them_out() -> None:
    tokenizer = make_tokenizer()
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    interface = describe_interface(make_model("bert"), TASKS["text-classification"], tokenizer)
    assert interface.inputs == ("input_ids", "attention_mask")


def test_padding_id_comes_from_the_tokenizer_only_where_the_model_has_none() -> None:
    model = make_model("gpt2", pad_token_id=None)
    settle_pad_token(model, make_tokenizer(1))
    assert model.config.pad_token_id == 1
    settle_pad_token(model, make_tokenizer(0))
    assert model.config.pad_token_id == 1


@pytest.fixture(scope="module")
def bert_graph() -> ExportedGraph:
    return export_graph(make_model("bert"), interface_of("bert"))


def axes(value) -> list[str | int | None]:
    return [dim if isinstance(dim, int) else dim.value for dim in value.shape]


def test_graph_has_named_dynamic_axes_and_int64_inputs(bert_graph: ExportedGraph) -> None:
    graph = bert_graph.model.graph
    assert [value.name for value in graph.inputs] == [
        "input_ids",
        "attention_mask",
        "token_type_ids",
    ]
    assert all(axes(value) == ["batch", "sequence"] for value in graph.inputs)
    assert {value.dtype.name for value in graph.inputs} == {"INT64"}
    assert [(value.name, axes(value)) for value in graph.outputs] == [("logits", ["batch", 3])]


def test_nodes_remember_their_modules(bert_graph: ExportedGraph) -> None:
    nodes = {node.name: node.op_type for node in bert_graph.model.graph}
    assert nodes.keys() == bert_graph.modules_by_node.keys()
    query = "bert.encoder.layer.1.attention.self.query"
    made = {nodes[n] for n, module in bert_graph.modules_by_node.items() if module == query}
    assert "MatMul" in made
    modules = dict(make_model("bert").named_modules())
    assert set(bert_graph.modules_by_node.values()) <= modules.keys()
    linears = {name for name, module in modules.items() if isinstance(module, nn.Linear)}
    assert linears <= set(bert_graph.modules_by_node.values())


def test_weights_keep_their_names(bert_graph: ExportedGraph) -> None:
    model = make_model("bert")
    keys = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    named = {name for name in bert_graph.model.graph.initializers if "." in name}
    assert named <= keys
    assert "bert.embeddings.word_embeddings.weight" in named


@pytest.mark.parametrize(
    ("kind", "head", "task", "shape"),
    [
        ("bert", "ForQuestionAnswering", "question-answering", (3, 7)),
        ("bert", "ForMultipleChoice", "multiple-choice", (2, 4, 7)),
        ("distilbert", "ForTokenClassification", "token-classification", (3, 7)),
        ("distilbert", "ForMaskedLM", "masked-lm", (3, 7)),
        ("gpt2", "LMHeadModel", "causal-lm", (3, 7)),
    ],
)
def test_other_tasks_export(
    kind: str, head: str, task: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    model = make_model(kind, head, num_hidden_layers=1, n_layers=1, n_layer=1)
    interface = describe_interface(model, get_task(task), make_tokenizer())
    (file,) = write_graph(export_graph(model, interface), tmp_path)
    ids = torch.randint(4, VOCABULARY, shape, generator=torch.Generator().manual_seed(1))
    inputs = {name: torch.zeros_like(ids) for name in interface.inputs}
    inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    session = onnxruntime.InferenceSession(file)
    found = session.run(list(interface.outputs), {k: v.numpy() for k, v in inputs.items()})
    with torch.no_grad():
        expected = model(**inputs)
    for name, value in zip(interface.outputs, found, strict=True):
        np.testing.assert_allclose(value, expected[name].numpy(), atol=1e-5, rtol=1e-4)


def example_inputs(interface: ModelInterface) -> dict[str, np.ndarray]:
    ids = np.arange(4, 18, dtype=np.int64).reshape(2, 7)
    made = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    return {name: made.get(name, np.zeros_like(ids)) for name in interface.inputs}


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_graph_of_opset_17_computes_the_same(kind: str, tmp_path: Path) -> None:
    model, interface = make_model(kind), interface_of(kind)
    graph = export_graph(model, interface, opset=17)
    assert declare_lowest(graph.model) == 17
    (file,) = write_graph(graph, tmp_path)
    proto = onnx.load(file)
    assert (proto.opset_import[0].version, proto.ir_version) == (17, 8)
    onnx.checker.check_model(proto, full_check=True)
    inputs = example_inputs(interface)
    found = onnxruntime.InferenceSession(file).run(None, inputs)[0]
    with torch.no_grad():
        expected = model(**{name: torch.from_numpy(v) for name, v in inputs.items()}).logits
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5, rtol=1e-4)


def test_operator_that_an_old_opset_lacks_is_named() -> None:
    x, y = (ir.Value(name=name) for name in "xy")
    node = ir.Node("", "BitwiseNot", [x], outputs=[y])
    model = ir.Model(ir.Graph([x], [y], nodes=[node], opset_imports={"": 18}), ir_version=8)
    with pytest.raises(ExportError, match=r"opset 17: the model needs BitwiseNot.*--opset 18"):
        lower_to(model, 17)


def test_lowest_opset_is_declared() -> None:
    graph = export_graph(make_model("bert"), interface_of("bert"), opset=18)
    assert (declare_lowest(graph.model), graph.model.ir_version) == (17, 8)


@pytest.mark.parametrize("opset", [16, 24, -1])
def test_unsupported_opset_is_refused(opset: int) -> None:
    with pytest.raises(ArgumentError, match=f"opset: got {opset}, expected 17 to 23"):
        export_graph(make_model("bert"), interface_of("bert"), opset=opset)


def test_decoder_without_a_padding_id_is_one_clear_error() -> None:
    model = make_model("gpt2", pad_token_id=None)
    interface = describe_interface(model, TASKS["text-classification"])
    with pytest.raises(ExportError, match=r"no pad_token_id.*eos_token_id") as caught:
        export_graph(model, interface)
    assert "\n" not in str(caught.value)


def test_model_that_cannot_be_captured_names_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("bert")

    def forward(*args, **kwargs):
        raise ValueError("the weather is bad\nand more lines")

    monkeypatch.setattr(model.bert, "forward", forward)
    with pytest.raises(ExportError) as caught:
        export_graph(model, interface_of("bert"))
    assert str(caught.value) == (
        "BertForSequenceClassification: cannot be exported with dynamic batch and sequence sizes: "
        "ValueError: the weather is bad"
    )


def test_export_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    export_graph(make_model("distilbert", n_layers=1), interface_of("distilbert"))
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""
