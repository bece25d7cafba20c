"""Which mixed layers a model really calls."""

from typing import Any

from torch import nn

from mixout_export.surgery.injection import mixout_layers


class ForwardWatch:
    """Notes which mixout layers' forward runs, from its creation until `stop`.

    A module that reads another's `.weight` directly (MultiheadAttention its `out_proj`) bypasses
    mixout without a sign; this is the sign.

    Args:
        model: A model with mixout layers.
    """

    def __init__(self, model: nn.Module) -> None:
        self._silent = dict(mixout_layers(model))
        self._handles = [
            layer.register_forward_pre_hook(self._note(name))
            for name, layer in self._silent.items()
        ]

    def _note(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: Any) -> None:
            self._silent.pop(name, None)

        return hook

    def stop(self) -> tuple[str, ...]:
        """Stop watching and return the names of the layers whose forward never ran."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        return tuple(self._silent)
