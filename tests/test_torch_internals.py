"""Each undocumented part of PyTorch that the package uses still exists and still works."""

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.autograd import forward_ad
from torch.nn.parallel import DistributedDataParallel

from mixout_export.torch_internals import (
    accumulates_gradient,
    computes_forward_gradients,
    is_transformed,
    synchronizing_ddp,
)

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


class _Asks(torch.autograd.Function):
    """Multiplies by a leaf, and notes in the backward pass whether it will get a gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, leaf: Tensor, seen: list[bool]) -> Tensor:
        ctx.leaf, ctx.seen = leaf, seen
        return x * leaf

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        ctx.seen.append(accumulates_gradient(ctx.leaf))
        return grad, grad, None


def test_whether_a_backward_pass_adds_to_a_leaf() -> None:
    name = "torch._C._will_engine_execute_node"
    assert hasattr(torch._C, "_will_engine_execute_node"), message(name)
    x, leaf = (torch.ones(2, requires_grad=True) for _ in range(2))
    seen: list[bool] = []
    loss = _Asks.apply(x, leaf, seen).sum()  # type: ignore[no-untyped-call]
    loss.backward(retain_graph=True)
    torch.autograd.grad(loss, x, retain_graph=True)
    torch.autograd.grad(loss, leaf, retain_graph=True)
    loss.backward(inputs=[leaf], retain_graph=True)
    loss.backward(inputs=[x])
    assert seen == [True, False, False, True, False], message(name)


def test_what_a_running_ddp_says_of_itself() -> None:
    name = "torch.nn.parallel.DistributedDataParallel"
    for part in ("_active_ddp_module", "no_sync"):
        assert hasattr(DistributedDataParallel, part), message(f"{name}.{part}")
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        ddp = DistributedDataParallel(nn.Sequential(nn.Linear(2, 2)))
        for part in ("_join_config", "require_backward_grad_sync", "process_group", "module"):
            assert hasattr(ddp, part), message(f"{name}.{part}")
        seen: list[DistributedDataParallel | None] = []
        ddp.module.register_forward_pre_hook(lambda m, _: seen.append(synchronizing_ddp(m)))
        x = torch.ones(1, 2)
        ddp(x)
        ddp.module(x)
        with ddp.no_sync():
            ddp(x)
        with torch.no_grad():
            ddp(x)
        ddp.eval()(x)
        assert seen == [ddp, None, None, None, None], message(name)
    finally:
        distributed.destroy_process_group()
