"""Read a folder of images: one folder for each class, or images without labels."""

import logging
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from mixout_export.data.table import Table
from mixout_export.errors import DataError

logger = logging.getLogger(__name__)

#: Columns of the table that a folder becomes.
IMAGE, LABEL = "image", "label"

#: Files that systems put into folders. Hidden files are ignored too.
_OF_SYSTEMS = ("thumbs.db", "desktop.ini")

#: Names that a message shows.
_SHOWN = 3


def _is_ignored(path: Path) -> bool:
    return path.name.startswith(".") or path.name.lower() in _OF_SYSTEMS


def _is_image(path: Path) -> bool:
    """Tell whether a file is an image, by its name."""
    return path.is_file() and path.suffix.lower() in Image.registered_extensions()


def _entries(folder: Path) -> list[Path]:
    """Return what is in a folder, sorted by name, without hidden files."""
    return [path for path in sorted(folder.iterdir()) if not _is_ignored(path)]


def _listed(paths: Iterable[Path]) -> str:
    names = [path.name for path in paths]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def is_image_folder(folder: Path) -> bool:
    """Return whether a folder holds images, or folders with images."""
    entries = _entries(folder)
    return any(map(_is_image, entries)) or any(
        any(map(_is_image, _entries(entry))) for entry in entries if entry.is_dir()
    )


def read_image_folder(folder: Path) -> Table:
    """Read a folder of class folders, or of images without labels.

    The name of a class folder is the label of the images in it. The table has the column "image",
    with paths relative to the folder, and with class folders the column "label". Hidden files are
    ignored, and so are other files, with a warning.

    Raises:
        DataError: There are no images, or it is unclear which class an image has.
    """
    entries = _entries(folder)
    classes = [entry for entry in entries if entry.is_dir()]
    images = [entry for entry in entries if _is_image(entry)]
    others = [entry for entry in entries if entry not in classes and entry not in images]
    if classes and images:
        raise DataError(
            f"{folder}: holds images beside the class folders ({_listed(images)}); move each one "
            "into the folder of its class"
        )
    labels: list[str] = []
    for one in classes:
        inside = _entries(one)
        deeper = [entry for entry in inside if entry.is_dir()]
        if deeper:
            raise DataError(
                f"{one}: a class folder holds images only, but this one holds the folders "
                f"{_listed(deeper)}; give the folder that holds the class folders, for example "
                f"{one}"
            )
        found = [entry for entry in inside if _is_image(entry)]
        if not found:
            raise DataError(
                f"{one}: the class folder has no images; add images, or remove the folder"
            )
        images += found
        labels += [one.name] * len(found)
        others += [entry for entry in inside if entry not in found]
    if not images:
        raise DataError(
            f"{folder}: holds no data; expected a folder for each class with its images inside, or "
            "a folder that datasets.save_to_disk wrote"
        )
    if others:
        logger.warning(
            "%s: %d files are not images by their names and are ignored (%s)",
            folder,
            len(others),
            _listed(others),
        )
    columns = {IMAGE: [image.relative_to(folder).as_posix() for image in images]}
    return Table(str(folder), columns | ({LABEL: labels} if classes else {}), len(images))
