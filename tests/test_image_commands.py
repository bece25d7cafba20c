"""Models of images go through every command, and predict folders and tables of images."""

import ast
import csv
import gzip
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli_runs import Program
from huggingface_hub import ModelCard
from served_models import served
from test_card_folders import run_code
from tiny_images import CLASSES, SIZE, class_folders, save_vision, write_processor

from mixout_export.card.usage import model_usage
from mixout_export.data.tables import read_table
from mixout_export.runners.onnx_runner import OnnxRunner
from mixout_export.stages.onnx_export import export_onnx
from mixout_export.tasks import TASKS

#: Options of `prepare` for networks whose body has no linear layers.
FILTERS = ("--target-modules", "all-conv", "--granularity", "filter")


@pytest.fixture
def program(capsys: pytest.CaptureFixture[str]) -> Program:
    return Program(capsys)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    class_folders(root / "train", 8)
    class_folders(root / "dev", 3, seed=500)
    return root


@pytest.mark.parametrize(
    "kind",
    [
        "vit",
        "swin",
        "resnet",
        pytest.param("deit", marks=pytest.mark.repeats),
        pytest.param("convnext", marks=pytest.mark.repeats),
    ],
)
def test_from_a_base_to_predictions(
    kind: str, program: Program, data: Path, tmp_path: Path
) -> None:
    base = save_vision(tmp_path / kind, kind)
    prepared, trained, plain, graph = (tmp_path / name for name in ("p", "t", "c", "onnx"))
    task = ("--task", "image-classification", "--labels-from", data / "train")
    said = program("prepare", base, prepared, *task, *(FILTERS if kind == "resnet" else ()))
    assert said.out.rstrip().endswith("--train-file TRAIN_FOLDER --eval-file EVAL_FOLDER")
    files = ("--train-file", data / "train", "--eval-file", data / "dev")
    fast = ("--epochs", "3", "--lr", "1e-2", "--batch-size", "8", "--device", "cpu")
    result = program("train", prepared, trained, *files, *fast, "--json").json
    program("collapse", trained, plain)
    exported = program("onnx", plain, graph, "--data", data / "dev", "--json").json
    assert exported["parity"]["holds"]
    assert OnnxRunner(graph / "model.onnx").input_shapes["pixel_values"][1:] == (3, SIZE, SIZE)
    compared = program("verify", trained, graph, "--data", data / "dev", "--json").json
    metrics = {"reference": result["metrics"]["accuracy"]}
    assert compared["metrics"]["accuracy"]["reference"] == pytest.approx(metrics["reference"])
    for number, model in enumerate((trained, plain, graph)):
        out = tmp_path / f"predicted-{number}.csv"
        found = program("predict", model, data / "dev", out, "--json").json
        assert found["metrics"]["accuracy"] == pytest.approx(result["metrics"]["accuracy"])
        assert (found["max_length"], found["cut"]) == (None, None)
        assert (model / "preprocessor_config.json").is_file()


def rows_of(file: Path) -> list[dict[str, str]]:
    data = file.read_bytes()
    text = (gzip.decompress(data) if file.suffix == ".gz" else data).decode()
    return list(csv.DictReader(text.splitlines()))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("classifier")
    labels = {
        "id2label": dict(enumerate(CLASSES)),
        "label2id": {name: place for place, name in enumerate(CLASSES)},
    }
    return save_vision(root / "vit", head="ForImageClassification", **labels)


@pytest.fixture
def graph(model: Path, tmp_path: Path) -> Path:
    """Return a copy of the model's graph."""
    made = model.parent / "onnx"
    if not made.exists():
        export_onnx(model, made, verify=False)
    return Path(shutil.copytree(made, tmp_path / "onnx"))


def test_predictions_of_a_folder_have_the_paths_of_the_images(
    program: Program, data: Path, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.csv.gz"
    program("predict", model, data / "dev", out)
    rows = rows_of(out)
    assert [*rows[0]] == ["image", "label", "predicted", "probability"]
    assert [row["image"] for row in rows] == read_table(data / "dev").columns["image"]
    assert {row["predicted"] for row in rows} <= {*CLASSES}
    alone = tmp_path / "alone.jsonl"
    program("predict", model, data / "dev" / "red", alone)
    answers = [json.loads(line) for line in alone.read_text().splitlines()]
    expected = [row["predicted"] for row in rows if row["label"] == "red"]
    assert [answer["predicted"] for answer in answers] == expected
    assert [*answers[0]] == ["image", "predicted", "probability"]


def test_predictions_of_tables_keep_their_columns(
    program: Program, data: Path, model: Path, tmp_path: Path
) -> None:
    file = data / "rows.csv"
    file.write_text("id,picture_of,class\n7,dev/red/0.png,red\n8,dev/blue/2.png,green\n")
    out = tmp_path / "out.csv"
    program("predict", model, file, out, "--image-column", "picture_of")
    assert [(row["id"], row["class"]) for row in rows_of(out)] == [("7", "red"), ("8", "green")]
    stored = [{"image": {"bytes": (data / "dev/red/0.png").read_bytes(), "path": "a.png"}}]
    pq.write_table(pa.Table.from_pylist(stored), tmp_path / "rows.parquet")
    report = tmp_path / "report.html"
    out = tmp_path / "out.parquet"
    program("predict", model, tmp_path / "rows.parquet", out, "--report", report)
    assert pq.read_table(out).column_names == ["image", "predicted", "probability"]
    assert "a.png" in report.read_text()
    assert "longest sequence" not in report.read_text()


@pytest.mark.parametrize(
    ("out", "options", "said"),
    [
        ("out.parquet", (), "OUT is a table, expected a name ending in .csv, .tsv, .jsonl"),
        ("out.csv", ("--max-length", "8"), "max-length: has no effect for image-classification"),
        ("out.csv", ("--text-column", "image"), "text-column: has no effect"),
    ],
)
def test_what_does_not_fit_images_is_refused(
    out: str, options: Any, said: str, program: Program, data: Path, model: Path, tmp_path: Path
) -> None:
    program("predict", model, data / "dev", tmp_path / out, *options).failed(2, said)


def test_the_reverse_is_refused_for_texts(
    program: Program, tiny: Any, data: Path, tmp_path: Path
) -> None:
    model = tiny.classifier()
    arguments = (model, data / "dev", tmp_path / "out.csv")
    program("predict", *arguments, "--image-column", "image").failed(2, "image-column: has no effe")
    program("predict", *arguments).failed(1, "no column has a usual name for the text")
    prepared = tmp_path / "prepared"
    program("prepare", model, prepared)
    files = ("--train-file", data / "train")
    trained = ("train", prepared, tmp_path / "trained", *files)
    program(*trained, "--augment", "none").failed(2, "augment: has no effect for text-class")


def test_a_graph_of_another_size_says_so(
    program: Program, data: Path, model: Path, graph: Path, tmp_path: Path
) -> None:
    write_processor(graph, size={"height": 24, "width": 24})
    said = "preprocessor_config.json makes images of 24 x 24 pixels, but the model takes 16 x 16"
    program("predict", graph, data / "dev", tmp_path / "out.csv").failed(1, said)
    (graph / "preprocessor_config.json").unlink()
    said = "has no preprocessor_config.json"
    program("predict", graph, data / "dev", tmp_path / "out.csv").failed(1, said)
    program("verify", model, graph, "--data", data / "dev", "--quiet")


def test_the_code_of_the_cards_gives_the_labels_of_predict(
    program: Program, data: Path, model: Path, graph: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "plain"
    program("predict", model, data / "dev", tmp_path / "out.csv")
    (first, *_) = rows_of(tmp_path / "out.csv")
    shutil.copytree(model, folder)
    for each in (folder, graph):
        shutil.copy(data / "dev" / first["image"], each / "image.png")
    logits = eval(
        run_code(graph, ModelCard.load(graph / "README.md").text),
        {"array": np.array, "float32": np.float32},
    )["logits"]
    shares = np.exp(logits[0]) / np.exp(logits[0]).sum()
    assert shares.max() == pytest.approx(float(first["probability"]), rel=1e-4)
    said = run_code(folder, model_usage(TASKS["image-classification"]))
    best = ast.literal_eval(said)[0]
    assert best["label"] == first["predicted"] == CLASSES[logits[0].argmax()]
    assert best["score"] == pytest.approx(float(first["probability"]), rel=1e-4)


# Bundles ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("server", ["triton", "mlserver", "transformers-js", "optimum"])
def test_bundles_have_a_complete_processor_and_code_that_reads_an_image(
    server: str, program: Program, graph: Path, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "photos"
    program("bundle", graph, out, "--server", server, "--name", "photos")
    (file,) = out.rglob("preprocessor_config.json")
    original = json.loads((model / "preprocessor_config.json").read_text())
    written = json.loads(file.read_text())
    assert written.items() >= {**original, "do_normalize": True, "do_rescale": True}.items()
    guide = (out / "README.md").read_text()
    assert "image.png" in guide
    for code in re.findall(r"```python\n(.*?)\n```", guide, re.DOTALL):
        compile(code, "README.md", "exec")


def test_the_guides_program_sends_an_image_to_a_server(
    program: Program, graph: Path, data: Path, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "repository"
    program("bundle", graph, out, "--server", "triton", "--name", "photos")
    program("predict", model, data / "dev", tmp_path / "out.csv")
    (first, *_) = rows_of(tmp_path / "out.csv")
    shutil.copy(data / "dev" / first["image"], out / "image.png")
    with served(graph / "model.onnx", name="photos") as server:
        guide = (out / "README.md").read_text()
        said = run_code(out, guide.replace("http://127.0.0.1:8000", server.host))
    (output,) = ast.literal_eval(said)
    assert CLASSES[int(np.argmax(output["data"]))] == first["predicted"]
