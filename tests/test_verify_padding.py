"""`verify` proves that a row's result depends neither on padding nor on its neighbors."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from checkpoints import make_model, make_tokenizer
from cli_runs import Program
from onnx import helper, numpy_helper
from report_pages import Page
from served_models import served

from mixout_export.checkpoint import padding
from mixout_export.checkpoint.base import BaseOptions
from mixout_export.checkpoint.tokenizer_file import set_padding_side
from mixout_export.export.precision import Conversion
from mixout_export.parity.padding import PaddingEffect
from mixout_export.parity.result import ParityResult
from mixout_export.stages.onnx_export import export_onnx
from mixout_export.stages.prepare import PrepareOptions, prepare_checkpoint
from mixout_export.stages.verify import verify_checkpoints

CLASSIFIER = "ForSequenceClassification"
KINDS = ("bert", "gpt2", "llama", "t5")

#: Where padding on the left gives PyTorch's own models other results: they read the first token, or
#: attend to padding in the decoder.
RIGHT_ONLY = {"bert", "t5"}


def save(kind: str, path: Path, head: str = CLASSIFIER, side: str = "right", seed: int = 0) -> Path:
    make_model(kind, head, seed=seed).save_pretrained(path)
    make_tokenizer(kind).save_pretrained(path)
    set_padding_side(path, side)
    return path


class Models:
    """Folders and graphs, each made once."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, kind: str) -> Path:
        path = self.root / kind
        return path if path.exists() else save(kind, path)

    def graph(self, kind: str, precision: str) -> Path:
        path = self.root / f"{kind}-{precision}"
        if not path.exists():
            export_onnx(self.folder(kind), path, conversion=Conversion(precision), verify=False)
        return path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def program(capsys: pytest.CaptureFixture[str]) -> Program:
    return Program(capsys)


def effects(result: ParityResult) -> dict[str, PaddingEffect]:
    assert result.padding is not None
    return {effect.around: effect for effect in result.padding.effects}


def unmasked(graph: Path, out: Path) -> Path:
    """Write a graph that takes an attention mask and does not look at it."""
    model = onnx.load(graph)
    for node in model.graph.node:
        node.input[:] = ["unmasked" if name == "attention_mask" else name for name in node.input]
    one = numpy_helper.from_array(np.ones(1, np.int64))
    for node in (
        helper.make_node("ConstantOfShape", ["mask_shape"], ["unmasked"], value=one),
        helper.make_node("Shape", ["attention_mask"], ["mask_shape"]),
    ):
        model.graph.node.insert(0, node)
    onnx.save(model, out)
    return out


def mixing_rows(graph: Path, out: Path) -> Path:
    """Write a graph that adds to each row's logits their distance to the mean of the batch."""
    model = onnx.load(graph)
    for node in model.graph.node:
        node.output[:] = ["own" if name == "logits" else name for name in node.output]
    axis = numpy_helper.from_array(np.zeros(1, np.int64), "first_axis")
    model.graph.initializer.append(axis)
    model.graph.node.extend(
        [
            helper.make_node("ReduceMean", ["own", "first_axis"], ["mean"]),
            helper.make_node("Sub", ["own", "mean"], ["distance"]),
            helper.make_node("Add", ["own", "distance"], ["logits"]),
        ]
    )
    onnx.save(model, out)
    return out


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("kind", KINDS)
def test_classifiers_do_not_depend_on_padding(models: Models, kind: str, precision: str) -> None:
    result = verify_checkpoints(models.folder(kind), models.graph(kind, precision))
    assert result.passed, result.reasons()
    found = effects(result)
    assert list(found) == ["neighbors", "right", "left"]
    assert {around for around, effect in found.items() if not effect.judged} == (
        {"left"} if kind in RIGHT_ONLY else set()
    )
    for effect in found.values():
        names = [output.name for output in effect.outputs]
        assert names == ["logits"] + ["logits in fp16 arithmetic"] * (precision == "fp16")
        assert effect.rows >= 4
    assert (found["right"].rows, found["right"].widths) == (12, (64,))
    notes = result.padding.notes()
    assert ["left gets other results from the reference itself" in note for note in notes] == (
        [True] if kind in RIGHT_ONLY else []
    )


@pytest.mark.parametrize(
    ("kind", "precision", "side"),
    [("bert", "fp32", "right"), ("llama", "fp16", "left")],  # a decoder never reads what follows
)
def test_graph_that_ignores_the_mask_is_refused(
    models: Models, kind: str, precision: str, side: str, tmp_path: Path
) -> None:
    broken = unmasked(models.graph(kind, precision) / "model.onnx", tmp_path / "model.onnx")
    result = verify_checkpoints(models.folder(kind), broken)
    assert not result.holds
    found = effects(result)
    assert found["neighbors"].holds
    assert not found[side].holds
    (reason,) = [each for each in result.reasons() if f"padded on the {side}" in each]
    assert "the candidate reads padding as text" in reason
    assert "check that it uses attention_mask" in reason


def test_graph_that_mixes_rows_is_refused(models: Models, tmp_path: Path) -> None:
    broken = mixing_rows(models.graph("bert", "fp32") / "model.onnx", tmp_path / "model.onnx")
    result = verify_checkpoints(models.folder("bert"), broken)
    assert not effects(result)["neighbors"].holds
    (reason,) = [each for each in result.reasons() if "beside other rows" in each]
    assert reason.endswith("the candidate mixes the rows of a batch")


def test_graph_whose_positions_count_padding_is_refused(tmp_path: Path, program: Program) -> None:
    source = save("gpt2", tmp_path / "source", seed=7)  # no other test captures this model
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(padding, "count_positions_in_text", lambda model: None)
        graph = export_onnx(source, tmp_path / "onnx", verify=False).path
        same = verify_checkpoints(source, graph)
    # PyTorch alone depends on it, too: the user is told, and the graph is not blamed
    assert same.passed, same.reasons()
    assert any("pad texts on the right" in note for note in same.padding.notes())
    run = program("verify", source, graph, "--report", tmp_path / "page.html", "--json")
    assert run.code == 3
    said = run.json
    (reason,) = [each for each in said["reasons"] if "padded on the left" in each]
    assert "counts it in positions; check that it uses attention_mask, and that position" in reason
    assert not said["padding"]["holds"]
    assert [each["holds"] for each in said["padding"]["effects"]] == [True, True, False]
    page = Page((tmp_path / "page.html").read_text("utf-8"))
    assert "padded on the left" in page.all("th")
    lines = program("verify", source, graph).out.splitlines()
    assert [line.split()[-1] for line in lines if line.startswith("padded on")] == ["yes", "NO"]


@pytest.mark.parametrize(
    ("kind", "head"),
    [
        ("bert", "ForTokenClassification"),
        ("bert", "ForQuestionAnswering"),
        ("bert", "ForMultipleChoice"),
        ("bert", "Model"),
        ("llama", "ForCausalLM"),
        ("gpt2", "LMHeadModel"),
    ],
)
def test_only_real_tokens_count_whatever_the_task(kind: str, head: str, tmp_path: Path) -> None:
    source = save(kind, tmp_path / "source", head)
    result = verify_checkpoints(source, source)
    assert result.passed, result.reasons()
    found = effects(result)
    assert found["neighbors"].judged
    assert found["right"].judged
    assert found["left"].judged == (kind not in RIGHT_ONLY)
    assert all(not output.problem for effect in found.values() for output in effect.outputs)


def test_mixout_checkpoints_and_servers_are_checked(models: Models, tmp_path: Path) -> None:
    graph = models.graph("gpt2", "fp32")
    prepared = tmp_path / "prepared"
    prepare_checkpoint(str(models.folder("gpt2")), prepared, PrepareOptions(base=BaseOptions()))
    with served(graph / "model.onnx") as server:
        address = server.address
        for reference, candidate in ((prepared, graph), (prepared, address)):
            result = verify_checkpoints(reference, candidate)
            assert result.passed, result.reasons()
            assert [effect.judged for effect in effects(result).values()] == [True] * 3


def test_a_server_that_mixes_rows_is_blamed(models: Models, tmp_path: Path) -> None:
    broken = mixing_rows(models.graph("bert", "fp32") / "model.onnx", tmp_path / "model.onnx")
    with served(broken) as server:
        result = verify_checkpoints(models.folder("bert"), server.address)
    assert not effects(result)["neighbors"].holds
    assert not result.passed
