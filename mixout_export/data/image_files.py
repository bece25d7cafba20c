"""Images in files and in cells of a table."""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageOps

from mixout_export.data.bad_rows import read_each
from mixout_export.data.labels import is_missing, show
from mixout_export.data.table import Table
from mixout_export.errors import DataError, RowError
from mixout_export.printable import first_line

#: Pillow's names of three channels and of one.
Mode = Literal["RGB", "L"]


@dataclass(frozen=True)
class ImageSource:
    """Where an image is read from, each time that it is needed.

    Attributes:
        name: Its name, for messages.
        path: Its file; None if `data` has its bytes.
        data: The bytes of the file; None if they are read from `path`.
    """

    name: str
    path: Path | None = None
    data: bytes | None = None

    def read(self) -> bytes:
        """Return the bytes of the image file."""
        if self.data is not None:
            return self.data
        return b"" if self.path is None else self.path.read_bytes()

    def digest(self) -> str:
        """Return the SHA-256 of the image file; "" if it cannot be read."""
        try:
            return hashlib.sha256(self.read()).hexdigest()
        except OSError:
            return ""

    def problem(self) -> str | None:
        """Return why the image cannot be read; None if it can."""
        try:
            with Image.open(io.BytesIO(self.read())) as image:
                image.draft("L", (1, 1))  # decodes a JPEG to the end, but faster
                image.load()
                _refuse_floats(image)
        except FileNotFoundError:
            return "there is no such file"
        except Exception as error:  # whatever a decoder makes of damaged bytes
            return "it is no image" if "cannot identify" in str(error) else first_line(error)
        return None

    def open(self, mode: Mode) -> Image.Image:
        """Return the image upright, with three channels or one.

        Raises:
            DataError: It cannot be read any more.
        """
        try:
            with Image.open(io.BytesIO(self.read())) as image:
                return _converted(ImageOps.exif_transpose(image), mode)
        except Exception as error:
            raise DataError(
                f"{self.name}: the image could be read before, but not now ({first_line(error)}); "
                "it has changed in the meantime"
            ) from error


def _refuse_floats(image: Image.Image) -> None:
    if image.mode == "F":
        raise ValueError("its values are floating-point numbers, expected 8 or 16 bits")


def _converted(image: Image.Image, mode: Mode) -> Image.Image:
    """Return an image of whole numbers with three channels or one. Transparency is ignored."""
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip instead of scaling
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype("u1"))
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")
    return image.convert(mode)


def image_sources(table: Table, column: str) -> list[ImageSource]:
    """Return where the image of each row is, after a look at every image.

    A cell holds a path, which is relative to the table; the bytes of an image file; or what
    `datasets` stores for an image, {"bytes": ..., "path": ...}.

    Raises:
        RowError: A cell holds something else, or an image cannot be read.
    """

    def read(row: int, value: Any) -> ImageSource:
        source = _source(table, column, row, value)
        problem = source.problem()
        if problem is not None:
            raise RowError(
                f"{table.name}: the image {source.name!r} in {table.where(row)} cannot be read "
                f"({problem}); replace it, or remove it from the data",
                {row: f"has the image {source.name!r}, which cannot be read ({problem})"},
            )
        return source

    return read_each(table.columns[column], read)


def image_digests(table: Table, column: str) -> list[str]:
    """Return the SHA-256 of each row's image; "" where it cannot be read."""
    digests = []
    for row, value in enumerate(table.columns[column]):
        try:
            digests.append(_source(table, column, row, value).digest())
        except RowError:
            digests.append("")
    return digests


def _source(table: Table, column: str, row: int, value: Any) -> ImageSource:
    """Return where the image of a cell is."""
    path, data = value, None
    if isinstance(value, dict):
        path, data = value.get("path"), value.get("bytes")
    elif isinstance(value, bytes):
        path, data = None, value
    if isinstance(data, bytes):
        return ImageSource(path or f"the bytes in column {column!r}", data=data)
    if isinstance(path, str) and not is_missing(path):
        return ImageSource(path, _base(table, row) / path)
    what = "no value" if is_missing(path) else show(value)
    raise RowError(
        f"{table.name}: column {column!r} holds {what} in {table.where(row)}, expected the path of "
        "an image file; choose another column with --image-column",
        {row: f"has {what} in column {column!r}, expected the path of an image file"},
    )


def _base(table: Table, row: int) -> Path:
    """Return the folder to which paths in a row are relative."""
    file = Path(table.name if table.files is None else table.files[row])
    return file if file.is_dir() else file.parent
