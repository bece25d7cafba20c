"""AdamW that takes the gradients of mixed weights without their zero columns."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import AdamW
from torch.optim.adamw import adamw

from mixout_export.compact import CompactGradient, Slices
from mixout_export.errors import ArgumentError
from mixout_export.layers import MixoutLayer
from mixout_export.surgery.injection import mixout_layers

Scope = Literal["all", "active"]
SCOPES: tuple[str, ...] = get_args(Scope)


class MixoutAdamW(AdamW):
    """AdamW (Loshchilov and Hutter, 2019) for a model with mixout, in less memory.

    Under a neuron mask, 1 - p of the columns of a weight's gradient are not zero. With this
    optimizer the backward pass keeps only these, and `weight.grad` of such a layer stays None. With
    any other optimizer it is the dense gradient.

    With `scope="all"` every step changes the weights exactly as `torch.optim.AdamW` would with the
    dense gradient: the columns that got no gradient still decay, and still move by their momentum.

    With `scope="active"` a step changes only the active columns of a mixed weight, and moments
    exist only for these. They start at zero, with a new bias correction, whenever the layer draws
    another mask. This needs masks that are held for some updates; see `MaskSchedule`.

    Use `clip_grad_norm_` of this class. `torch.nn.utils.clip_grad_norm_` and hooks on a weight's
    gradient see dense gradients only. Where these are needed (several processes, float16 with a
    loss scaler, second derivatives, element masks, layers that take the plain path), `weight.grad`
    is set as usual, and `scope="all"` handles both kinds.

    Args:
        model: A model with mixout.
        params: Parameters or parameter groups, as for `AdamW`. None takes all that are trained.
        lr: Learning rate.
        betas: Decay rates of both moments.
        eps: Added to the denominator.
        weight_decay: λ of the decoupled weight decay.
        scope: "all" or "active".

    Raises:
        ArgumentError: `scope` is not valid, or is "active" for a model with a mixed layer whose
            gradient cannot be compact: one with element masks, an embedding, or a convolution with
            groups.
        ValueError: A number is not valid.

    Example:
        >>> optimizer = MixoutAdamW(model, lr=2e-5)
        >>> model(**batch).loss.backward()
        >>> norm = optimizer.clip_grad_norm_(1.0)
        >>> optimizer.step()
        >>> optimizer.zero_grad()
    """

    def __init__(
        self,
        model: nn.Module,
        params: Iterable[Any] | None = None,
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        scope: Scope = "all",
    ) -> None:
        if scope not in SCOPES:
            raise ArgumentError(f"scope: got {scope!r}, expected one of {', '.join(SCOPES)}")
        if params is None:
            params = [p for p in model.parameters() if p.requires_grad]
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=True)
        self.scope = scope
        trained = {id(p) for group in self.param_groups for p in group["params"]}
        self._layers: dict[int, MixoutLayer] = {}
        for name, layer in mixout_layers(model).items():
            if id(layer.weight) not in trained or layer.p == 0:
                continue
            if layer.takes_compact_gradients():
                layer.compact = CompactGradient(layer.weight, layer.mask_dim(), owner=self)
                self._layers[id(layer.weight)] = layer
            elif scope == "active":
                raise ArgumentError(
                    f"scope: 'active' cannot train {name!r}, a {type(layer).__name__} with "
                    f"granularity {layer.granularity!r}: its mask leaves no whole columns or "
                    "filters inactive, or it is an embedding or a grouped convolution; use 'all'"
                )
        #: The mask that a weight's moments belong to, under scope "active".
        self._masks: dict[int, object] = {}
        #: Zeros, for the dense form of one gradient at a time.
        self._zeros: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def _compact(self) -> Iterator[tuple[dict[str, Any], MixoutLayer, Slices]]:
        """Yield each layer whose gradient is compact, with its parameter group and gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                layer = self._layers.get(id(parameter))
                if layer is not None and layer.compact is not None and layer.compact.slices:
                    yield group, layer, layer.compact.slices

    def clip_grad_norm_(self, max_norm: float) -> Tensor:
        """Scale all gradients so that their common L2 norm is at most `max_norm`.

        Args:
            max_norm: The largest norm; infinity changes nothing.

        Returns:
            The norm before, a scalar on the parameters' device.
        """
        gradients = [
            p.grad for group in self.param_groups for p in group["params"] if p.grad is not None
        ]
        gradients += [slices.values for *_, slices in self._compact()]
        norm = get_total_norm(gradients)
        if max_norm != float("inf"):
            factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)  # as torch.nn.utils does
            torch._foreach_mul_(gradients, factor)
        return norm

    def buffers(self) -> list[Tensor]:
        """Return what the optimizer keeps between steps apart from its state."""
        return list(self._zeros.values())

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop all gradients."""
        super().zero_grad(set_to_none)
        for layer in self._layers.values():
            if layer.compact is not None:
                layer.compact.clear()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Do one update.

        Args:
            closure: Computes the gradients anew and returns the loss; None uses those that exist.

        Returns:
            The closure's loss; None without.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._settle()
        super().step()
        for group, layer, slices in self._compact():
            if self.scope == "active":
                self._step_active(group, layer, slices)
            else:
                self._step_all(group, layer.weight, slices)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned, for a model with the same masks."""
        super().load_state_dict(state_dict)
        self._masks.clear()

    def _settle(self) -> None:
        """Leave each mixed weight with one kind of gradient, where backward passes made two."""
        for layer in self._layers.values():
            compact = layer.compact
            if compact is None or compact.weight.grad is None:
                continue
            compact.make_dense()
            if self.scope == "active":
                indices = _require_held(layer).view(-1).nonzero().view(-1).to(layer.weight.device)
                compact.slices = Slices.of(compact.weight.grad, indices, compact.dim)
                compact.weight.grad = None

    def _step_all(self, group: dict[str, Any], weight: Tensor, slices: Slices) -> None:
        """Update a whole weight: PyTorch's own AdamW, with a dense form that is dropped at once."""
        place = (weight.device, weight.dtype)
        if place not in self._zeros or self._zeros[place].numel() < weight.numel():
            self._zeros[place] = weight.new_zeros(weight.numel())
        dense = self._zeros[place][: weight.numel()].view(weight.shape)
        slices.write_to(dense)
        self._update(group, weight, dense, self._state_of(weight, weight))
        dense.index_fill_(slices.dim, slices.indices, 0.0)

    def _step_active(self, group: dict[str, Any], layer: MixoutLayer, slices: Slices) -> None:
        """Update the active slices of a weight, and nothing else."""
        weight, mask = layer.weight, _require_held(layer)
        if self._masks.get(id(weight)) is not mask:
            if id(weight) in self._masks or not self._was_loaded_for(weight, slices):
                self.state.pop(weight, None)
            self._masks[id(weight)] = mask
        part = Slices.of(weight, slices.indices, slices.dim)
        state = self._state_of(weight, part.values)
        state["active"] = slices.indices
        self._update(group, part.values, slices.values, state)
        part.write_to(weight)

    def _was_loaded_for(self, weight: Tensor, slices: Slices) -> bool:
        """Tell whether a loaded state has the moments of these slices."""
        known = self.state[weight].get("active")
        return known is not None and torch.equal(known.to(torch.int64), slices.indices)

    def _state_of(self, weight: Tensor, like: Tensor) -> dict[str, Any]:
        """Return a weight's state, new moments with the shape of `like` if it has none."""
        state: dict[str, Any] = self.state[weight]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=weight.device)
            state["exp_avg"] = torch.zeros_like(like)
            state["exp_avg_sq"] = torch.zeros_like(like)
        return state

    @staticmethod
    def _update(
        group: dict[str, Any], weight: Tensor, gradient: Tensor, state: dict[str, Any]
    ) -> None:
        """Do PyTorch's AdamW update of one tensor."""
        adamw(
            [weight],
            [gradient],
            [state["exp_avg"]],
            [state["exp_avg_sq"]],
            [],
            [state["step"]],
            fused=True,
            amsgrad=False,
            maximize=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
        )


def _require_held(layer: MixoutLayer) -> Tensor:
    """Return a layer's held mask."""
    if not isinstance(layer.held_mask, Tensor):
        raise ArgumentError(
            "scope: 'active' needs masks that are held for an update; call MaskSchedule.step() "
            "before the update's first forward pass, or use scope='all'"
        )
    return layer.held_mask
