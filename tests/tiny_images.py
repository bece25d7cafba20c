"""Tiny models of images with their image processors, and folders of generated images."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from PIL import Image

from matrix import tiny
from mixout_export.quiet import quiet_libraries

#: Height and width of the images that the models take.
SIZE = 16
CLASSES = ("blue", "green", "red")

_TRANSFORMER: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": SIZE,
    "patch_size": 8,
}
_STAGES: dict[str, Any] = {"hidden_sizes": [8, 12], "depths": [1, 1]}
_SQUARE = {"size": {"height": SIZE, "width": SIZE}}
_CROPPED = {"size": {"shortest_edge": SIZE}, "crop_pct": 0.875}

#: Family → the prefix of its classes, its settings, and its processor with its settings.
FAMILIES: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "vit": ("ViT", _TRANSFORMER, "ViTImageProcessor", _SQUARE),
    "deit": (
        "DeiT",
        _TRANSFORMER,
        "DeiTImageProcessor",
        {"size": {"height": 20, "width": 20}, "crop_size": {"height": SIZE, "width": SIZE}},
    ),
    "swin": (
        "Swin",
        {
            "image_size": SIZE,
            "patch_size": 2,
            "window_size": 4,
            "embed_dim": 8,
            "depths": [1, 1],
            "num_heads": [1, 2],
        },
        "ViTImageProcessor",
        _SQUARE,
    ),
    "convnext": (
        "ConvNext",
        {**_STAGES, "num_stages": 2, "patch_size": 2},
        "ConvNextImageProcessor",
        _CROPPED,
    ),
    "resnet": (
        "ResNet",
        {**_STAGES, "embedding_size": 8, "layer_type": "basic"},
        "ConvNextImageProcessor",
        _CROPPED,
    ),
}


def save_vision(
    path: Path, kind: str = "vit", head: str = "Model", *, seed: int = 0, **settings: Any
) -> Path:
    """Save a tiny model of a family, with its image processor, as a Hugging Face folder."""
    prefix, own, processor, steps = FAMILIES[kind]
    config = getattr(transformers, f"{prefix}Config")(**{**own, **settings})
    model_class = getattr(transformers, f"{prefix}{head}")
    with quiet_libraries():
        tiny.make_model(lambda: model_class(config), seed=seed).save_pretrained(path)
    write_processor(path, processor, **steps)
    return path


def write_processor(path: Path, kind: str = "ViTImageProcessor", **steps: Any) -> None:
    """Write `preprocessor_config.json`."""
    steps = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, **steps}
    (path / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": kind, **steps}), encoding="utf-8"
    )


def picture(label: str, *, seed: int, height: int = 20, width: int = 24) -> Image.Image:
    """Return noise in which the channel that the label names is brighter."""
    pixels = np.random.default_rng(seed).integers(0, 140, (height, width, 3))
    pixels[..., ("red", "green", "blue").index(label)] += 100
    return Image.fromarray(pixels.astype(np.uint8))


def class_folders(root: Path, count: int, *, seed: int = 0) -> Path:
    """Write a folder of class folders with so many images of each class."""
    for place, label in enumerate(CLASSES):
        folder = root / label
        folder.mkdir(parents=True)
        for number in range(count):
            made = picture(label, seed=seed + 1000 * place + number)
            made.save(folder / f"{number}.png")
    return root
