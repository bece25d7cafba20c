"""Turn plain layers into mixout layers and back, in place."""

from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from mixout_export.errors import ArgumentError
from mixout_export.layers.base import MixoutLayer
from mixout_export.layers.convolution import MixoutConv1d, MixoutConv2d
from mixout_export.layers.embedding import MixoutEmbedding
from mixout_export.layers.linear import MixoutConv1D, MixoutLinear

#: The mixout layer for each plain class. The type must match exactly.
LAYER_CLASSES: dict[type[nn.Module], type[MixoutLayer]] = {
    nn.Linear: MixoutLinear,
    Conv1D: MixoutConv1D,
    nn.Conv1d: MixoutConv1d,
    nn.Conv2d: MixoutConv2d,
    nn.Embedding: MixoutEmbedding,
}

#: The plain classes, as errors name them.
MIXABLE = f"{', '.join(plain.__name__ for plain in list(LAYER_CLASSES)[:-1])} or Embedding"

#: Subclasses of `nn.Linear` in transformers that compute the same product.
_SAME_AS_LINEAR = frozenset({"transformers.models.falcon.modeling_falcon.FalconLinear"})


def mixout_class(plain: type[nn.Module]) -> type[MixoutLayer] | None:
    """Return the mixout layer for a plain class, or None if the class cannot be mixed."""
    if f"{plain.__module__}.{plain.__qualname__}" in _SAME_AS_LINEAR:
        return MixoutLinear
    return LAYER_CLASSES.get(plain)


def is_mixable(module: nn.Module, kinds: tuple[type[MixoutLayer], ...] = (MixoutLayer,)) -> bool:
    """Tell whether a module can be mixed, and then is a layer of one of these classes."""
    found = mixout_class(type(module))
    return found is not None and issubclass(found, kinds)


def to_mixout(
    module: nn.Module, pretrained_weight: Tensor | None, *, p: float, granularity: str
) -> MixoutLayer:
    """Turn a plain layer into a mixout layer, in place.

    Only the object's class changes, as with PyTorch's parametrizations. The object keeps its mode,
    device, dtype, hooks and `requires_grad`, and all references to it stay valid.

    Args:
        module: A module of one of the `LAYER_CLASSES`, not of a subclass.
        pretrained_weight: u, of the weight's shape; None means a copy of the current weight. That
            of an `nn.Embedding` may have fewer rows, or more.
        p: Mix probability in [0, 1).
        granularity: "neuron", "filter" or "element".

    Returns:
        The module.

    Raises:
        ArgumentError: The module's type has no mixout layer, or an argument is not valid.
    """
    layer_class = mixout_class(type(module))
    if layer_class is None:
        raise ArgumentError(f"module: got {type(module).__name__}, expected exactly {MIXABLE}")
    plain_class = type(module)
    module.__class__ = layer_class
    try:
        module.anchor(pretrained_weight, p=p, granularity=granularity)  # type: ignore[operator]
    except BaseException:
        module.__class__ = plain_class
        raise
    if plain_class is not layer_class.plain_class:
        vars(module)["plain_class"] = plain_class
    return module  # type: ignore[return-value]


def to_plain(layer: MixoutLayer) -> nn.Module:
    """Turn a mixout layer back into a plain layer, in place. The parameters stay the same."""
    layer.release()
    layer.__class__ = vars(layer).pop("plain_class", layer.plain_class)
    plain: Any = layer
    return plain  # type: ignore[no-any-return]
