"""The list of equal layers that makes up a transformer."""

from dataclasses import dataclass

from torch import nn

from mixout_export.errors import ArgumentError
from mixout_export.surgery.selection import body_of

#: Entries of configurations that say how many layers a part of the model has.
_COUNTS = (
    *("num_hidden_layers", "encoder_layers", "decoder_layers"),
    *("num_layers", "num_decoder_layers"),
)


@dataclass(frozen=True)
class LayerList:
    """The layers of a transformer.

    Attributes:
        names: Full names of the layers, from the input to the output. The layers of an encoder come
            before those of its decoder.
        below: Names of the body's parameters that a text passes before the first layer, embeddings
            above all.
        above: Names of the body's parameters that come after the last layer: a pooler or a final
            normalization.
    """

    names: tuple[str, ...]
    below: frozenset[str]
    above: frozenset[str]

    def layer_of(self, parameter: str) -> int | None:
        """Return the number of the layer that holds a parameter, from 0; None for all others."""
        for number, name in enumerate(self.names):
            if parameter.startswith(f"{name}."):
                return number
        return None


def _counts(model: nn.Module) -> set[int]:
    """Return the numbers of layers that the configuration names."""
    config = getattr(model, "config", None)
    inner = getattr(config, "get_text_config", None)
    configs = (config, inner() if callable(inner) else None)
    found = {getattr(each, name, None) for each in configs for name in _COUNTS}
    return {count for count in found if isinstance(count, int) and count > 0}


def _outermost_lists(body: nn.Module) -> dict[str, nn.ModuleList]:
    """Return the lists of modules in a model's body that are not inside another one."""
    lists: dict[str, nn.ModuleList] = {}
    for name, module in body.named_modules():
        if isinstance(module, nn.ModuleList) and not any(
            name.startswith(f"{outer}.") for outer in lists
        ):
            lists[name] = module
    return lists


def _weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def find_layers(model: nn.Module, *, option: str) -> LayerList:
    """Find the layers of a transformers model.

    They are the list of modules in the model's body that is as long as the configuration says:
    `encoder.layer`, `layers`, `h`, `block` and so on. An encoder-decoder has two.

    Args:
        model: A transformers model.
        option: Name of the option that needs them, for the error message.

    Raises:
        ArgumentError: The model has no such list, or its layers share one set of weights.
    """
    body = body_of(model)
    config = getattr(model, "config", None)
    counts = _counts(model)
    lists = {
        name: modules
        for name, modules in _outermost_lists(body).items()
        if len(modules) in counts and _weights(modules)
    }
    groups = getattr(config, "num_hidden_groups", None)
    if groups is not None and {groups} != counts:
        raise ArgumentError(
            f"{option}: the layers of {type(model).__name__} share their weights, so they cannot "
            "be treated differently; leave the option out"
        )
    if not lists or len(lists) > (2 if getattr(config, "is_encoder_decoder", False) else 1):
        raise ArgumentError(
            f"{option}: {type(model).__name__} has no single list of layers, which the option "
            "needs; leave it out"
        )
    prefix = _prefix_of(model, body)
    names = tuple(
        f"{prefix}{name}.{number}"
        for name, modules in lists.items()
        for number in range(len(modules))
    )
    return _surroundings(body, prefix, names)


def _prefix_of(model: nn.Module, body: nn.Module) -> str:
    """Return what the names of the body's modules begin with in the whole model."""
    name = next(name for name, module in model.named_modules() if module is body)
    return f"{name}." if name else ""


def _surroundings(body: nn.Module, prefix: str, names: tuple[str, ...]) -> LayerList:
    """Sort the body's other parameters. Whatever is registered before the layers is below them."""
    below, above = set(), set()
    reached = False
    for name, _ in body.named_parameters():
        full = prefix + name
        if any(full.startswith(f"{layer}.") for layer in names):
            reached = True
        elif "final" in name or (reached and "embed" not in name):
            above.add(full)
        else:
            below.add(full)
    return LayerList(names, frozenset(below), frozenset(above))
