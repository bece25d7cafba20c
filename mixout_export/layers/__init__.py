"""Layers whose weight is mixed with its pretrained value during training."""

from mixout_export.layers.base import MixoutLayer
from mixout_export.layers.conversion import (
    LAYER_CLASSES,
    MIXABLE,
    is_mixable,
    mixout_class,
    to_mixout,
    to_plain,
)
from mixout_export.layers.convolution import (
    MixoutConv1d,
    MixoutConv2d,
    MixoutConvolution,
)
from mixout_export.layers.embedding import MixoutEmbedding
from mixout_export.layers.linear import MixoutConv1D, MixoutLinear

__all__ = [
    "LAYER_CLASSES",
    "MIXABLE",
    "MixoutConv1D",
    "MixoutConv1d",
    "MixoutConv2d",
    "MixoutConvolution",
    "MixoutEmbedding",
    "MixoutLayer",
    "MixoutLinear",
    "is_mixable",
    "mixout_class",
    "to_mixout",
    "to_plain",
]
