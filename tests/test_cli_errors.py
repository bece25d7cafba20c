"""Bad input: one clear sentence, exit code 1, 2 or 3, and OUT untouched."""

import json
import logging
import os
import pickle
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import POSITIONS, TinyCheckpoints
from cli_runs import Program, Run, Way, a_copy, content, make_way, small_files
from safetensors.torch import load_file, save_file
from training_runs import write_tsv

TASK = ("--task", "text-classification")


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


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    """An OUT that no test may bring into being."""
    out = tmp_path / "out"
    yield out
    assert not out.exists()
    assert not out.with_name("out.partial").exists()


@pytest.fixture
def old_out(tmp_path: Path) -> Iterator[Path]:
    """An OUT with something in it, which no test may touch."""
    out = tmp_path / "old"
    out.mkdir()
    (out / "mine").write_text("precious")
    yield out
    assert content(out) == {"mine": b"precious"}
    assert not out.with_name("old.partial").exists()


def on(command: str, folder: Path | str, out: Path, way: Way) -> tuple[object, ...]:
    """Return the arguments with which a command reads `folder`."""
    return {
        "prepare": ("prepare", folder, out, *TASK),
        "train": ("train", folder, out, "--train-file", way.train_file, "--max-steps", 1),
        "collapse": ("collapse", folder, out),
        "onnx": ("onnx", folder, out),
        "verify": ("verify", folder, way.collapsed),
        "verify as candidate": ("verify", way.collapsed, folder),
        "inspect": ("inspect", folder),
    }[command]


READERS = ("prepare", "train", "collapse", "onnx", "verify", "verify as candidate", "inspect")
WRITERS = ("prepare", "train", "collapse", "onnx")


def code_of_damage(command: str) -> int:
    """Return how a command ends on a folder that it cannot read, and that has a manifest."""
    return 1 if command in WRITERS else 3


def sound(command: str, way: Way) -> Path:
    """Return a folder that the command can read."""
    stations = {"prepare": way.base, "train": way.prepared, "collapse": way.trained}
    return stations.get(command, way.collapsed)


# Folders that cannot be read


@pytest.mark.parametrize("command", READERS)
def test_no_such_folder(command: str, way: Way, program: Program, out: Path) -> None:
    run = program(*on(command, "./no/where", out, way))
    run.failed(1, "no/where: no such ", "folder; check the path")


def test_no_such_hub_id(way: Way, program: Program, out: Path) -> None:
    said = program("prepare", "nowhere", out, *TASK).failed(
        1, "nowhere: no such folder, and the hub"
    )
    assert said.endswith("; check the path, or the network")


@pytest.mark.parametrize("command", READERS)
def test_no_configuration(
    command: str, way: Way, program: Program, out: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    said = program(*on(command, tmp_path / "empty", out, way)).failed(1, "holds no config.json")
    assert said.startswith(f"{tmp_path / 'empty'}: ")


@pytest.mark.parametrize("command", READERS)
def test_a_configuration_that_is_no_json(
    command: str, way: Way, program: Program, out: Path, tmp_path: Path
) -> None:
    broken = a_copy(sound(command, way), tmp_path / "broken")
    (broken / "config.json").write_text("{oops")
    program(*on(command, broken, out, way)).failed(
        code_of_damage(command), "broken/config.json: is not valid JSON"
    )


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty"])
@pytest.mark.parametrize("command", READERS)
def test_weights_that_are_damaged(
    command: str, damage: str, way: Way, program: Program, out: Path, tmp_path: Path
) -> None:
    broken = a_copy(sound(command, way), tmp_path / "broken")
    file = broken / "model.safetensors"
    sane = file.read_bytes()
    file.write_bytes({"truncated": sane[:-100], "garbage": b"garbage" * 99, "empty": b""}[damage])
    run = program(*on(command, broken, out, way))
    code = code_of_damage(command)
    run.failed(code, "broken/model.safetensors: ", "copy or download it again")


@pytest.mark.parametrize("command", READERS)
def test_a_pickle_is_refused_with_the_reason(
    command: str, way: Way, program: Program, out: Path, tmp_path: Path
) -> None:
    pickled = a_copy(sound(command, way), tmp_path / "pickled")
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    run = program(*on(command, pickled, out, way))
    code = code_of_damage(command)
    run.failed(code, "pickle", "can run code when it is read", "--allow-pickle")


class _Malicious:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("whole", [True, False])
def test_a_malicious_pickle_never_runs(
    whole: bool, way: Way, program: Program, out: Path, tmp_path: Path
) -> None:
    pickled, trace = a_copy(way.base, tmp_path / "pickled"), tmp_path / "it-ran"
    (pickled / "model.safetensors").unlink()
    file = pickled / "pytorch_model.bin"
    if whole:
        file.write_bytes(pickle.dumps(_Malicious(trace)))
    else:
        torch.save({"x": torch.zeros(2), "y": _Malicious(trace)}, file)
    program("prepare", pickled, out, *TASK).failed(1, "--allow-pickle")
    program("prepare", pickled, out, *TASK, "--allow-pickle").failed(1, "pytorch_model.bin: ")
    assert not trace.exists()
    pickle.loads(pickle.dumps(_Malicious(trace)))
    assert trace.exists()  # the attack works where nothing stops it


@pytest.mark.parametrize("command", READERS)
def test_code_of_the_checkpoint_is_never_run_unasked(
    command: str, way: Way, program: Program, out: Path, tmp_path: Path
) -> None:
    foreign, trace = a_copy(sound(command, way), tmp_path / "foreign"), tmp_path / "it-ran"
    config = json.loads((foreign / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    (foreign / "config.json").write_text(json.dumps(config))
    (foreign / "manifest.json").unlink(missing_ok=True)  # else inspect would say it was changed
    (foreign / "own.py").write_text(f"import os\nos.mkdir({str(trace)!r})\nclass OwnConfig: pass\n")
    run = program(*on(command, foreign, out, way))
    assert not trace.exists()
    if command in ("collapse", "inspect"):  # move or read bytes, and need no model
        assert run.code == 0
        if command == "collapse":
            for file in out.iterdir():
                file.unlink()
            out.rmdir()
    else:
        run.failed(1, "foreign/config.json: the model needs Python code that comes with ")


@pytest.mark.parametrize("command", ["train", "onnx", "verify", "inspect", "collapse"])
def test_damaged_anchors(
    command: str, way: Way, program: Program, out: Path, tmp_path: Path
) -> None:
    damaged = a_copy(way.prepared, tmp_path / "damaged")
    file = damaged / "pretrained.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    run = program(*on(command, damaged, out, way))
    if command == "verify":  # it still compares, and says so
        assert (run.code, run.err) == (3, "")
        assert "damaged/pretrained.safetensors: has SHA-256 " in run.out
        run = program("verify", way.prepared, damaged, "--json")
        assert (run.code, run.json["holds"], run.json["outputs"][0]["max_abs"]) == (3, False, 0.0)
        assert "pretrained.safetensors: has SHA-256" in run.json["reasons"][0]
    elif command == "inspect":  # it shows what there is, and says so
        assert run.code == 3
        assert "damaged: mixout checkpoint" in run.out
        assert "damaged/pretrained.safetensors: has SHA-256 " in run.err
        assert run.err.endswith("(and 1 more)\n")  # the manifest has another hash, too
    else:
        run.failed(1, "damaged/pretrained.safetensors: has SHA-256 ", "run prepare again")


@pytest.mark.parametrize("command", ["train", "collapse", "onnx", "verify", "inspect"])
def test_a_manifest_of_the_future(
    command: str, way: Way, program: Program, out: Path, tmp_path: Path
) -> None:
    later = a_copy(way.prepared, tmp_path / "later")
    file = later / "mixout_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format_version": 99}))
    code = code_of_damage(command)
    program(*on(command, later, out, way)).failed(code, "later/mixout_config.json: ", "99")


@pytest.mark.parametrize(
    ("command", "station", "part"),
    [
        ("collapse", "collapsed", "nothing to collapse"),
        ("collapse", "base", "nothing to collapse"),
        ("collapse", "graph", "is an ONNX export"),
        ("train", "base", "run prepare on it"),
        ("train", "collapsed", "run prepare on it"),
        ("train", "graph", "graph: "),
        ("onnx", "graph", "is an ONNX export"),
        ("prepare", "graph", "graph: "),
        ("prepare", "train_file", "is a file, expected a checkpoint folder"),
        ("verify", "train_file", "is a file, expected a checkpoint folder"),
    ],
)
def test_a_folder_of_the_wrong_kind(
    command: str, station: str, part: str, way: Way, program: Program, out: Path
) -> None:
    assert way.graph.is_dir()
    program(*on(command, getattr(way, station), out, way)).failed(1, part)


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty"])
def test_a_damaged_graph(
    damage: str, way: Way, program: Program, out: Path, tmp_path: Path
) -> None:
    broken = a_copy(way.graph, tmp_path / "broken")
    file = broken / "model.onnx"
    sane = file.read_bytes()
    file.write_bytes(
        {"truncated": sane[: len(sane) // 2], "garbage": b"x" * 999, "empty": b""}[damage]
    )
    for path, code in ((broken, 3), (file, 1)):  # only a folder has a manifest
        program("verify", way.collapsed, path).failed(code, "broken/model.onnx: ")
        program("inspect", path).failed(code, "broken/model.onnx: ")


def test_graphs_of_different_models_are_told_apart(way: Way, program: Program) -> None:
    run = program("verify", way.prepared, way.graph)
    assert (run.code, run.err) == (3, "")
    assert "parity does NOT hold" in run.out


# Options of prepare


@pytest.mark.parametrize(
    ("options", "code", "parts"),
    [
        (("--p", "1"), 2, ("--p: got 1.0", "[0, 1)")),
        (("--p", "-0.1"), 2, ("--p: got -0.1", "[0, 1)")),
        (("--p", "nan"), 2, ("--p: got nan", "[0, 1)")),
        (("--dropout", "1"), 2, ("--dropout: got 1.0", "[0, 1)")),
        (("--head-dropout", "-1"), 2, ("--head-dropout: got -1.0", "[0, 1)")),
        (("--target-modules", "quer"), 1, ("--target-modules: 'quer'", "similar names: query")),
        (("--target-modules", "x.*y"), 1, ("--target-modules: 'x.*y'", "similar names: ")),
        (("--target-modules", "("), 1, ("--target-modules: '('", "not a valid regular expression")),
        (("--target-modules", ""), 1, ("--target-modules: ''", "all-linear")),
        (("--target-modules", "embeddings"), 1, ("--target-modules: ", "cannot be mixed")),
        (("--exclude-modules", "quer"), 1, ("--exclude-modules: 'quer'", "similar names: query")),
        (("--exclude-modules", "["), 1, ("--exclude-modules: '['", "regular expression")),
        (("--exclude-modules", ".*"), 1, ("selects nothing",)),
        (("--labels", "1"), 2, ("--labels: got 1", "at least 2")),
        (("--labels", "-3"), 2, ("--labels: got -3", "at least 2")),
        (("--labels", "²"), 2, ("--labels: ",)),
        (("--labels", "a,a"), 2, ("--labels: ", "different")),
        (("--labels", "a,,b"), 2, ("--labels: ", "non-empty")),
        (("--task", "regression", "--labels", "2"), 2, ("--labels: ", "one output")),
        (("--task", "multi-label"), 2, ("--labels: ", "give --labels")),
        (("--task", "masked-lm", "--labels", "2"), 2, ("--labels: ", "masked-lm")),
    ],
)
def test_prepares_options_out_of_their_domain(
    options: tuple[str, ...],
    code: int,
    parts: tuple[str, ...],
    way: Way,
    program: Program,
    out: Path,
) -> None:
    program("prepare", way.base, out, *TASK, *options).failed(code, *parts)


def test_a_base_without_a_head_needs_a_task(way: Way, program: Program, out: Path) -> None:
    program("prepare", way.base, out).failed(2, f"{way.base}: has no task head", "--task")


def test_a_head_that_came_with_the_base_is_not_fresh(way: Way, program: Program, out: Path) -> None:
    program("prepare", way.classifier, out, "--head", "mixout").failed(2, "--head: ", "already")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("prepare",), ("Missing argument 'BASE'",)),
        (("prepare", "x"), ("Missing argument 'OUT'",)),
        (("prepare", "x", "y", "z"), ("unexpected extra argument", "z")),
        (("prepare", "x", "y", "--task", "classify"), ("'--task'", "'classify'", "'regression'")),
        (("prepare", "x", "y", "--p", "high"), ("'--p'", "'high' is not a valid float")),
        (("prepare", "x", "y", "--head", "odd"), ("'--head'", "'odd' is not one of", "'mixout'")),
        (("prepare", "x", "y", "--seed", "-1"), ("'--seed'", "-1 is not in [0, 2**63)")),
        (("train", "x", "y", "--seed", str(2**63)), ("'--seed'", "is not in [0, 2**63)")),
        (("train", "x", "y", "--scheduler", "odd"), ("'--scheduler'", "'odd'", "'linear'")),
        (("train", "x", "y", "--precision", "fp8"), ("'--precision'", "'fp8'", "'bf16'")),
        (("train", "x", "y", "--batch-size", "1.5"), ("'--batch-size'", "'1.5'")),
        (("collapse", "x", "y", "--dtype", "int8"), ("'--dtype'", "'int8'", "'float16'")),
        (("onnx", "x", "y", "--opset", "new"), ("'--opset'", "'new'")),
        (("verify", "x"), ("Missing argument 'CANDIDATE'",)),
        (("inspect", "x", "--bogus"), ("No such option", "--bogus")),
        (("bogus",), ("No such command 'bogus'",)),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], parts: tuple[str, ...], program: Program) -> None:
    program(*arguments).misused(*parts)


# Data


@pytest.mark.parametrize(
    ("name", "data", "parts"),
    [
        ("a.tsv", b"", ("is empty",)),
        ("a.csv", b"sentence,label\n", ("no rows",)),
        ("a.tsv", b"x\ty\nthe\t1\n", ("no column", "x, y", "--text-column")),
        ("a.tsv", b"sentence\ty\nthe\t1\n", ("no column", "sentence, y", "--label-column")),
        ("a.tsv", b"sentence\tlabel\nthe\t1\n\t0\n\t1\n", ("row 2 (line 3)", "row 3 (line 4)")),
        ("a.tsv", b"sentence\tlabel\nthe\t\n", ("'label'", "no value", "row 1 (line 2)")),
        (
            "a.jsonl",
            b'{"sentence": "a", "label": null}\n',
            ("'label'", "no value", "row 1 (line 1)"),
        ),
        ("a.tsv", b"sentence\tlabel\nthe\t1\nca\xe9\t1\n", ("is not UTF-8", "0xe9", "line 3")),
        (
            "a.tsv",
            b"sentence\tlabel\nthe\tno\ncat\tmaybe\n",
            ("'maybe'", "row 2", "(no, yes, or their numbers 0 to 1)"),
        ),
        (
            "a.tsv",
            b"sentence\tlabel\nthe\t2\n",
            ("'2'", "row 1", "2 labels (no, yes, or their numbers 0 to 1)"),
        ),
        ("a.tsv", b"sentence\tlabel\nthe\t1\tmore\n", ("row 1 (line 2)", "3 fields", "2")),
        ("a.csv", b'sentence,label\n"the,1\n', ("line 2", "not valid csv")),
        ("a.jsonl", b'{"sentence": "a", "label": 1}\n{"sen"\n', ("line 2", "not valid JSON")),
        ("a.parquet", b"PAR1", ("is not a complete parquet file",)),
        ("a.csv.gz", b"zzz", ("is not a complete gzip file",)),
        ("a.xlsx", b"zzz", ("unknown format", ".csv, .tsv, .jsonl, .parquet")),
    ],
)
@pytest.mark.parametrize("option", ["--train-file", "--eval-file"])
def test_data_that_cannot_be_used(
    option: str,
    name: str,
    data: bytes,
    parts: tuple[str, ...],
    way: Way,
    program: Program,
    out: Path,
    tmp_path: Path,
) -> None:
    (tmp_path / name).write_bytes(data)
    files = ("--train-file", way.train_file) if option == "--eval-file" else ()
    run = program("train", way.prepared, out, *files, option, tmp_path / name)
    said = run.failed(1, *parts)
    assert said.startswith(f"{tmp_path / name}: ")


def test_data_that_verify_cannot_use(way: Way, program: Program, tmp_path: Path) -> None:
    pair = ("verify", way.collapsed, way.graph, "--data")
    program(*pair, tmp_path / "none.tsv").failed(1, "none.tsv: no such file")
    data = write_tsv(tmp_path / "a.tsv", ("x", "y"), [("a", 1)])
    sentence = program(*pair, data).failed(1, f"{data}: no column has a usual name for the text")
    assert "its columns are x, y" in sentence


@pytest.mark.parametrize("value", ["good", "nan", "inf"])
def test_text_where_a_number_is_expected(
    value: str, way: Way, program: Program, out: Path, tmp_path: Path
) -> None:
    rows = [("the", 1), ("a", value)]
    data = write_tsv(tmp_path / "a.tsv", ("sentence", "score"), rows)
    run = program("train", way.regression, out, "--train-file", data)
    run.failed(1, f"{data}: column 'score' ", f"'{value}'", "row 2 (line 3)", "number")


@pytest.mark.parametrize("option", ["--text-column", "--text-pair-column", "--label-column"])
def test_a_missing_column_names_those_there_are(
    option: str, way: Way, program: Program, out: Path
) -> None:
    run = program("train", way.prepared, out, "--train-file", way.train_file, option, "nope")
    there = "its columns are sentence, label"
    run.failed(1, f"{way.train_file}: has no column 'nope'; {there}", option)


# Options of train


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--max-length", POSITIONS + 1), ("--max-length: got 65", "at most 64")),
        (("--max-length", 0), ("--max-length: got 0",)),
        (("--epochs", 0), ("--epochs: got 0.0",)),
        (("--epochs", "inf"), ("--epochs: got inf",)),
        (("--batch-size", 0), ("--batch-size: got 0",)),
        (("--max-steps", -1), ("--max-steps: got -1",)),
        (("--lr", "nan"), ("--lr: got nan", "finite")),
        (("--warmup-ratio", 2), ("--warmup-ratio: got 2.0", "expected 0 to 1")),
        (("--weight-decay", -1), ("--weight-decay: got -1.0",)),
        (("--keep", 0), ("--keep: got 0",)),
        (("--p", 1), ("--p: got 1.0", "[0, 1)")),
        (("--metric", "f2"), ("--metric: got 'f2'", "accuracy, f1, matthews")),
        (("--metric", "pearson"), ("--metric: got 'pearson'", "accuracy, f1, matthews")),
        (("--device", "gpu"), ("--device: got 'gpu'", "cuda")),
        (("--early-stopping",), ("--early-stopping: ", "--eval-file")),
        (("--select", "best"), ("--select: ", "--eval-file")),
        (("--eval-every", 5), ("--eval-every: ", "--eval-file")),
        (("--dataset", "x"), ("--train-file or --dataset",)),
    ],
)
def test_trains_options_out_of_their_domain(
    options: tuple[object, ...], parts: tuple[str, ...], way: Way, program: Program, out: Path
) -> None:
    run = program("train", way.prepared, out, "--train-file", way.train_file, *options)
    run.failed(2, *parts)


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_that_is_not_installed(
    name: str, way: Way, program: Program, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    data = ("--train-file", way.train_file)
    run = program("train", way.prepared, out, *data, "--tracker", name)
    run.failed(2, f"--tracker: {name} is not installed; pip install {name}")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("options", "part"),
    [(("--device", "cuda"), "--device: "), (("--precision", "fp16"), "--precision: ")],
)
def test_a_gpu_that_is_not_there(
    options: tuple[str, str], part: str, way: Way, program: Program, out: Path
) -> None:
    program("train", way.prepared, out, "--train-file", way.train_file, *options).failed(2, part)


def test_training_without_data(way: Way, program: Program, out: Path) -> None:
    program("train", way.prepared, out).failed(2, "give either --train-file or --dataset")


def test_a_loss_that_is_not_a_number(way: Way, program: Program, tmp_path: Path) -> None:
    data = ("--train-file", way.train_file, "--save-every", 1, "--batch-size", 8)
    out = tmp_path / "out"
    run = program("train", way.prepared, out, *data, "--lr", "1e30", "--warmup-ratio", 0)
    said = run.failed(1, " became ", "at step ", "--lr")
    assert not out.exists()
    kept = sorted((tmp_path / "out.partial" / "checkpoints").iterdir())
    assert f"the last good checkpoint is {kept[-1]}" in said
    weights = load_file(kept[-1] / "model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


def test_an_unfinished_run_is_neither_forgotten_nor_mixed_up(
    way: Way, program: Program, tmp_path: Path
) -> None:
    data = ("--train-file", way.train_file, "--save-every", 1, "--batch-size", 8)
    broken = ("train", way.prepared, tmp_path / "out", *data, "--warmup-ratio", 0, "--lr")
    assert program(*broken, "1e30").code == 1
    program(*broken, "1e-3").failed(1, "unfinished run", "--resume", "--overwrite")
    program(*broken, "1e-3", "--resume").failed(2, "was started with --lr 1e+30, got 0.001")
    program(*broken, "1e-3", "--overwrite").done()


# Options of the others


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        (("collapse", "trained", "--interpolate", "2"), 2, ("--interpolate: got 2.0", "[0, 1]")),
        (("collapse", "trained", "--interpolate", "nan"), 2, ("--interpolate: got nan",)),
        (("onnx", "collapsed", "--opset", "9"), 2, ("--opset: got 9", "17 to 23")),
        (("verify", "collapsed", "--atol", "-1"), 2, ("--atol: got -1.0",)),
        (("verify", "collapsed", "--rtol", "inf"), 2, ("--rtol: got inf",)),
        (("inspect", "collapsed", "--plot", "a.png"), 2, ("--plot: ", "not a mixout checkpoint")),
        (("inspect", "trained", "--plot", "a.bmp"), 2, ("--plot: got 'a.bmp'", "png, svg or pdf")),
        (("inspect", "trained", "--plot", "no/a.png"), 1, ("no/a.png: ", "No such file")),
    ],
)
def test_options_of_the_others_out_of_their_domain(
    arguments: tuple[str, ...],
    code: int,
    parts: tuple[str, ...],
    way: Way,
    program: Program,
    out: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    command, station, *options = arguments
    run = program(*on(command, getattr(way, station), out, way), *options)
    run.failed(code, *parts)
    assert list(tmp_path.iterdir()) == []


def test_examples_without_data(way: Way, program: Program) -> None:
    pair = ("verify", way.collapsed, way.graph)
    program(*pair, "--max-examples", 3).failed(2, "--max-examples: ", "--data")
    program(*pair, "--data", way.eval_file, "--max-examples", 0).failed(2, "--max-examples: got 0")


def test_an_evaluation_file_beside_a_data_set(way: Way, program: Program, out: Path) -> None:
    options = ("--dataset", "x", "--eval-file", way.eval_file)
    program("train", way.prepared, out, *options).failed(2, "--eval-file", "--dataset")


# OUT


@pytest.mark.parametrize("command", WRITERS)
def test_out_is_not_empty(command: str, way: Way, program: Program, old_out: Path) -> None:
    run = program(*on(command, sound(command, way), old_out, way))
    run.failed(1, f"{old_out}: is not empty; give --overwrite")


@pytest.mark.parametrize("command", WRITERS)
def test_an_error_while_overwriting_leaves_the_old_one(
    command: str, way: Way, program: Program, old_out: Path, tmp_path: Path
) -> None:
    broken = a_copy(sound(command, way), tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"garbage" * 99)
    program(*on(command, broken, old_out, way), "--overwrite").failed(1, "broken")


@pytest.mark.parametrize("command", WRITERS)
def test_out_is_the_source_or_inside_it(
    command: str, way: Way, program: Program, tmp_path: Path
) -> None:
    source = a_copy(sound(command, way), tmp_path / "source")
    before = content(source)
    for flags in ((), ("--overwrite",)):
        run = program(*on(command, source, source, way), *flags)
        run.failed(2, "OUT is the source itself")
        for inside in (source / "out", source / "a" / ".." / "out", source / "x" / "y"):
            run = program(*on(command, source, inside, way), *flags)
            run.failed(2, "OUT lies inside the source")
    assert content(tmp_path) == {f"source/{name}": data for name, data in before.items()}


@pytest.mark.parametrize("command", WRITERS)
def test_a_file_in_the_way(command: str, way: Way, program: Program, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "out"):
        run = program(*on(command, sound(command, way), place, way), "--overwrite")
        run.failed(1, f"{place}: ", "is a file, expected a folder")
    assert content(tmp_path) == {"file": b"mine"}


def written(run: Run, place: Path) -> str:
    """Check that a run failed for lack of space at `place`; return the sentence."""
    said = run.failed(1, "cannot be written (File too large)", "make room there")
    assert said.startswith(str(place))
    return said


@pytest.mark.parametrize(
    ("command", "limit"),
    [
        *((command, limit) for command in ("prepare", "train") for limit in (700, 20_000, 90_000)),
        ("collapse", 20_000),
        ("onnx", 20_000),
    ],
)
def test_a_full_disk(
    command: str, limit: int, way: Way, program: Program, old_out: Path, tmp_path: Path
) -> None:
    arguments = on(command, sound(command, way), old_out, way)
    with small_files(limit):
        run = program(*arguments, "--overwrite")
    written(run, tmp_path / "old.partial")
    if command == "train":  # its work in progress stays, for --resume
        import shutil

        shutil.rmtree(tmp_path / "old.partial")


def test_a_full_disk_while_drawing(way: Way, program: Program, tmp_path: Path) -> None:
    with small_files(700):
        run = program("inspect", way.trained, "--plot", tmp_path / "a.png")
    run.failed(1, "a.png: cannot be written")


def test_shards_that_are_missing(way: Way, program: Program, out: Path, tmp_path: Path) -> None:
    sharded = a_copy(way.base, tmp_path / "sharded")
    tensors = load_file(sharded / "model.safetensors")
    (sharded / "model.safetensors").unlink()
    save_file(dict(list(tensors.items())[:3]), sharded / "model-1.safetensors", {"format": "pt"})
    names = {key: f"model-{1 if i < 3 else 2}.safetensors" for i, key in enumerate(tensors)}
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    for command in ("prepare", "onnx", "inspect"):
        program(*on(command, sharded, out, way)).failed(1, "model-2.safetensors", "missing")
