"""AdamW that takes the gradients of mixed weights without their zero columns."""

import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import AdamW
from torch.optim.adamw import adamw

from mixout_export.compact import CompactGradient, Slices, process_count
from mixout_export.errors import ArgumentError
from mixout_export.layers import MixoutLayer
from mixout_export.surgery.injection import mixout_layers

Scope = Literal["all", "active"]
SCOPES: tuple[str, ...] = get_args(Scope)


#: Settings of AdamW that this optimizer does not have.
_LEFT_OUT = ("amsgrad", "maximize", "differentiable")

_OTHER_MASK = (
    "scope: 'active' got gradients under another mask than the one that is held now; call "
    "MaskSchedule.step() once for an update, before its first forward pass"
)


class MixoutAdamW(AdamW):
    """AdamW (Loshchilov and Hutter, 2019) for a model with mixout, in less memory.

    Under a neuron mask, 1 - p of the columns of a weight's gradient are not zero. With this
    optimizer the backward pass keeps only these, and `weight.grad` of such a layer is an empty
    sparse tensor. With any other optimizer it is the dense gradient.

    With `scope="all"` every step changes the weights exactly as `torch.optim.AdamW` would with the
    dense gradient: the columns that got no gradient still decay, and still move by their momentum.

    With `scope="active"` a step changes only the active columns of a mixed weight, and moments
    exist only for these. They start at zero, with a new bias correction, whenever the layer draws
    another mask. This needs masks that are held for some updates; see `MaskSchedule`.

    Use `clip_grad_norm_` of this class. `torch.nn.utils.clip_grad_norm_` and other optimizers raise
    an error that names sparse tensors or `SparseCPU`. Where dense gradients are needed (several
    processes, float16 with a loss scaler, second derivatives, hooks on the weight, a weight that
    two optimizers train, element masks, layers that take the plain path), `weight.grad` is set as
    usual, and both scopes handle both kinds.

    Create it after `inject_mixout`. It belongs to this model, so it cannot be copied or pickled.
    Its state fits an optimizer of the same scope only: PyTorch does not compare shapes.

    Args:
        model: A model with mixout.
        params: Parameters or parameter groups, as for `AdamW`. None takes all that are trained.
        lr: Learning rate.
        betas: Decay rates of both moments.
        eps: Added to the denominator.
        weight_decay: λ of the decoupled weight decay.
        scope: "all" or "active".

    Raises:
        ArgumentError: `scope` is not valid, a parameter group asks for `amsgrad`, `maximize` or
            `differentiable`, or `scope` is "active" and the model has no mixout layer, or one
            whose gradient cannot be compact: with element masks, an embedding, a convolution with
            groups, or a weight that another layer has, too.
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
        self.scope = scope
        #: All mixed layers of the model, by name.
        self._known = mixout_layers(model)
        if scope == "active":
            _check_active(model, self._known)
        #: Identity of a weight that is trained → its layer, and where its gradient is.
        self._mixed: dict[int, tuple[MixoutLayer, CompactGradient]] = {}
        #: The mask that a weight's moments belong to, under scope "active".
        self._masks: dict[int, object] = {}
        #: Zeros, for the dense form of one gradient at a time.
        self._zeros: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=True)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, as for `AdamW`."""
        _check_settings(param_group)
        super().add_param_group(param_group)
        added = {id(p) for p in self.param_groups[-1]["params"]}
        for name, layer in self._known.items():
            if id(layer.weight) not in added:
                continue
            if not layer.takes_compact_gradients():
                if self.scope == "active":
                    raise ArgumentError(
                        f"scope: 'active' cannot train {name!r}, a {type(layer).__name__} with "
                        f"granularity {layer.granularity!r}: its mask leaves no whole columns or "
                        "filters inactive, or it is an embedding or a grouped convolution; use "
                        "'all'"
                    )
                continue
            _, compact = self._mixed.get(id(layer.weight), (None, layer.compact))
            if compact is None or compact.weight is not layer.weight:
                compact = CompactGradient(layer.weight, layer.mask_dim())
            if compact.dim == layer.mask_dim():
                layer.compact = compact
                compact.add_reader(self)
                self._mixed[id(layer.weight)] = layer, compact

    def __getstate__(self) -> dict[str, Any]:
        """Refuse to be copied or pickled."""
        raise TypeError(
            "MixoutAdamW cannot be copied or pickled, because it belongs to its model; make a new "
            "one for the copied model, and load this one's state_dict()"
        )

    def clip_grad_norm_(self, max_norm: float) -> Tensor:
        """Scale all gradients so that their common L2 norm is at most `max_norm`.

        Args:
            max_norm: The largest norm; infinity changes nothing.

        Returns:
            The norm before, a scalar on the parameters' device.

        Raises:
            ArgumentError: Someone has changed the gradient of a mixed weight. Or the scope is
                "active", and its masks are not held, or there are several processes.
        """
        self._settle()
        gradients = []
        for group in self.param_groups:
            for parameter in group["params"]:
                slices = self._slices_of(parameter)
                if slices is not None:
                    gradients.append(slices.values)
                elif parameter.grad is not None:
                    gradients.append(parameter.grad)
        norm = get_total_norm(gradients)
        if gradients and max_norm != float("inf"):
            factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)  # as torch.nn.utils does
            torch._foreach_mul_(gradients, factor)
        return norm

    def buffers(self) -> list[Tensor]:
        """Return what the optimizer keeps between steps apart from its state."""
        return list(self._zeros.values())

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop all gradients, or set them to zero, which makes them dense."""
        for _, compact in self._mixed.values():
            if set_to_none:
                compact.clear()
                continue
            compact.make_dense()
            weight = compact.weight
            if weight.grad is None and weight in self.state:  # the last step used it up
                weight.grad = torch.zeros_like(weight)
        super().zero_grad(set_to_none)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Do one update, which uses up the compact gradients.

        Args:
            closure: Computes the gradients anew and returns the loss; None uses those that exist.

        Returns:
            The closure's loss; None without.

        Raises:
            ArgumentError: As for `clip_grad_norm_`. Or a loss scaler did not see all gradients.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._settle()
        taken = list(self._take())
        scaled = getattr(self, "found_inf", None) is not None  # which GradScaler sets
        if scaled and not all(compact.was_dense for *_, compact, _ in taken):
            raise ArgumentError(
                "a loss scaler (GradScaler) scales the gradients, but has not seen those of layers "
                "that were not computed in float16; train without it in bfloat16 or float32"
            )
        # Without the wrapper that torch adds to a class: hooks would run twice.
        inspect.unwrap(AdamW.step)(self)
        for group, layer, compact, slices in taken:
            if self.scope == "active":
                self._step_active(group, layer, compact, slices)
            else:
                self._step_all(group, compact.weight, slices)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned, for a model with the same masks.

        Raises:
            ArgumentError: The state has moments of active columns only, and the scope is "all". Or
                its groups have settings that this optimizer does not have.
        """
        groups = [{**group, "fused": True, "foreach": None} for group in state_dict["param_groups"]]
        for group in groups:
            _check_settings(group)
        if self.scope == "all" and any("active" in each for each in state_dict["state"].values()):
            raise ArgumentError(
                "state_dict: has moments of active columns only; load it with scope='active'"
            )
        super().load_state_dict({**state_dict, "param_groups": groups})
        self._masks.clear()

    def _slices_of(self, parameter: Tensor) -> Slices | None:
        """Return a parameter's compact gradient; None without one."""
        _, compact = self._mixed.get(id(parameter), (None, None))
        return None if compact is None else compact.slices

    def _settle(self) -> None:
        """Leave each mixed weight with one kind of gradient, where backward passes made two."""
        if self.scope == "active" and process_count() > 1:
            raise ArgumentError(
                "scope: 'active' needs a single process, because masks differ between processes; "
                "use 'all'"
            )
        for layer, compact in self._mixed.values():
            if compact.weight.grad is None or (compact.slices and compact.weight.grad.is_sparse):
                continue
            if self.scope == "active" and compact.masks_differ:
                raise ArgumentError(_OTHER_MASK)
            compact.make_dense()
            if self.scope == "active":
                if _is_mixed(layer):
                    compact.replace_dense(_require_held(layer))
                elif "active" in self.state[compact.weight]:  # no longer mixed
                    self.state.pop(compact.weight)

    def _take(self) -> Iterator[tuple[dict[str, Any], MixoutLayer, CompactGradient, Slices]]:
        """Take each compact gradient, with its parameter group, its layer and where it was."""
        for group in self.param_groups:
            for parameter in group["params"]:
                layer, compact = self._mixed.get(id(parameter), (None, None))
                slices = None if compact is None else compact.take()
                if layer is not None and compact is not None and slices is not None:
                    yield group, layer, compact, slices

    def _step_all(self, group: dict[str, Any], weight: Tensor, slices: Slices) -> None:
        """Update a whole weight: PyTorch's own AdamW, with a dense form that is dropped at once."""
        place = (weight.device, weight.dtype)
        if place not in self._zeros or self._zeros[place].numel() < weight.numel():
            self._zeros[place] = weight.new_zeros(weight.numel())
        # The fused update reads all tensors in the order in which they lie in memory.
        strides = torch.empty_like(weight, device="meta").stride()
        dense = self._zeros[place].as_strided(weight.shape, strides)
        slices.write_to(dense)
        try:
            self._update(group, weight, dense, self._state_of(weight, weight))
        finally:
            dense.index_fill_(slices.dim, slices.indices, 0.0)

    def _step_active(
        self, group: dict[str, Any], layer: MixoutLayer, compact: CompactGradient, slices: Slices
    ) -> None:
        """Update the active slices of a weight, and nothing else."""
        weight, mask = compact.weight, _require_held(layer)
        if compact.mask is not mask:
            raise ArgumentError(_OTHER_MASK)
        if self._masks.get(id(weight)) is not mask:
            if id(weight) in self._masks or not self._was_loaded_for(weight, mask):
                self.state.pop(weight, None)
            self._masks[id(weight)] = mask
        part = Slices.of(weight, slices.indices, slices.dim)
        state = self._state_of(weight, part.values)
        state["active"] = mask.view(-1)
        gradient = slices.values
        if gradient.stride() != part.values.stride():  # see `_step_all`
            gradient = torch.empty_like(part.values).copy_(gradient)
        self._update(group, part.values, gradient, state)
        part.write_to(weight)

    def _was_loaded_for(self, weight: Tensor, mask: Tensor) -> bool:
        """Tell whether a loaded state, whose numbers have the weight's dtype, is for this mask."""
        known = self.state[weight].get("active")
        return known is not None and torch.equal(known.bool().cpu(), mask.view(-1).cpu())

    def _state_of(self, weight: Tensor, like: Tensor) -> dict[str, Any]:
        """Return a weight's state, new moments with the shape of `like` if it has none."""
        state: dict[str, Any] = self.state[weight]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=weight.device)
            state["exp_avg"] = torch.zeros_like(like)
            state["exp_avg_sq"] = torch.zeros_like(like)
        if state["exp_avg"].shape != like.shape:  # which the fused update does not notice
            raise ArgumentError(
                f"state_dict: has moments of shape {tuple(state['exp_avg'].shape)}, "
                f"expected {tuple(like.shape)}"
            )
        return state

    def _update(
        self, group: dict[str, Any], weight: Tensor, gradient: Tensor, state: dict[str, Any]
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
            grad_scale=getattr(self, "grad_scale", None),
            found_inf=getattr(self, "found_inf", None),
            amsgrad=False,
            maximize=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
        )


def _check_settings(group: dict[str, Any]) -> None:
    """Refuse a parameter group that the update of mixed weights would not respect."""
    for name in _LEFT_OUT:
        if group.get(name):
            raise ArgumentError(f"{name}: MixoutAdamW does not have this setting of AdamW")


def _check_active(model: nn.Module, layers: dict[str, MixoutLayer]) -> None:
    """Refuse a model in which a step cannot be limited to active slices."""
    if not layers:
        raise ArgumentError(
            "scope: 'active' needs a model with mixout; call inject_mixout before you create the "
            "optimizer, or use 'all'"
        )
    uses = Counter(id(p) for module in model.modules() for p in module._parameters.values())
    for name, layer in layers.items():
        if uses[id(layer.weight)] > 1:
            raise ArgumentError(
                f"scope: 'active' cannot train {name!r}, because another layer has the same "
                "weight; use 'all'"
            )


def _is_mixed(layer: nn.Module) -> bool:
    """Tell whether a layer is mixed now. It is not after `collapse_mixout`, nor at p = 0."""
    return isinstance(layer, MixoutLayer) and layer.p > 0.0


def _require_held(layer: MixoutLayer) -> Tensor:
    """Return a layer's held mask."""
    mask = getattr(layer, "held_mask", None)  # which a collapsed layer does not have
    if not isinstance(mask, Tensor):
        raise ArgumentError(
            "scope: 'active' needs masks that are held for an update; call MaskSchedule.step() "
            "before the update's first forward pass, or use scope='all'"
        )
    return mask
