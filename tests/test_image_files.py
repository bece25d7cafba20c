"""Images are found in folders and cells, decoded alike whatever their format, and augmented."""

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_images import CLASSES, class_folders, picture

from mixout_export.data.augmentation import augment, draw_crop
from mixout_export.data.image_files import ImageSource, image_sources
from mixout_export.data.table import Table
from mixout_export.data.tables import read_table
from mixout_export.errors import DataError, RowError


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    return class_folders(tmp_path / "train", 2)


# Folders ------------------------------------------------------------------------------------------


def test_class_folders_are_labels_and_paths_in_order(folders: Path) -> None:
    table = read_table(folders)
    assert table.columns["image"][:3] == ["blue/0.png", "blue/1.png", "green/0.png"]
    assert table.columns["label"] == [label for label in CLASSES for _ in range(2)]


def test_images_without_class_folders_have_no_labels(folders: Path) -> None:
    assert read_table(folders / "red").columns == {"image": ["0.png", "1.png"]}


def test_files_of_systems_are_ignored_and_other_files_named(
    folders: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = read_table(folders)
    for place in (folders, folders / "red"):
        for name in (".DS_Store", "Thumbs.db", "._0.png"):
            (place / name).write_bytes(b"x")
    (folders / ".cache").mkdir()
    assert read_table(folders) == expected
    assert not caplog.messages
    (folders / "red" / "notes.txt").write_text("x")
    assert read_table(folders) == expected
    assert "1 files are not images by their names and are ignored (notes.txt)" in caplog.text


def _empty(folders: Path) -> None:
    shutil.rmtree(folders / "red")
    (folders / "red").mkdir()


def _beside(folders: Path) -> None:
    shutil.copy(folders / "red" / "0.png", folders / "0.png")


def _deeper(folders: Path) -> None:
    shutil.copytree(folders, folders / "split")


def _nothing(folders: Path) -> None:
    shutil.rmtree(folders)
    folders.mkdir()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_empty, r"red: the class folder has no images; add images"),
        (_beside, r"images beside the class folders \(0.png\); move"),
        (_deeper, r"split: .* holds the folders blue, green, red; give .*, for example \S+split"),
        (_nothing, r"holds no data; expected a folder for each class"),
    ],
)
def test_what_is_unclear_in_a_folder_is_refused(folders: Path, change: Any, said: str) -> None:
    change(folders)
    with pytest.raises(DataError, match=said):
        read_table(folders)


# Formats ------------------------------------------------------------------------------------------


def _bytes(image: Image.Image, kind: str = "PNG", **options: Any) -> ImageSource:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return ImageSource("x", data=stream.getvalue())


def test_every_mode_becomes_three_channels() -> None:
    image = picture("red", seed=0)
    pixels = np.asarray(image)
    gray = np.asarray(image.convert("L"))
    assert np.array_equal(_bytes(image).open("RGB"), pixels)
    assert np.array_equal(_bytes(image.convert("RGBA")).open("RGB"), pixels)
    assert np.array_equal(_bytes(image.convert("L")).open("RGB"), np.stack([gray] * 3, axis=-1))
    deep = Image.fromarray(gray.astype(np.uint16) << 8)
    assert np.array_equal(_bytes(deep).open("L"), gray)
    for mode, kind in (("CMYK", "TIFF"), ("P", "PNG"), ("P", "GIF"), ("1", "PNG"), ("LA", "PNG")):
        opened = _bytes(image.convert(mode), kind).open("RGB")
        assert (opened.mode, opened.size) == ("RGB", image.size)
        assert np.array_equal(opened, image.convert(mode).convert("RGB"))


def test_the_orientation_of_a_camera_is_applied() -> None:
    image = picture("red", seed=0)
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    turned = _bytes(image, exif=exif.tobytes()).open("RGB")
    assert np.array_equal(turned, image.transpose(Image.Transpose.ROTATE_270))


# Cells --------------------------------------------------------------------------------------------


def _table(path: Path, *values: Any) -> Table:
    return Table(str(path), {"image": list(values)}, len(values))


def test_cells_hold_paths_bytes_or_both(folders: Path) -> None:
    data = (folders / "red" / "0.png").read_bytes()
    table = _table(
        folders.parent / "data.csv",
        "train/red/0.png",
        str(folders / "red" / "0.png"),
        data,
        {"bytes": data, "path": "anything"},
        {"bytes": None, "path": "train/red/0.png"},
    )
    assert {source.digest() for source in image_sources(table, "image")} == {
        ImageSource("", data=data).digest()
    }


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("missing.png", r"image 'missing.png' in row 2 cannot be read \(there is no such file\)"),
        ("text.png", r"'text.png' .* \(it is no image\); replace it"),
        ("cut.png", r"'cut.png' .* \(.*truncated"),
        ("cut.jpg", r"'cut.jpg' .* \(.*truncated"),
        ("float.tif", r"floating-point"),
        (None, r"column 'image' holds no value in row 2, .*--image-column"),
        (7, r"column 'image' holds 7 in row 2, expected the path"),
    ],
)
def test_an_image_that_cannot_be_read_is_named(tmp_path: Path, value: Any, said: str) -> None:
    image = picture("red", seed=0, height=64, width=64)
    image.save(tmp_path / "good.png")
    (tmp_path / "text.png").write_text("no image")
    for kind in ("png", "jpg"):
        image.save(tmp_path / f"whole.{kind}")
        (tmp_path / f"cut.{kind}").write_bytes((tmp_path / f"whole.{kind}").read_bytes()[:-900])
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(RowError, match=said) as error:
        image_sources(_table(tmp_path / "data.csv", "good.png", value), "image")
    assert list(error.value.problems) == [1]


# Augmentation -------------------------------------------------------------------------------------


def test_a_crop_covers_the_share_and_has_the_shape_of_torchvisions() -> None:
    random = np.random.default_rng(0)
    crops = [draw_crop(400, 300, random) for _ in range(400)]
    for left, top, right, bottom in crops:
        assert 0 <= left < right <= 400
        assert 0 <= top < bottom <= 300
    sizes = np.array([(right - left, bottom - top) for left, top, right, bottom in crops])
    shares = sizes.prod(axis=1) / (400 * 300)
    shapes = sizes[:, 0] / sizes[:, 1]
    assert 0.07 < shares.min() < 0.12
    assert shares.max() > 0.8
    assert 0.72 < shapes.min() < 0.8 < 1.25 < shapes.max() < 1.36


def test_an_image_without_room_for_a_crop_is_cut_in_the_middle() -> None:
    assert draw_crop(1000, 10, np.random.default_rng(0)) == (493, 0, 506, 10)


def test_half_of_the_images_are_mirrored() -> None:
    image = Image.fromarray(np.tile(np.arange(0, 240, 10, dtype=np.uint8), (24, 1)))
    random = np.random.default_rng(0)
    made = [
        np.asarray(augment(image, (8, 8), random, Image.Resampling.BILINEAR)) for _ in range(200)
    ]
    mirrored = sum(int(one[0, 0]) > int(one[0, -1]) for one in made)
    assert 75 < mirrored < 125
    assert {one.shape for one in made} == {(8, 8)}
