"""Keep some modules of a model as they are while the others are trained."""

from torch import nn

from mixout_export.config import TargetPattern
from mixout_export.errors import ArgumentError
from mixout_export.layers import MixoutLayer
from mixout_export.surgery.selection import match_modules

_OPTION = "freeze"


def freeze_modules(model: nn.Module, pattern: str) -> tuple[str, ...]:
    """Freeze the modules that a pattern matches, with all modules inside them, in place.

    Their parameters need no gradient. A mixed layer among them computes with its weight, because
    there is nothing to mix: its mix probability becomes 0. A weight that is shared with a module
    outside is frozen there too.

    Args:
        model: The model.
        pattern: Name suffixes separated by commas, or a regular expression, as in
            `MixoutConfig.target_modules`. It may match any module.

    Returns:
        The names of the frozen parameters.

    Raises:
        ArgumentError: Nothing remains to be trained.
        TargetError: The pattern is not valid, or a part of it matches no module.
    """
    parsed = TargetPattern.parse(pattern, option=_OPTION)
    for module in match_modules(model, parsed, option=_OPTION, mixable_only=False).values():
        module.requires_grad_(False)
        for child in module.modules():
            if isinstance(child, MixoutLayer):
                child.p = 0.0
    frozen = tuple(name for name, value in model.named_parameters() if not value.requires_grad)
    if len(frozen) == sum(1 for _ in model.parameters()):
        raise ArgumentError(f"{_OPTION}: {pattern!r} freezes every parameter; freeze fewer modules")
    return frozen
