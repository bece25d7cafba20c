import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from report_pages import Page
from tiny_models import make_model, save_checkpoint

from mixout_export.bundling.plan import BundleOptions
from mixout_export.errors import ArgumentError
from mixout_export.export.precision import Conversion
from mixout_export.stages.bundle import bundle_onnx
from mixout_export.stages.onnx_export import export_onnx
from mixout_export.stages.verify import verify_checkpoints
from mixout_export_cli.commands.verify import _describe


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A checkpoint, its graphs in two precisions, and a bundle of both."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("bundles")
    model = make_model("bert", num_hidden_layers=1)
    with torch.no_grad():
        for parameter in model.bert.parameters():
            parameter.mul_(0.3)
    made = {"model": save_checkpoint(model, root / "model")}
    for name in ("fp32", "int8"):
        made[name] = export_onnx(
            made["model"], root / name, conversion=Conversion(name), verify=False
        ).path
    made["both"] = root / "both"
    options = BundleOptions("mlserver", "tiny")
    bundle_onnx(made["fp32"], made["both"], options, also=[made["int8"]])
    return made


def test_every_graph_of_a_bundle_is_judged(folders: dict[str, Path]) -> None:
    result = verify_checkpoints(folders["model"], folders["both"])
    (other,) = result.others
    assert (result.precision, other.precision) == ("fp32", "int8")
    assert other.candidate == str(folders["both"] / "tiny_int8" / "model.onnx")
    assert result.passed
    assert "2 of 2 graphs of the bundle are the same model" in _describe(result)


def test_one_bad_graph_fails_the_bundle(folders: dict[str, Path]) -> None:
    result = verify_checkpoints(folders["model"], folders["both"], atol=1e-5, rtol=1e-4)
    assert (result.graph_holds, result.holds, result.passed) == (True, False, False)
    (reason,) = {reason.split(": output")[0] for reason in result.reasons() if "output" in reason}
    assert reason.endswith("tiny_int8/model.onnx")
    assert "1 of 2 graphs of the bundle are the same model" in _describe(result)


def test_a_bundle_of_several_precisions_is_no_reference(folders: dict[str, Path]) -> None:
    with pytest.raises(ArgumentError, match=r"several precisions; .*tiny/model.onnx or .*_int8"):
        verify_checkpoints(folders["both"], folders["fp32"])
    assert verify_checkpoints(folders["both"] / "tiny" / "model.onnx", folders["fp32"]).passed


def test_terminal_shows_the_judged_agreement_and_the_flips(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    texts = tmp_path / "dev.csv"
    lines = [f"the {word} sees {'a ' * (i % 9)}bird" for i in range(10) for word in ("cat", "dog")]
    texts.write_text("\n".join(["text", *lines]) + "\n")
    result = verify_checkpoints(folders["model"], folders["int8"], data=texts, min_agreement=0.0)
    (output,) = result.outputs
    counted = result.counted(output)
    assert counted is not None
    assert counted.decisions == 20
    shown = _describe(result)
    flips = len(result.flips)
    assert flips == min(len(output.flip_examples), 20)
    assert ("different decisions" in shown) == bool(flips)
    assert all(flip in shown for flip in result.flips[:5])


@pytest.mark.parametrize("bad", ["fp32", "int8"])
def test_verdict_and_page_name_the_graph_that_fails(
    bad: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    bundle = tmp_path / "both"
    shutil.copytree(folders["both"], bundle)
    graphs = {"fp32": bundle / "tiny/model.onnx", "int8": bundle / "tiny_int8/model.onnx"}
    model = onnx.load(graphs[bad])
    (bias,) = (each for each in model.graph.initializer if each.name == "classifier.bias")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(9), bias.name))
    onnx.save(model, graphs[bad])
    report = tmp_path / "report.html"
    result = verify_checkpoints(folders["model"], bundle, report_to=report)
    assert [each.candidate for each in result.graphs] == list(map(str, graphs.values()))
    held = {each.precision: each.graph_holds for each in result.graphs}
    assert held == {"fp32": bad != "fp32", "int8": bad != "int8"}
    assert all(reason.startswith(f"{graphs[bad]}: ") for reason in result.reasons()[:-1])
    assert result.reasons()[-1].startswith(f"{graphs[bad]}: was changed after bundle wrote it")
    page = Page(report.read_text("utf-8"))
    assert f"1 of 2 graphs of the bundle is another model: {graphs[bad]}" in page.text
    assert page.text.count("Test inputs") >= 2  # a part for each graph
    identities = re.findall(r'\bid="([^"]+)"', report.read_text("utf-8"))
    assert len(identities) == len(set(identities))
    for name, graph in graphs.items():
        assert f"{graph} {'✗ no' if name == bad else '✓ yes'} {name} " in page.text
