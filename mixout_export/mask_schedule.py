"""Hold masks for several updates, and let the anchors follow the weights."""

from typing import Any

import torch
from torch import Tensor, nn

from mixout_export.errors import ArgumentError
from mixout_export.functional import is_full_precision
from mixout_export.masks import PackedMask
from mixout_export.surgery.injection import mixout_layers


class MaskSchedule:
    """Draws the masks of a model's mixout layers once for several updates.

    Without it, each forward pass draws a mask for each layer that it runs (Lee, Cho, Kang, 2020).
    With it, all forward passes of `resample_every` updates use the same masks, as in GMixout
    (arXiv 2510.06982). That includes all batches of an update whose gradients are accumulated.

    The layers keep their masks until `release` is called, and so does a copy of the model.
    Change a layer's p only just before masks are drawn: a mask belongs to the p it was drawn with.

    With `anchor_decay` λ below 1, the anchor is an exponential moving average of the weights: each
    time masks are drawn, except for the first, u ← λ u + (1 - λ) w.

    Args:
        model: A model with mixout.
        resample_every: Number of updates for which masks are held, 1 or more.
        anchor_decay: λ in [0, 1]. At 1 the anchors stay the pretrained weights.

    Raises:
        ArgumentError: A value is not valid, or the anchors are in half precision and would move,
            where small moves would be rounded away.

    Example:
        >>> schedule = MaskSchedule(model, resample_every=100)
        >>> for batch in batches:
        ...     schedule.step()
        ...     model(**batch).loss.backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
    """

    def __init__(
        self, model: nn.Module, *, resample_every: int = 1, anchor_decay: float = 1.0
    ) -> None:
        if not isinstance(resample_every, int) or resample_every < 1:
            raise ArgumentError(
                f"resample_every: got {resample_every}, expected an integer, 1 or more"
            )
        if not 0.0 <= anchor_decay <= 1.0:
            raise ArgumentError(f"anchor_decay: got {anchor_decay}, expected 0 to 1")
        self._layers = mixout_layers(model)
        self.resample_every, self.anchor_decay = resample_every, anchor_decay
        self.updates = 0
        if anchor_decay < 1.0:
            for layer in self._layers.values():
                if not is_full_precision(layer.pretrained_weight.dtype):
                    raise ArgumentError(
                        f"anchor_decay: anchors in {layer.pretrained_weight.dtype} would not move, "
                        "because small steps are rounded away; keep the anchors in float32"
                    )

    def step(self) -> None:
        """Begin an update: draw new masks if those in use have served `resample_every` updates."""
        if self.updates % self.resample_every == 0:
            for layer in self._layers.values():
                if self.updates and self.anchor_decay < 1.0:
                    layer.move_anchor(1.0 - self.anchor_decay)
                layer.hold_mask()
        self.updates += 1

    def release(self) -> None:
        """Let every forward pass draw its own masks again. Moved anchors stay where they are."""
        for layer in self._layers.values():
            layer.held_mask = None

    def state_dict(self) -> dict[str, Any]:
        """Return the number of updates, the masks in use and the anchors that have moved."""
        layers = self._layers
        return {
            "updates": self.updates,
            "masks": {name: _plain(layer.held_mask) for name, layer in layers.items()},
            "anchors": {
                name: layer.pretrained_weight
                for name, layer in layers.items()
                if layer.anchor_moved
            },
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned for a model with the same layers.

        Raises:
            ArgumentError: The state is that of other layers.
        """
        if state["masks"].keys() != self._layers.keys():
            other = sorted(state["masks"].keys() ^ self._layers.keys())
            raise ArgumentError(f"state: is that of other layers; {other[0]!r} is in one only")
        self.updates = state["updates"]
        for name, layer in self._layers.items():
            mask = state["masks"][name]
            layer.held_mask = PackedMask.from_dict(mask) if isinstance(mask, dict) else mask
            if name in state["anchors"]:
                layer.pretrained_weight.copy_(state["anchors"][name])
                layer.anchor_moved = True


def _plain(mask: Tensor | PackedMask | None) -> Tensor | dict[str, Any] | None:
    """Return a mask in a form that `torch.load` reads without trusting the file."""
    return mask.to_dict() if isinstance(mask, PackedMask) else mask
