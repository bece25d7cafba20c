"""The models that are measured, and their inputs."""

from argparse import ArgumentTypeError
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    ResNetConfig,
    ResNetForImageClassification,
)

from mixout_export.config import ALL_CONV, ALL_LINEAR


@dataclass(frozen=True)
class Batch:
    """Sizes of a batch.

    Attributes:
        examples: Number of sequences or images.
        size: Number of tokens in each sequence, or of pixels along each side of an image.
    """

    examples: int
    size: int

    @classmethod
    def parse(cls, text: str) -> "Batch":
        """Read `32x128`: examples x tokens, or examples x pixels."""
        examples, _, size = text.partition("x")
        if not all(part.isdigit() and int(part) for part in (examples, size)):
            raise ArgumentTypeError(
                f"got {text}, expected examples x tokens (or pixels), for example 32x128"
            )
        return cls(int(examples), int(size))

    def __str__(self) -> str:
        """Return the form that `parse` reads."""
        return f"{self.examples}x{self.size}"


class Shape(Protocol):
    """Sizes of a model."""

    @property
    def targets(self) -> str:
        """The layers that are mixed."""

    def build(self, dropout: float) -> nn.Module:
        """Return a new model with random weights and a drop probability in its body."""

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """Return random inputs and labels."""


def _labels(batch: Batch, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, (batch.examples,), generator=generator)


@dataclass(frozen=True)
class Bert:
    """A BERT.

    Attributes:
        layers: Number of layers.
        hidden: Width.
        heads: Attention heads.
    """

    layers: int
    hidden: int
    heads: int

    @property
    def targets(self) -> str:
        """The linear layers of the body."""
        return ALL_LINEAR

    def build(self, dropout: float) -> nn.Module:
        """Return a new model."""
        return BertForSequenceClassification(
            BertConfig(
                hidden_size=self.hidden,
                num_hidden_layers=self.layers,
                num_attention_heads=self.heads,
                intermediate_size=4 * self.hidden,
                hidden_dropout_prob=dropout,
                attention_probs_dropout_prob=dropout,
            )
        )

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """Return random tokens without padding, and labels."""
        generator = torch.Generator().manual_seed(1)
        shape = (batch.examples, batch.size)
        ids = torch.randint(1000, 30000, shape, generator=generator)
        labels = _labels(batch, generator)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


@dataclass(frozen=True)
class ResNet:
    """A ResNet of basic blocks. It has no dropout.

    Attributes:
        widths: Number of channels in each stage.
        depths: Number of blocks in each stage.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]

    @property
    def targets(self) -> str:
        """The convolutions."""
        return ALL_CONV

    def build(self, dropout: float) -> nn.Module:
        """Return a new model."""
        return ResNetForImageClassification(
            ResNetConfig(
                embedding_size=self.widths[0],
                hidden_sizes=list(self.widths),
                depths=list(self.depths),
                layer_type="basic",
            )
        )

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """Return random images with three channels, and labels."""
        generator = torch.Generator().manual_seed(1)
        pixels = torch.randn(batch.examples, 3, batch.size, batch.size, generator=generator)
        return {"pixel_values": pixels, "labels": _labels(batch, generator)}


SHAPES: dict[str, Shape] = {
    "tiny": Bert(2, 128, 2),
    "22M": Bert(6, 384, 12),
    "BERT-base": Bert(12, 768, 12),
    "BERT-large": Bert(24, 1024, 16),
    "tiny ResNet": ResNet((16, 32), (1, 1)),
    "ResNet-18": ResNet((64, 128, 256, 512), (2, 2, 2, 2)),
}


def inputs_on(device: str, shape: Shape, batch: Batch) -> dict[str, Tensor]:
    """Return a shape's inputs on a device."""
    return {name: value.to(device) for name, value in shape.inputs(batch).items()}
