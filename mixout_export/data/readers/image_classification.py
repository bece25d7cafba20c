"""Reads images, and one label for each."""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from mixout_export.data.columns import ColumnNames, find_first, find_optional_label
from mixout_export.data.encoding import Encoding
from mixout_export.data.image_files import image_digests, image_sources
from mixout_export.data.image_folder import IMAGE
from mixout_export.data.images import EncodedImages, ImageEncoding
from mixout_export.data.readers.labeled import LabeledReader, LabeledRows
from mixout_export.data.table import Table
from mixout_export.errors import DataError

#: Usual names of the column of images, and less clear ones.
_IMAGES = ("image", "img", "picture", "photo", "image_path", "image_file", "image_file_path")
_PATHS = ("file_name", "filename", "file", "path", "filepath", "file_path")


class ImageClassification(LabeledReader[ImageEncoding]):
    """Reads an image and a label."""

    encoding: ClassVar[type[Encoding]] = ImageEncoding
    draws: ClassVar[bool] = True

    def find(
        self, table: Table, named: ColumnNames, labels: Sequence[str], *, labeled: bool = True
    ) -> ColumnNames:
        """Find image and label."""
        image = find_first(
            table,
            _IMAGES,
            _PATHS,
            kind="the image",
            option="--image-column",
            named=named.image,
        )
        if labeled and named.label is None and list(table.columns) == [IMAGE]:
            raise DataError(
                f"{table.name}: holds images without labels; move the images of each class into a "
                "folder with the name of the class"
            )
        label = find_optional_label(table, named, labeled=labeled)
        return ColumnNames(image=image, label=label)

    def contents(self, table: Table, columns: ColumnNames) -> list[str]:
        """Return the SHA-256 of each image: the same image may have several names."""
        return image_digests(table, columns.first)

    def digest(self, table: Table, columns: ColumnNames) -> str:
        """Return a SHA-256 of the labels and the contents of the images."""
        known = {columns.first: self.contents(table, columns)}
        return replace(table, columns=table.columns | known).digest()

    def read(self, table: Table, columns: ColumnNames, encoding: ImageEncoding) -> LabeledRows:
        """Read labels, and look at every image once, so that damaged ones show before a run."""
        labels = self.labels_of(table, columns, encoding.labels)
        sources = image_sources(table, columns.first)
        numbers = table.numbers or range(table.rows)
        return self.labeled(EncodedImages(encoding, sources, numbers, labels), encoding.labels)
