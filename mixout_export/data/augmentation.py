"""Random changes of training images: a crop of random size and shape, and a mirror image."""

import math

import numpy as np
from PIL import Image

#: Share of the image's area that a crop covers, and its width divided by its height, as in
#: torchvision's RandomResizedCrop (Szegedy et al., 2015).
_AREA, _SHAPE = (0.08, 1.0), (3 / 4, 4 / 3)
#: Crops that are drawn until one fits into the image.
_TRIES = 10


def draw_crop(width: int, height: int, random: np.random.Generator) -> tuple[int, int, int, int]:
    """Draw a crop as torchvision's RandomResizedCrop does; return (left, top, right, bottom).

    If no crop fits after ten tries, it is the largest one of an allowed shape in the middle.
    """
    for _ in range(_TRIES):
        area = width * height * random.uniform(*_AREA)
        shape = math.exp(random.uniform(math.log(_SHAPE[0]), math.log(_SHAPE[1])))
        wide, high = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < wide <= width and 0 < high <= height:
            left = int(random.integers(0, width - wide + 1))
            top = int(random.integers(0, height - high + 1))
            return left, top, left + wide, top + high
    shape = min(max(width / height, _SHAPE[0]), _SHAPE[1])
    wide, high = min(width, round(height * shape)), min(height, round(width / shape))
    left, top = (width - wide) // 2, (height - high) // 2
    return left, top, left + wide, top + high


def augment(
    image: Image.Image,
    size: tuple[int, int],
    random: np.random.Generator,
    resample: Image.Resampling,
) -> Image.Image:
    """Return a random crop of an image, resized to (height, width), half of the time mirrored."""
    height, width = size
    crop = draw_crop(*image.size, random)
    changed = image.crop(crop).resize((width, height), resample)
    if random.random() < 0.5:
        changed = changed.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return changed
