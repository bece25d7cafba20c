"""Layers whose weight is mixed with its pretrained value during training."""

from mixout_export.layers.base import MixoutLayer
from mixout_export.layers.conversion import (
    LAYER_CLASSES,
    is_mixable,
    mixout_class,
    to_mixout,
    to_plain,
)
from mixout_export.layers.embedding import MixoutEmbedding
from mixout_export.layers.linear import MixoutConv1D, MixoutLinear

__all__ = [
    "LAYER_CLASSES",
    "MixoutConv1D",
    "MixoutEmbedding",
    "MixoutLayer",
    "MixoutLinear",
    "is_mixable",
    "mixout_class",
    "to_mixout",
    "to_plain",
]
