"""Each undocumented part of PyTorch that the package uses still exists and still works."""

import torch
from torch import Tensor
from torch.autograd import forward_ad

from mixout_export.torch_internals import computes_forward_gradients, is_transformed

MISSING = "PyTorch {} changed {}; find its successor for mixout_export/torch_internals.py"


def message(name: str) -> str:
    return MISSING.format(torch.__version__, name)


def test_the_stack_of_function_transforms() -> None:
    name = "torch._C._functorch.peek_interpreter_stack"
    assert hasattr(torch._C._functorch, "peek_interpreter_stack"), message(name)
    seen: list[bool] = []

    def watch(x: Tensor) -> Tensor:
        seen.append(is_transformed())
        return x.sum()

    x = torch.ones(3, 2)
    watch(x)
    torch.func.vmap(watch)(x)
    torch.func.grad(watch)(x)
    torch.func.jvp(watch, (x,), (x,))
    watch(x)
    assert seen == [False, True, True, True, False], message(name)


def test_the_level_of_forward_gradients() -> None:
    name = "torch.autograd.forward_ad._current_level"
    assert hasattr(forward_ad, "_current_level"), message(name)
    before = computes_forward_gradients()
    with forward_ad.dual_level():
        within = computes_forward_gradients()
    assert (before, within, computes_forward_gradients()) == (False, True, False), message(name)
