"""From image files to the pixels that a model takes."""

from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedModel

from mixout_export.checkpoint.artifact import Artifact, LocalArtifact
from mixout_export.checkpoint.image_processor import fit_images, image_size, process
from mixout_export.checkpoint.interface import IMAGE_INPUT, ModelInterface, describe_interface
from mixout_export.checkpoint.model_inputs import Batch
from mixout_export.checkpoint.plain import PlainCheckpoint
from mixout_export.data.augmentation import augment
from mixout_export.data.columns import ColumnNames
from mixout_export.data.encoding import EncodedRows, Encoding, EncodingOptions
from mixout_export.data.image_files import ImageSource, Mode
from mixout_export.errors import CheckpointError
from mixout_export.files.layout import PROCESSOR_FILES
from mixout_export.printable import first_line

#: Steps of a processor that `augment` replaces.
_REPLACED = {"do_resize": False, "do_center_crop": False}

#: Threads that decode the images of a batch. Pillow works without the interpreter's lock.
_THREADS = 4


@dataclass(frozen=True)
class EncodedImages(EncodedRows):
    """Images, which are read from their files for each batch.

    Attributes:
        encoding: How they become pixels.
        sources: Where each image is.
        numbers: Number of each image's row in its file, from 0. It seeds the augmentation.
        labels: int64 class ids, shape (examples,); None if there are none.
        cut: Empty: an image has no end that could be cut.
    """

    encoding: "ImageEncoding"
    sources: Sequence[ImageSource]
    numbers: Sequence[int]
    labels: NDArray[Any] | None = None
    cut: Mapping[int, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.sources)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """One for each image: all have the same size."""
        return np.ones(len(self), np.int64)

    def collate(self, indices: Sequence[int], *, epoch: int | None = None) -> dict[str, Tensor]:
        """Return some images as a batch: `pixel_values`, float32, and `labels`, int64.

        In an epoch, images are augmented. The same image is changed in the same way in whichever
        batch, process or resumed run it is.
        """
        sources = [self.sources[i] for i in indices]
        numbers = None if epoch is None else [self.numbers[i] for i in indices]
        pixels = self.encoding.pixels(sources, numbers, epoch or 0)
        batch = {IMAGE_INPUT: torch.from_numpy(pixels)}
        if self.labels is not None:
            batch["labels"] = torch.from_numpy(self.labels[list(indices)])
        return batch


@dataclass(frozen=True)
class ImageEncoding(Encoding):
    """How images become a model's inputs.

    Attributes:
        processor: The checkpoint's image processor.
        interface: What the model takes.
        labels: The checkpoint's label names in the order of its outputs.
        augmented: Whether training images are changed at random in each epoch.
        seed: Seed of these changes.
        max_length: None: an image is no sequence.
        doc_stride: None, for the same reason.
    """

    missing: ClassVar[str] = f"has no {PROCESSOR_FILES[0]}"
    uses: ClassVar[frozenset[str]] = frozenset({"augment", "image-column"})

    processor: BaseImageProcessor
    interface: ModelInterface
    labels: tuple[str, ...] = ()
    augmented: bool = True
    seed: int = 0
    max_length: None = None
    doc_stride: None = None

    @staticmethod
    def preprocessor_of(artifact: Artifact) -> BaseImageProcessor | None:
        """Return the image processor of a model."""
        return artifact.image_processor

    @staticmethod
    def require_preprocessor(artifact: LocalArtifact) -> BaseImageProcessor:
        """Return the image processor of a folder."""
        return artifact.require_image_processor()

    @staticmethod
    def settle_for_training(
        folder: PlainCheckpoint, model: PreTrainedModel
    ) -> tuple[BaseImageProcessor, ModelInterface]:
        """Load the image processor, and check that the model takes images of its size."""
        processor = folder.require_image_processor()
        described = describe_interface(model, folder.require_task())
        if described.image is None:
            raise CheckpointError(
                f"{folder.path}: {type(model).__name__} takes {', '.join(described.inputs)}, "
                f"expected a model of images, which takes {IMAGE_INPUT} alone"
            )

        def run(batch: Batch) -> None:
            pixels = torch.from_numpy(np.asarray(batch.inputs[IMAGE_INPUT]))
            was_training = model.training
            model.eval()  # type: ignore[no-untyped-call]
            try:
                with torch.no_grad():
                    model(**{IMAGE_INPUT: pixels.to(model.device)})
            except (ValueError, RuntimeError) as error:
                raise CheckpointError(first_line(error)) from error
            finally:
                model.train(was_training)

        try:
            return processor, fit_images(described, processor, run)
        except CheckpointError as error:
            raise CheckpointError(f"{folder.path}: {error}") from error

    @staticmethod
    def traits(preprocessor: BaseImageProcessor) -> Hashable:
        """Return nothing: the processor is all in its file."""
        return ()

    @classmethod
    def create(
        cls,
        preprocessor: BaseImageProcessor,
        interface: ModelInterface,
        labels: Sequence[str],
        options: EncodingOptions,
        columns: ColumnNames,
    ) -> Self:
        """Create the encoding, for a model that takes images of the processor's size."""
        channels, *expected = interface.image or (0, 0, 0)
        if channels not in (1, 3):
            raise CheckpointError(
                f"the model takes images of {channels} channels, expected 1 or 3, because image "
                "files have no others"
            )
        size = image_size(preprocessor, channels)
        if list(size) != expected:
            raise CheckpointError(
                f"{PROCESSOR_FILES[0]} makes images of {size[0]} x {size[1]} pixels, but the model "
                f"takes {expected[0]} x {expected[1]}; correct the size in that file"
            )
        augmented = options.augment != "none"
        return cls(preprocessor, interface, tuple(labels), augmented, options.seed)

    def pixels(
        self, sources: Sequence[ImageSource], numbers: Sequence[int] | None, epoch: int
    ) -> NDArray[np.float32]:
        """Return images as the model takes them, shape (images, channels, height, width).

        Args:
            sources: The images.
            numbers: The numbers of their rows, to train on them in an epoch; None to evaluate.
            epoch: Number of the epoch.
        """
        channels, *size = self.interface.image or (3, 0, 0)
        mode: Mode = "L" if channels == 1 else "RGB"
        if numbers is None or not self.augmented:
            with ThreadPoolExecutor(_THREADS) as threads:
                pictures = list(threads.map(lambda source: source.open(mode), sources))
            return process(self.processor, pictures)
        resample = getattr(self.processor, "resample", None)
        filter_ = Image.Resampling.BILINEAR if resample is None else Image.Resampling(int(resample))

        def change(source: ImageSource, number: int) -> Image.Image:
            random = np.random.default_rng((self.seed, epoch, number))
            return augment(source.open(mode), (size[0], size[1]), random, filter_)

        with ThreadPoolExecutor(_THREADS) as threads:
            pictures = list(threads.map(change, sources, numbers))
        return process(self.processor, pictures, **_REPLACED)
