"""Cards as the commands write them, and the code in them."""

import contextlib
import io
import json
import re
from pathlib import Path

import pytest
from checkpoints import TinyCheckpoints
from cli_runs import Way, make_way
from huggingface_hub import ModelCard

from mixout_export.artifacts.opening import open_artifact
from mixout_export.card.document import read_card
from mixout_export.card.steps import USE
from mixout_export.card.usage import graph_usage, model_usage
from mixout_export.checkpoint.base import BaseOptions
from mixout_export.quiet import quiet_libraries
from mixout_export.rounding import difference
from mixout_export.stages.collapse import collapse_checkpoint
from mixout_export.stages.onnx_export import export_onnx
from mixout_export.stages.prepare import PrepareOptions, prepare_checkpoint
from mixout_export.tasks import TASKS


@pytest.fixture(scope="module")
def way(tmp_path_factory: pytest.TempPathFactory, tiny: TinyCheckpoints) -> Way:
    return make_way(tmp_path_factory.mktemp("cards"), tiny)


def run_code(folder: Path, use: str) -> str:
    """Run the Python of a section inside a folder, as one would after a download."""
    (code,) = re.findall(r"```python\n(.*?)\n```", use, re.DOTALL)
    said = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(said), quiet_libraries():
        exec(code, {})
    return said.getvalue()


def test_every_folder_of_the_way_has_a_card_that_the_hub_reads(way: Way) -> None:
    cards = {
        name: ModelCard.load(getattr(way, name) / "README.md")
        for name in ("prepared", "trained", "collapsed", "graph")
    }
    for name, card in cards.items():
        assert card.data.pipeline_tag == "text-classification", name
        assert card.data.license is None, name  # the base has no card that says one
        assert card.data.base_model is None, name
    assert {r.dataset_name for r in cards["trained"].data.eval_results} == {"eval.tsv"}
    assert "| training data | train.tsv |" in cards["trained"].text
    assert "| evaluation data | eval.tsv |" in cards["trained"].text
    by_label = json.loads((way.trained / "training.json").read_text())["result"]["by_label"]
    assert len(by_label) == 2
    for scores in by_label:
        figures = [f"{scores[name]:.4f}" for name in ("precision", "recall", "f1")]
        cells = [scores["label"], str(scores["rows"]), str(scores["predicted"]), *figures]
        assert f"| {' | '.join(cells)} |" in cards["trained"].text
    assert cards["collapsed"].data.eval_results == cards["trained"].data.eval_results
    assert "bit for bit" in cards["collapsed"].text
    assert cards["graph"].data.eval_results is None  # it was not compared
    assert "It was not compared with PyTorch." in cards["graph"].text
    assert not any(str(way.root) in card.content for card in cards.values())


def test_a_graph_that_was_compared_says_how_far_it_is(way: Way, tmp_path: Path) -> None:
    result = export_onnx(way.collapsed, tmp_path / "onnx")
    assert result.parity is not None
    card = ModelCard.load(tmp_path / "onnx" / "README.md")
    (output,) = result.parity.outputs
    assert (
        f"| logits | {difference(output.max_abs)} | {difference(output.mean_abs)} | 100 % |"
        in card.text
    )
    assert card.data.eval_results
    outputs = run_code(tmp_path / "onnx", read_card(tmp_path / "onnx" / "README.md").section(USE))
    assert "'logits': array([[" in outputs


@pytest.mark.parametrize("task", sorted({*TASKS} - {"image-classification"}))
def test_the_code_of_a_card_runs(task: str, tiny: TinyCheckpoints, tmp_path: Path) -> None:
    labels = ("a", "b") if task in ("multi-label", "token-classification") else None
    base = tiny.base("gpt2" if task == "causal-lm" else "bert")
    prepared = tmp_path / "prepared"
    prepare_checkpoint(
        str(base), prepared, PrepareOptions(base=BaseOptions(task=task, labels=labels))
    )
    collapse_checkpoint(prepared, tmp_path / "plain")
    use = read_card(tmp_path / "plain" / "README.md").section(USE)
    assert use == model_usage(open_artifact(tmp_path / "plain").task)
    assert run_code(tmp_path / "plain", use)  # an answer may be empty, a line there is


@pytest.mark.parametrize("task", ["question-answering", "multiple-choice"])
def test_the_code_of_a_graphs_card_runs(task: str, tiny: TinyCheckpoints, tmp_path: Path) -> None:
    prepared = tmp_path / "prepared"
    prepare_checkpoint(
        str(tiny.base()), prepared, PrepareOptions(base=BaseOptions(task=task, labels=None))
    )
    export_onnx(prepared, tmp_path / "onnx", verify=False)
    use = read_card(tmp_path / "onnx" / "README.md").section(USE)
    assert "logits" in run_code(tmp_path / "onnx", use)


def test_a_base_without_a_head_has_code_too(tiny: TinyCheckpoints) -> None:
    assert "torch.Size([1, " in run_code(tiny.base(), model_usage(None))
    assert "AutoImageProcessor" in graph_usage(None, ("pixel_values",))
