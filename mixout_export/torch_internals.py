"""The parts of PyTorch that this package uses although PyTorch does not document them.

`tests/test_torch_internals.py` says which of them is missing if a new version of PyTorch removes
one. The documented ways were measured and are slower: see "Private parts of PyTorch" in
`docs/design.md`.
"""

import torch
from torch.autograd import forward_ad


def is_transformed() -> bool:
    """Tell whether a transform of `torch.func` (vmap, grad, jvp …) is running."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def computes_forward_gradients() -> bool:
    """Tell whether the code runs inside `torch.autograd.forward_ad.dual_level`."""
    return forward_ad._current_level >= 0
