"""The images that a vision model is run on: of all shades, and with each channel by itself."""

import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.float32]

#: Batches of noise, by their number of images.
BATCHES = (1, 2, 3, 5)

#: Brightness of images of one shade; a processor's normalised images lie within about ±2.6.
SHADES = (-2.0, -0.5, 0.0, 0.5, 2.0)


def _single_channels(shape: tuple[int, int, int]) -> Images:
    """Light one channel after another, float32 `(channels, channels, height, width)`."""
    channels, height, width = shape
    lit = np.eye(channels, dtype=np.float32)[:, :, None, None]
    return np.broadcast_to(lit, (channels, channels, height, width)).copy()


def _halves(shape: tuple[int, int, int], random: np.random.Generator) -> Images:
    """Light the upper, the lower, the left and the right half, which positions tell apart."""
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
    """Make batches of images.

    Args:
        shape: (channels, height, width) of an image.
        random: Draws them.

    Returns:
        Name and images of each batch, float32 `(batch, channels, height, width)`.
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
