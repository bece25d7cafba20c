import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
from cli_runs import Program, content
from tiny_models import POSITIONS, VOCABULARY, make_model, save_checkpoint

from mixout_export.artifacts.opening import open_artifact
from mixout_export.checkpoint.artifact import LocalArtifact
from mixout_export.checkpoint.base import BaseOptions
from mixout_export.checkpoint.interface import shared_interface
from mixout_export.export.precision import Conversion
from mixout_export.parity.battery import Battery, build_battery
from mixout_export.parity.comparison import compare_artifacts
from mixout_export.parity.description import interfaces
from mixout_export.parity.padding import PaddingCheck
from mixout_export.parity.result import ParityResult
from mixout_export.parity.self_test.examination import ReferenceOutputs, self_test
from mixout_export.parity.self_test.faults import FAULTS, Fault
from mixout_export.parity.self_test.outcome import SelfTest
from mixout_export.stages.onnx_export import export_onnx
from mixout_export.stages.prepare import PrepareOptions, prepare_checkpoint

#: Fault → the tensors that the audit names, for a tiny BERT.
NAMED = {
    "perturbed Linear": "bert.encoder.layer.1.intermediate.dense.weight",
    "zeroed position rows": "bert.embeddings.position_embeddings.weight",
    "zeroed segment row": "bert.embeddings.token_type_embeddings.weight",
    "zeroed vocabulary tail": "bert.embeddings.word_embeddings.weight",
    "swapped classes": "classifier.bias, classifier.weight",
    "swapped labels": "",
    "wrong epsilon": "",
    "dropped bias": "bert.encoder.layer.0.intermediate.dense.bias",
    "stale classifier": "classifier.bias, classifier.weight",
    "one changed number": "bert.encoder.layer.1.intermediate.dense.weight",
    "padding read as text": "",
}

#: Why a folder cannot have the fault of padding.
CODE = "the code of transformers reads attention_mask, not a file"


#: Fault → the first module that the drift map names, where outputs change.
MODULES = {
    "perturbed Linear": "bert.encoder.layer.1.intermediate.dense",
    "zeroed position rows": "bert.embeddings.position_embeddings",
    "zeroed segment row": "bert.embeddings.token_type_embeddings",
    "zeroed vocabulary tail": "bert.embeddings.word_embeddings",
    "swapped classes": "classifier",
    "wrong epsilon": "bert.embeddings.LayerNorm",
    "dropped bias": "bert.encoder.layer.0.intermediate.dense",
    "stale classifier": "classifier",
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    return save_checkpoint(make_model("bert"), tmp_path_factory.mktemp("plain") / "bert")


@pytest.fixture(scope="module")
def candidates(plain: Path, tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("candidates")
    prepare_checkpoint(str(plain), root / "mixout")
    graph = export_onnx(plain, root / "graph", verify=False).path
    external = root / "external"
    external.mkdir()
    onnx.save(
        onnx.load(graph / "model.onnx"),
        external / "model.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=100,
    )
    return {"folder": plain, "mixout": root / "mixout", "graph": graph, "external": external}


def compared(
    reference: Path, candidate: Path, **options: float
) -> tuple[LocalArtifact, LocalArtifact, Battery, ParityResult, ReferenceOutputs]:
    left, right = open_artifact(reference), open_artifact(candidate)
    battery = build_battery(shared_interface(*interfaces(left, right)), task=left.task_name)
    outputs = ReferenceOutputs()
    verdict = compare_artifacts(left, right, battery=battery, watch=outputs, **options)
    assert verdict.holds
    return left, right, battery, verdict, outputs


def examined(reference: Path, candidate: Path, faults=FAULTS, **options: float) -> SelfTest:
    left, right, battery, verdict, outputs = compared(reference, candidate, **options)
    return self_test(left, right, battery=battery, verdict=verdict, outputs=outputs, faults=faults)


@pytest.mark.parametrize("kind", ["folder", "mixout", "graph", "external"])
def test_each_fault_is_caught_by_the_battery_too_and_named(
    kind: str, plain: Path, candidates: dict[str, Path]
) -> None:
    candidate = candidates[kind]
    before = content(candidate)
    found = examined(plain, candidate)
    assert content(candidate) == before
    *others, padding = found.faults
    assert [fault.fault for fault in found.faults] == [fault.name for fault in FAULTS]
    assert all(not fault.not_applicable for fault in others)
    assert padding.not_applicable == (CODE if kind in ("folder", "mixout") else "")
    assert found.passed
    assert found.reasons() == ()
    assert found.missed_by_battery == ()
    assert {fault.fault: fault.audit for fault in found.faults} == NAMED
    if not padding.not_applicable:
        assert padding.padding == "a row changes when it is padded on the right"
        assert padding.caught_by[:2] == ("battery", "padding")
    modules = {fault.fault: fault.drift for fault in others if fault.changes_outputs}
    assert modules == MODULES
    (labels,) = (fault for fault in found.faults if fault.fault == "swapped labels")
    assert labels.labels == (
        "labels: got LABEL_1, LABEL_0, LABEL_2, expected LABEL_0, LABEL_1, LABEL_2"
    )
    assert labels.caught_by == ("labels",)
    (epsilon,) = (fault for fault in found.faults if fault.fault == "wrong epsilon")
    assert epsilon.settings.startswith(
        "epsilon of 'bert.embeddings.LayerNorm': got 0.001, expected 1e-12 (and "
    )
    assert epsilon.caught_by == ("settings", "battery", "drift")


def test_graph_as_reference_and_two_graphs(plain: Path, candidates: dict[str, Path]) -> None:
    for candidate, lacks in ((plain, 1), (candidates["graph"], 0)):
        found = examined(candidates["graph"], candidate)
        assert len(found.applied) == len(FAULTS) - lacks
        assert found.passed
        assert found.missed_by_battery == ()


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_graphs_of_other_precisions(precision: str, plain: Path, tmp_path: Path) -> None:
    """Integers and halves are changed in steps that they have, and the audit sees each."""
    conversion = Conversion(precision)
    graph = export_onnx(plain, tmp_path / "graph", verify=False, conversion=conversion).path
    found = examined(plain, graph, min_agreement=0.0)
    *others, padding = found.faults
    assert all(not fault.not_applicable for fault in others)
    assert padding.not_applicable == ("its padding is not judged" if precision == "int8" else "")
    assert found.passed
    for fault in others:
        assert bool(fault.audit) is (fault.fault not in ("swapped labels", "wrong epsilon")), fault


def test_what_was_changed_is_said(plain: Path, candidates: dict[str, Path]) -> None:
    for candidate in (plain, candidates["graph"]):
        what = {fault.fault: fault.what for fault in examined(plain, candidate).faults}
        assert what["perturbed Linear"] == f"{NAMED['perturbed Linear']} × 1.001"
        assert what["zeroed position rows"].endswith(f"row {POSITIONS - 1}, set to 0")
        first = VOCABULARY - VOCABULARY // 20
        assert what["zeroed vocabulary tail"].endswith(
            f"rows {first} to {VOCABULARY - 1}, set to 0"
        )
        assert what["wrong epsilon"].endswith("1e-12 → 0.001")
        assert what["dropped bias"].endswith("intermediate.dense.bias removed")


@pytest.mark.parametrize(
    ("kind", "head", "graph_lacks", "folder_lacks"),
    [
        ("llama", "ForSequenceClassification", {"position", "segment", "bias"}, set()),
        ("gpt2", "LMHeadModel", {"segment", "labels"}, {"classes", "classifier"}),
        ("bert", "Model", {"classes", "labels", "classifier"}, set()),
        ("distilbert", "ForTokenClassification", {"segment"}, {"epsilon"}),
    ],
)
def test_what_an_architecture_cannot_have_has_a_reason(
    kind: str, head: str, graph_lacks: set[str], folder_lacks: set[str], tmp_path: Path
) -> None:
    model = make_model(kind, head, num_hidden_layers=1, n_layers=1, n_layer=1)
    source = save_checkpoint(model, tmp_path / "source")
    graph = export_onnx(source, tmp_path / "graph", verify=False).path
    in_folder = graph_lacks | folder_lacks | {"padding"}
    for candidate, lacks in ((graph, graph_lacks), (source, in_folder)):
        found = examined(source, candidate)
        assert found.passed
        assert found.missed_by_battery == ()
        absent = [fault for fault in found.faults if fault.not_applicable]
        assert len(absent) == len(lacks)
        assert all(any(word in fault.fault for word in lacks) for fault in absent)
        assert not any(fault.to_dict()["caught"] for fault in absent)


def test_fault_that_nothing_catches_does_not_pass(plain: Path, candidates: dict[str, Path]) -> None:
    unchanged = Fault("nothing", lambda copier, out, _: (copier.write(out, {}), "nothing at all"))
    for candidate in candidates.values():
        found = examined(plain, candidate, faults=(unchanged,))
        assert not found.passed
        assert found.reasons() == ("self-test: nothing (nothing at all) was not caught",)
        assert found.to_dict()["missed"] == ["nothing"]
        assert found.to_dict()["missed_by_battery"] == ["nothing"]


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_a_check_of_padding_that_cannot_fail_does_not_pass(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save_checkpoint(make_model(kind), tmp_path / "source")
    graph = export_onnx(source, tmp_path / "graph", verify=False).path
    fault = FAULTS[-1]
    assert fault.about_padding
    (found,) = examined(source, graph, faults=(fault,)).faults
    assert found.padding.startswith("a row changes when it is padded on the ")
    blind = "mixout_export.parity.self_test.examination.check_padding"
    monkeypatch.setattr(blind, lambda *args, **options: PaddingCheck())
    tested = examined(source, graph, faults=(fault,))
    assert not tested.passed
    assert tested.missed[0].battery
    assert tested.reasons() == (
        "self-test: padding read as text (attention_mask taken, but not used) was not caught",
    )


def test_wide_tolerance_lets_faults_slip(plain: Path) -> None:
    found = examined(plain, plain, atol=1e6)
    caught = {fault.fault for fault in found.applied if fault.caught}
    assert caught == {"swapped labels"}
    assert not found.passed


def test_outputs_that_were_not_kept_are_computed_again(plain: Path) -> None:
    left, right, battery, verdict, _ = compared(plain, plain)
    found = self_test(
        left, right, battery=battery, verdict=verdict, outputs=ReferenceOutputs(limit=0)
    )
    assert found.passed
    assert found.missed_by_battery == ()


@pytest.mark.real
@pytest.mark.repeats
def test_all_are_caught_on_a_real_checkpoint(real_checkpoint: Path, tmp_path: Path) -> None:
    base = tmp_path / "prepared"
    options = PrepareOptions(base=BaseOptions(task="text-classification", labels=3))
    prepare_checkpoint(str(real_checkpoint), base, options)
    graph = export_onnx(base, tmp_path / "graph", verify=False).path
    left, right = open_artifact(base), open_artifact(graph)
    interface = shared_interface(*interfaces(left, right))
    for seed in range(2):
        battery = build_battery(interface, task=left.task_name, seed=seed, vocabulary_budget=1024)
        outputs = ReferenceOutputs()
        verdict = compare_artifacts(left, right, battery=battery, watch=outputs)
        assert verdict.holds
    found = self_test(left, right, battery=battery, verdict=verdict, outputs=outputs)
    assert len(found.applied) == len(FAULTS)
    assert found.passed
    assert found.missed_by_battery == ()


@pytest.fixture
def program(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Program:
    """The program; what it sets for its process is put back afterwards."""
    logger = logging.getLogger("mixout_export")
    monkeypatch.setattr(logger, "handlers", list(logger.handlers))
    monkeypatch.setattr(logger, "propagate", logger.propagate)
    return Program(capfd)


def test_command_lists_what_caught_each_fault(
    plain: Path, candidates: dict[str, Path], program: Program
) -> None:
    text = program("verify", plain, candidates["graph"], "--self-test").done().out
    assert "self-test: 11 of 11 faults caught" in text
    line = next(line for line in text.splitlines() if line.startswith("perturbed Linear"))
    assert "audit, battery, drift" in line
    assert "outputs alone" not in text
    found = program("verify", plain, candidates["graph"], "--self-test", "--json").done().json
    assert found["self_test"]["passed"] is True
    assert len(found["self_test"]["faults"]) == 11
    assert program("verify", plain, plain, "--json").done().json["self_test"] is None


def test_fault_that_slips_through_is_exit_code_3(plain: Path, program: Program) -> None:
    run = program("verify", plain, plain, "--self-test", "--atol", 1e6)
    assert run.code == 3
    assert "self-test: 1 of 10 faults caught" in run.out
    assert "parity holds (given: atol" in run.out
    assert "self-test: dropped bias" in run.out
    run = program("verify", plain, plain, "--self-test", "--atol", 1e6, "--json")
    assert run.json["holds"] is True
    assert "perturbed Linear" in run.json["self_test"]["missed"]


def test_inputs_that_show_little_are_told(plain: Path, tmp_path: Path, program: Program) -> None:
    ids = np.full((2, 4), 5)
    np.savez(
        tmp_path / "few.npz",
        input_ids=ids,
        attention_mask=np.ones_like(ids),
        token_type_ids=np.zeros_like(ids),
    )
    run = program("verify", plain, plain, "--self-test", "--inputs", tmp_path / "few.npz").done()
    (unseen,) = (line for line in run.out.splitlines() if "test inputs alone" in line)
    for fault in ("zeroed position rows", "zeroed segment row", "zeroed vocabulary tail"):
        assert fault in unseen
    assert "swapped classes" not in unseen


def test_faults_are_not_put_in_where_parity_does_not_hold(
    plain: Path, tmp_path: Path, program: Program
) -> None:
    other = save_checkpoint(make_model("bert", seed=1), tmp_path / "other")
    run = program("verify", plain, other, "--self-test", "--json")
    assert run.code == 3
    assert run.json["self_test"] is None
