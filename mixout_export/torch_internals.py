"""The parts of PyTorch that this package uses although PyTorch does not document them.

`tests/test_torch_internals.py` says which of them is missing if a new version of PyTorch removes
one. The documented ways were measured and are slower: see "Private parts of PyTorch" in
`docs/design.md`.
"""

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.autograd.graph import get_gradient_edge
from torch.nn.parallel import DistributedDataParallel


def is_transformed() -> bool:
    """Tell whether a transform of `torch.func` (vmap, grad, jvp …) is running."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def computes_forward_gradients() -> bool:
    """Tell whether the code runs inside `torch.autograd.forward_ad.dual_level`."""
    return forward_ad._current_level >= 0


def accumulates_gradient(leaf: torch.Tensor) -> bool:
    """Tell whether the backward pass that is running adds to a leaf's `grad`.

    `torch.autograd.grad`, and `backward` with other inputs, do not.
    """
    if not leaf.requires_grad:  # switched off since the forward pass
        return False
    node = get_gradient_edge(leaf).node
    try:
        return bool(torch._C._will_engine_execute_node(node))
    except RuntimeError:  # what it raises for a leaf whose gradient `torch.autograd.grad` returns
        return False


def has_gradient_hooks(leaf: torch.Tensor) -> bool:
    """Tell whether a leaf has a hook that gets its gradient."""
    return bool(leaf._backward_hooks or leaf._post_accumulate_grad_hooks)


def synchronizing_ddp(model: nn.Module) -> DistributedDataParallel | None:
    """Return the DistributedDataParallel whose training forward is running on a model.

    Args:
        model: The module that DistributedDataParallel may have wrapped.

    Returns:
        The wrapper, if this forward pass runs on all ranks of its process group: gradients are
        enabled and the backward pass will reduce them. None in every other case, which includes
        `no_sync`, the `join` of uneven inputs, and a call of the model without its wrapper.
    """
    running = DistributedDataParallel._active_ddp_module
    if (
        running is None
        or running.module is not model
        or not (model.training and torch.is_grad_enabled())
        or not running.require_backward_grad_sync
        or running._join_config.enable
    ):
        return None
    return running
