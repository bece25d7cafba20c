"""The epsilons of normalizations: a wrong one changes outputs, though often by very little."""

from torch import nn

#: What PyTorch's and transformers' modules call theirs.
_ATTRIBUTES = ("eps", "variance_epsilon", "epsilon")


def model_epsilons(model: nn.Module) -> dict[str, float]:
    """Return the epsilon of each normalization, by the module's name."""
    found: dict[str, float] = {}
    for name, module in model.named_modules():
        values = (getattr(module, attribute, None) for attribute in _ATTRIBUTES)
        epsilon = next((value for value in values if isinstance(value, float)), None)
        if epsilon is not None and next(module.children(), None) is None:
            found[name] = epsilon
    return found
