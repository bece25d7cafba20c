"""Load the image processor that lies in a folder, and find out which images it makes."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import AutoImageProcessor, BaseImageProcessor

from mixout_export.checkpoint.interface import IMAGE_INPUT, ModelInterface
from mixout_export.checkpoint.model_inputs import Batch, smallest_batch
from mixout_export.errors import CheckpointError
from mixout_export.files.layout import PROCESSOR_FILES
from mixout_export.printable import first_line
from mixout_export.quiet import quiet_libraries

#: Height and width of two pictures, one upright and one wide, that are processed to see the size.
_TRIED = ((48, 32), (32, 48))


def load_image_processor(path: Path) -> BaseImageProcessor | None:
    """Load the image processor that lies in a folder, or return None if it has no such file.

    Pictures are resized with Pillow, even if torchvision is installed: Pillow computes with
    integers, so it gives the same pixels on every machine.

    Raises:
        CheckpointError: The file is damaged, or needs a package that is not installed.
    """
    files = [path / name for name in PROCESSOR_FILES if (path / name).is_file()]
    if not files:
        return None
    with quiet_libraries():
        try:
            processor: BaseImageProcessor = AutoImageProcessor.from_pretrained(  # type: ignore[no-untyped-call]
                path, backend="pil", local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # whatever a processor makes of its settings
            if "torchvision" in str(error):
                raise CheckpointError(
                    f"{files[0]}: this image processor needs the package torchvision, which is not "
                    "installed; run pip install torchvision"
                ) from error
            raise CheckpointError(
                f"{files[0]}: the image processor cannot be loaded ({first_line(error)}); copy the "
                "file of the base again"
            ) from error
    return processor


def process(
    processor: BaseImageProcessor, pictures: Sequence[Any], **options: Any
) -> NDArray[np.float32]:
    """Return pictures as a model takes them, shape (pictures, channels, height, width).

    Args:
        processor: The image processor.
        pictures: Pillow's images, or uint8 arrays of shape (height, width, channels).
        options: Steps to turn on or off, by the processor's own names.

    Raises:
        CheckpointError: The processor does not make images of one size of them.
    """
    try:
        made = processor(images=list(pictures), return_tensors="np", **options)[IMAGE_INPUT]
        return np.asarray(made, np.float32)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{type(processor).__name__}: cannot process the images ({first_line(error)}); correct "
            f"{PROCESSOR_FILES[0]}, for example its size"
        ) from error


def image_size(processor: BaseImageProcessor, channels: int) -> tuple[int, int]:
    """Return (height, width) of the images that it makes.

    Raises:
        CheckpointError: It makes images of different sizes, or none of so many channels.
    """
    pictures = [np.zeros((*size, channels), np.uint8) for size in _TRIED]
    height, width = process(processor, pictures).shape[2:]
    return height, width


def fit_images(
    interface: ModelInterface, processor: BaseImageProcessor, run: Callable[[Batch], object]
) -> ModelInterface:
    """Return the interface for images of the size that the processor makes.

    The configuration of a model for any size does not say which size it was trained on.

    Args:
        interface: What the model takes, as its configuration says.
        processor: The model's image processor.
        run: Runs the model, and raises `CheckpointError` if it does not take the batch.

    Raises:
        CheckpointError: The model does not take these images.
    """
    channels, *expected = interface.image or (3, 0, 0)
    height, width = size = image_size(processor, channels)
    fitted = replace(interface, image=(channels, height, width))
    if list(size) != expected:
        try:
            run(smallest_batch(fitted))
        except CheckpointError as error:
            raise CheckpointError(
                f"{PROCESSOR_FILES[0]} makes images of {height} x {width} pixels, and the model "
                f"does not take them, expected {expected[0]} x {expected[1]}; correct the size in "
                "that file"
            ) from error
    return fitted


def write_image_processor(folder: Path, processor: BaseImageProcessor) -> None:
    """Write an image processor's file with all of its settings.

    A file may leave out settings that have their default in Python. Other libraries have other
    defaults: transformers.js does not normalize unless the file says so.
    """
    (folder / PROCESSOR_FILES[0]).write_text(processor.to_json_string(), encoding="utf-8")
