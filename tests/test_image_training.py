"""Image classifiers are prepared from class folders, trained and evaluated."""

import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from cli_runs import Program
from datasets import ClassLabel, Dataset, Features
from tiny_images import CLASSES, FAMILIES, SIZE, class_folders, save_vision, write_processor
from training_runs import same_weights
from transformers import AutoImageProcessor

from mixout_export.checkpoint.base import BaseOptions
from mixout_export.checkpoint.folder import open_checkpoint
from mixout_export.checkpoint.loading import load_plain
from mixout_export.data.columns import ColumnNames
from mixout_export.data.encoding import EncodingOptions
from mixout_export.data.image_files import ImageSource, image_sources
from mixout_export.data.images import EncodedImages, ImageEncoding
from mixout_export.data.readers.image_classification import ImageClassification
from mixout_export.data.table import join_tables
from mixout_export.data.tables import read_table
from mixout_export.errors import ArgumentError, CheckpointError, DataError, TrainingStoppedError
from mixout_export.stages.prepare import PrepareOptions, prepare_checkpoint
from mixout_export.stages.train import DataOptions, TrainResult, train_checkpoint
from mixout_export.training.options import TrainOptions

TASK = "image-classification"
FAST: dict[str, Any] = {"lr": 5e-3, "batch_size": 8, "device": "cpu"}


def prepare(base: Path, out: Path, **options: Any) -> Path:
    asked = BaseOptions(task=TASK, labels=options.pop("labels", CLASSES))
    prepare_checkpoint(str(base), out, PrepareOptions(base=asked, **options))
    return out


def train(prepared: Path, out: Path, data: DataOptions, **options: Any) -> TrainResult:
    resume = options.pop("resume", False)
    must_stop = options.pop("must_stop", lambda: False)
    settings = TrainOptions(**{**FAST, **options})
    return train_checkpoint(prepared, out, data, settings, resume=resume, must_stop=must_stop)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("images")


@pytest.fixture(scope="module")
def data(root: Path) -> DataOptions:
    return DataOptions(class_folders(root / "train", 12), class_folders(root / "dev", 4, seed=500))


@pytest.fixture(scope="module")
def prepared(root: Path) -> Path:
    return prepare(save_vision(root / "vit"), root / "prepared")


@pytest.fixture
def program(capsys: pytest.CaptureFixture[str]) -> Program:
    return Program(capsys)


def test_the_command_line_from_a_base_to_a_trained_classifier(
    program: Program, root: Path, data: DataOptions, prepared: Path, tmp_path: Path
) -> None:
    train_file, eval_file = data.files()
    made = tmp_path / "prepared"
    labels = ("--labels-from", train_file)
    program("prepare", root / "vit", made, "--task", TASK, *labels, "--quiet")
    out = tmp_path / "trained"
    files = ("--train-file", train_file, "--eval-file", eval_file, "--augment", "standard")
    fast = ("--lr", "5e-3", "--epochs", "4", "--batch-size", "8", "--device", "cpu")
    result = program("train", made, out, *files, *fast, "--json").json
    assert result["metrics"]["accuracy"] == 1.0
    assert [scores["label"] for scores in result["by_label"]] == list(CLASSES)
    assert (result["max_length"], result["cut"]) == (None, [])
    manifest = json.loads((out / "manifest.json").read_text())
    assert [file["name"] for file in manifest["data"]] == ["train", "dev"]
    for folder in (made, out):
        processor = (folder / "preprocessor_config.json").read_bytes()
        assert processor == (root / "vit" / "preprocessor_config.json").read_bytes()
    card = (out / "README.md").read_text()
    assert "pipeline_tag: image-classification" in card
    assert "maximum length" not in card


@pytest.mark.parametrize("kind", sorted({*FAMILIES} - {"vit", "resnet"}))
def test_each_family_learns(kind: str, root: Path, data: DataOptions, tmp_path: Path) -> None:
    made = prepare(save_vision(tmp_path / kind, kind), tmp_path / "prepared")
    result = train(made, tmp_path / "out", data, epochs=4, lr=1e-2, select="last")
    assert result.metrics["loss"] < 0.8 * result.metrics_before["loss"]
    assert result.metrics["accuracy"] > 0.6


def test_a_resumed_run_ends_with_the_same_weights(
    prepared: Path, data: DataOptions, tmp_path: Path
) -> None:
    steps = {"max_steps": 7, "save_every": 2}
    train(prepared, tmp_path / "whole", data, **steps)
    stops = iter([False, False, True])
    with pytest.raises(TrainingStoppedError):
        train(prepared, tmp_path / "parts", data, must_stop=lambda: next(stops), **steps)
    train(prepared, tmp_path / "parts", data, resume=True, **steps)
    assert same_weights(tmp_path / "whole", tmp_path / "parts")
    train(prepared, tmp_path / "plain", data, augment="none", **steps)
    assert not same_weights(tmp_path / "whole", tmp_path / "plain")


def test_a_resumed_run_refuses_changed_images(
    prepared: Path, data: DataOptions, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(data.train_files[0], tmp_path / "train"))
    steps = {"max_steps": 4, "save_every": 1}
    with pytest.raises(TrainingStoppedError):
        train(prepared, tmp_path / "out", DataOptions(folder), must_stop=lambda: True, **steps)
    shutil.copy(folder / "red" / "0.png", folder / "blue" / "0.png")
    with pytest.raises(ArgumentError, match="training-data-sha256"):
        train(prepared, tmp_path / "out", DataOptions(folder), resume=True, **steps)


# Tables and data sets -----------------------------------------------------------------------------


def tables(folder: Path, out: Path) -> dict[str, Path]:
    """Write the images of class folders in every form that a table can have."""
    rows = read_table(folder)
    records = [
        {"photo_of": f"train/{image}", "label": label}
        for image, label in zip(rows.columns["image"], rows.columns["label"], strict=True)
    ]
    shutil.copytree(folder, out / "train")
    made = {name: out / f"data.{name}" for name in ("csv", "tsv", "jsonl", "parquet")}
    for name, separator in (("csv", ","), ("tsv", "\t")):
        lines = [separator.join(row) for row in (records[0], *(each.values() for each in records))]
        made[name].write_text("\n".join(lines))
    made["jsonl"].write_text("\n".join(map(json.dumps, records)))
    stored = [
        {**each, "photo_of": {"bytes": (out / each["photo_of"]).read_bytes(), "path": None}}
        for each in records
    ]
    pq.write_table(pa.Table.from_pylist(stored), made["parquet"])
    classes = ClassLabel(names=list(CLASSES))
    saved = Dataset.from_list(stored, Features({"photo_of": datasets.Image(), "label": classes}))
    saved.save_to_disk(str(out / "saved"))
    return {**made, "saved": out / "saved"}


def test_every_form_of_data_gives_the_same_model(
    prepared: Path, data: DataOptions, tmp_path: Path
) -> None:
    forms = tables(data.train_files[0], tmp_path)
    train(prepared, tmp_path / "folders", DataOptions(data.train_file), max_steps=3)
    for name, file in forms.items():
        source = DataOptions(file, image_column="photo_of")
        train(prepared, tmp_path / f"from-{name}", source, max_steps=3)
        assert same_weights(tmp_path / "folders", tmp_path / f"from-{name}"), name


def test_several_tables_in_different_folders(
    prepared: Path, data: DataOptions, tmp_path: Path
) -> None:
    files = []
    for number, label in enumerate(("red", "blue")):
        folder = tmp_path / str(number)
        folder.mkdir()
        shutil.copy(data.train_files[0] / label / "0.png", folder / "x.png")
        files.append(folder / "data.csv")
        files[-1].write_text(f"file_name,label\nx.png,{label}\n")
    table = join_tables([read_table(file) for file in files])
    reader = ImageClassification()
    found = reader.find(table, ColumnNames(), CLASSES)
    assert found == ColumnNames(image="file_name", label=("label",))
    digests = [ImageSource("", file.parent / "x.png").digest() for file in files]
    assert reader.contents(table, found) == digests


def test_a_text_table_and_an_image_column_say_what_is_missing(
    prepared: Path, tmp_path: Path
) -> None:
    file = tmp_path / "data.csv"
    file.write_text("sentence,label\na dog,red\n")
    with pytest.raises(
        DataError, match=r"no column has a usual name for the image.*--image-column"
    ):
        train(prepared, tmp_path / "out", DataOptions(file))
    with pytest.raises(DataError, match=r"'a dog' in row 1 \(line 2\) .*no such file"):
        train(prepared, tmp_path / "out", DataOptions(file, image_column="sentence"))


# Pixels -------------------------------------------------------------------------------------------


def encoded(prepared: Path, folder: Path, **options: Any) -> EncodedImages:
    checkpoint = open_checkpoint(prepared)
    processor, interface = ImageEncoding.settle_for_training(checkpoint, load_plain(checkpoint))
    table = read_table(folder)
    encoding = ImageEncoding.create(
        processor, interface, CLASSES, EncodingOptions(**options), ColumnNames(image="image")
    )
    return EncodedImages(encoding, image_sources(table, "image"), range(table.rows))


@pytest.mark.parametrize("kind", sorted(FAMILIES))
def test_an_evaluation_sees_what_the_image_processor_makes(
    kind: str, data: DataOptions, tmp_path: Path
) -> None:
    folder = data.train_files[0]
    path = save_vision(tmp_path / kind, kind, "ForImageClassification", num_labels=3)
    made = encoded(path, folder).collate([3, 0])["pixel_values"]
    processor = AutoImageProcessor.from_pretrained(path, backend="pil")
    sources = image_sources(read_table(folder), "image")
    images = [sources[place].open("RGB") for place in (3, 0)]
    expected = processor(images=images, return_tensors="pt")["pixel_values"]
    assert made.dtype == torch.float32
    assert made.shape == (2, 3, SIZE, SIZE)
    assert torch.equal(made, expected)


def test_augmentation_depends_on_seed_epoch_and_row_alone(
    prepared: Path, data: DataOptions
) -> None:
    folder = data.train_files[0]
    made = encoded(prepared, folder, seed=3)
    (first, second) = made.collate([5, 9], epoch=1)["pixel_values"]
    assert torch.equal(made.collate([9, 2, 5], epoch=1)["pixel_values"][2], first)
    assert torch.equal(
        encoded(prepared, folder, seed=3).collate([9], epoch=1)["pixel_values"][0], second
    )
    for other in (
        made.collate([5], epoch=2),
        made.collate([5]),
        encoded(prepared, folder, seed=4).collate([5], epoch=1),
    ):
        assert not torch.equal(other["pixel_values"][0], first)
    assert first.shape == (3, SIZE, SIZE)
    plain = encoded(prepared, folder, seed=3, augment="none")
    assert torch.equal(
        plain.collate([5], epoch=1)["pixel_values"], made.collate([5])["pixel_values"]
    )


def test_a_model_of_one_channel_gets_gray_images(data: DataOptions, tmp_path: Path) -> None:
    path = save_vision(tmp_path / "gray", head="ForImageClassification", num_channels=1)
    write_processor(path, size={"height": SIZE, "width": SIZE}, image_mean=[0.5], image_std=[0.5])
    made = encoded(path, data.train_files[0])
    for epoch in (None, 0):
        assert made.collate([0, 1], epoch=epoch)["pixel_values"].shape == (2, 1, SIZE, SIZE)


# Errors -------------------------------------------------------------------------------------------


def test_bad_images_are_listed_or_skipped(
    prepared: Path, data: DataOptions, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(shutil.copytree(data.train_files[0], tmp_path / "train"))
    (folder / "green" / "3.png").write_bytes(b"")
    (folder / "red" / "1.png").write_bytes((folder / "red" / "0.png").read_bytes()[:400])
    with pytest.raises(DataError, match=r"'green/3.png' in row 18 .*skip-bad-rows 2"):
        train(prepared, tmp_path / "out", DataOptions(folder))
    train(prepared, tmp_path / "out", DataOptions(folder, skip_bad_rows=2), max_steps=1)
    assert "skipped 2 rows" in caplog.text
    assert "'red/1.png', which cannot be read" in caplog.text


def test_classes_that_the_model_does_not_have_are_refused(
    prepared: Path, data: DataOptions, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(data.train_files[0], tmp_path / "train"))
    (folder / "red").rename(folder / "rot")
    for sources in (DataOptions(folder), DataOptions(data.train_files[0], folder)):
        with pytest.raises(DataError, match=r"label 'rot' .* 3 labels \(blue, green, red"):
            train(prepared, tmp_path / "out", sources)


def test_classes_in_only_one_of_the_folders_and_images_in_both_are_noted(
    prepared: Path, data: DataOptions, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(data.train_files[0], tmp_path / "train"))
    shutil.rmtree(folder / "red")
    shutil.copy(data.files()[1] / "blue" / "0.png", folder / "blue" / "x.png")
    result = train(prepared, tmp_path / "out", DataOptions(folder, data.eval_file), max_steps=1)
    said = "; ".join(result.notes)
    assert "1 of 12 evaluation row is also in the training data" in said
    assert "the label 'red' occurs only in the evaluation data" in said


def test_images_without_labels_are_refused(
    prepared: Path, data: DataOptions, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"red: holds images without labels; move the images"):
        train(prepared, tmp_path / "out", DataOptions(data.train_files[0] / "red"))


@pytest.mark.parametrize(
    ("options", "named", "said"),
    [
        ({"max_length": 8}, {}, "max-length: has no effect for image-classification"),
        ({}, {"text_column": "image"}, "text-column: has no effect"),
        ({"doc_stride": 8}, {}, "doc-stride: has no effect"),
    ],
)
def test_options_of_texts_are_refused(
    options: Any, named: Any, said: str, prepared: Path, data: DataOptions, tmp_path: Path
) -> None:
    with pytest.raises(ArgumentError, match=said):
        train(prepared, tmp_path / "out", DataOptions(data.train_file, **named), **options)


def test_a_missing_or_unsuitable_image_processor_is_refused(
    data: DataOptions, tmp_path: Path
) -> None:
    base = save_vision(tmp_path / "vit")
    file = base / "preprocessor_config.json"
    for number, (steps, said) in enumerate(
        (
            ({"size": {"height": 24, "width": 24}}, r"images of 24 x 24 .* expected 16 x 16"),
            ({"size": {"shortest_edge": SIZE}}, r"cannot process the images"),
            (None, r"has no preprocessor_config.json, which is needed to read images"),
        )
    ):
        write_processor(base, **steps) if steps else file.unlink()
        made = prepare(base, tmp_path / f"prepared-{number}")
        with pytest.raises(CheckpointError, match=said):
            train(made, tmp_path / "out", data)


def test_a_model_for_any_size_is_trained_on_the_size_of_its_processor(
    data: DataOptions, tmp_path: Path
) -> None:
    path = save_vision(tmp_path / "resnet", "resnet", "ForImageClassification", num_labels=3)
    made = encoded(path, data.train_files[0])
    assert made.encoding.interface.image == (3, SIZE, SIZE)
    assert open_checkpoint(path).interface.image == (3, SIZE, SIZE)


def test_a_head_for_many_labels_is_used_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    head = {"num_labels": 3, "problem_type": "multi_label_classification"}
    path = save_vision(tmp_path / "vit", head="ForImageClassification", **head)
    prepare(path, tmp_path / "prepared", labels=None)
    assert "was trained for multi_label_classification" in caplog.text


def test_inspect_says_that_it_describes_texts(
    program: Program, prepared: Path, tmp_path: Path
) -> None:
    file = tmp_path / "data.csv"
    file.write_text("image,label\nx.png,red\n")
    said = "is a model of images, but inspect describes data of texts"
    program("inspect", file, "--model", prepared).failed(1, said)
