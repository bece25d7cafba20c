"""Find mixed layers that a model never calls."""

from typing import Any

from torch import nn

from mixout_export.surgery.injection import mixout_layers


class ForwardWatch:
    """Records which mixout layers are called, from creation until `stop`.

    Some modules read another layer's `.weight` directly, which silently bypasses mixout.
    `nn.MultiheadAttention` does that with its `out_proj`.
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
        """Stop recording and return the names of the layers that were never called."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        return tuple(self._silent)
