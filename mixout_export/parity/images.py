"""Make the test images for a vision model."""

import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.float32]

#: Number of images in each batch of noise.
BATCHES = (1, 2, 3, 5)

#: Values of images of one shade. The values of normalized images are within about ±2.6.
SHADES = (-2.0, -0.5, 0.0, 0.5, 2.0)


def _single_channels(shape: tuple[int, int, int]) -> Images:
    """Return images with one channel at 1 and the others at 0."""
    channels, height, width = shape
    lit = np.eye(channels, dtype=np.float32)[:, :, None, None]
    return np.broadcast_to(lit, (channels, channels, height, width)).copy()


def _halves(shape: tuple[int, int, int], random: np.random.Generator) -> Images:
    """Return images with noise in the upper, lower, left or right half, to test positions."""
    _, height, width = shape
    images = random.standard_normal((4, *shape)).astype(np.float32)
    images[0, :, height // 2 :] = 0.0
    images[1, :, : height // 2] = 0.0
    images[2, :, :, width // 2 :] = 0.0
    images[3, :, :, : width // 2] = 0.0
    return images


def make_images(
    shape: tuple[int, int, int], random: np.random.Generator
) -> list[tuple[str, Images]]:
    """Return the name and the images of each batch, float32 `(batch, channels, height, width)`.

    `shape` is (channels, height, width).
    """
    noise = [random.standard_normal((rows, *shape)).astype(np.float32) for rows in BATCHES]
    shades = np.stack([np.full(shape, shade, dtype=np.float32) for shade in SHADES])
    extremes = np.where(random.random((2, *shape)) < 0.5, -3.0, 3.0).astype(np.float32)
    return [
        *(("images", batch) for batch in noise),
        ("halves", _halves(shape, random)),
        ("shades", shades),
        ("channels", _single_channels(shape)),
        ("extremes", extremes),
    ]
