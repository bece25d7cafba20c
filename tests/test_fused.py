"""The one-pass kernel against the plain operations, on a CPU through Triton's interpreter."""

import importlib.util
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from mixout_export import MixoutLinear, fused
from mixout_export.fast_linear.linear import needs_plain_ops
from mixout_export.functional import coefficients, draw_mask, mix_by

#: Triton decides when a kernel is defined whether it is interpreted, so this runs on its own.
_SCRIPT = """
import itertools, json, torch
from mixout_export.fused import run_kernel
from mixout_export.functional import coefficients, draw_mask

f32, bf16, f16 = torch.float32, torch.bfloat16, torch.float16
shapes = [(40, 24), (7, 1), (1, 7), (1, 1), (100, 131)]
dtypes = [(f32, f32, f32), (f32, bf16, bf16), (f32, f32, bf16), (bf16, bf16, bf16), (f16, f16, f16)]
torch.manual_seed(0)
found = []
for shape, dim, (of_weight, of_anchor, of_mixed) in itertools.product(shapes, [0, 1], dtypes):
    weight, anchor = torch.randn(shape).to(of_weight), torch.randn(shape).to(of_anchor)
    mask = draw_mask(weight, 0.7, granularity="neuron", input_dim=dim)
    factors = coefficients(mask, of_weight, 1.0 - 0.7)
    got = run_kernel(of_mixed, factors, weight, anchor, 0.7).double()
    away = (weight.double() - anchor.double()) / 0.3
    wanted = anchor.double() + mask * away
    error = ((got - wanted).abs() / (anchor.double().abs() + away.abs())).max().item()
    rounded = anchor.to(of_mixed).double()
    exact = torch.equal(torch.where(mask, rounded, got), rounded)
    found.append((shape, dim, str(of_mixed), error / torch.finfo(of_mixed).eps, exact))
print(json.dumps(found))
"""


@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton comes with CUDA builds of PyTorch"
)
def test_the_kernel_is_the_formula() -> None:
    run = subprocess.run(
        [sys.executable, "-c", _SCRIPT],
        env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(run.stdout)
    assert len(found) == 50
    for *case, error, dropped_are_pretrained in found:
        # In float32 four operations round by half an eps each. The interpreter truncates casts to
        # bfloat16, an error of a whole eps; a GPU rounds them, which `python -m gpu` checks.
        assert error <= (2.0 if case[2] == "torch.float32" else 1.0), case
        assert dropped_are_pretrained or case[2] == "torch.bfloat16", case


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """Replace the kernel by the plain operations on any device, and note each call's dtype."""
    seen: list[torch.dtype] = []

    def instead(dtype, factors, weight, pretrained_weight, p):
        seen.append(dtype)
        return mix_by(factors, weight, pretrained_weight, 1.0 - p).to(dtype)

    monkeypatch.setattr(fused, "kernel_applies", lambda *_: not torch.is_grad_enabled())
    monkeypatch.setattr(fused, "run_kernel", instead)
    return seen


def step(layer: MixoutLinear) -> list[torch.Tensor]:
    layer.zero_grad()
    inputs = torch.randn(512, 256, generator=torch.Generator().manual_seed(1)).requires_grad_()
    torch.manual_seed(3)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(inputs)
    output.sum().backward()
    return [output.detach(), inputs.grad, layer.weight.grad]


def test_both_passes_use_the_kernel_if_it_is_on(calls: list[torch.dtype]) -> None:
    torch.manual_seed(0)
    layer = MixoutLinear(256, 192, p=0.7)
    torch.nn.init.normal_(layer.weight)
    plain = step(layer)
    assert calls == []
    with fused.one_pass() as kernel:
        quick = step(layer)
    assert kernel.calls == 2
    assert calls == [torch.bfloat16, torch.bfloat16]  # Φ comes in the dtype of the product
    assert all(torch.equal(a, b) for a, b in zip(plain, quick, strict=True))
    step(layer)
    assert len(calls) == kernel.calls == 2


def test_autograd_is_never_left_behind() -> None:
    """A second derivative goes through Φ, which the kernel would hide from autograd."""
    weight = torch.randn(8, 8, requires_grad=True)
    factors = coefficients(draw_mask(weight, 0.5, granularity="neuron"), weight.dtype, 0.5)
    with fused.one_pass():
        mixed = fused.mixed_in(torch.float32, factors, weight, torch.zeros(8, 8), 0.5)
    assert mixed.requires_grad


def test_masks_are_drawn_on_the_gpu_while_a_graph_is_captured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class OnGpu(torch.Tensor):
        is_cuda = True

    weight = torch.ones(2, 2).as_subclass(OnGpu).requires_grad_()
    asked = []
    monkeypatch.setattr(
        torch.cuda, "is_current_stream_capturing", lambda: asked.append(True) or True
    )
    assert needs_plain_ops(weight, torch.ones(1, 2))
    assert asked


def test_a_call_in_inference_mode_leaves_memory_that_training_can_use() -> None:
    layer = MixoutLinear(5, 3)
    layer.p = 0.5
    with torch.inference_mode():
        layer(torch.randn(2, 5))
    layer(torch.randn(2, 5)).sum().backward()
    assert layer.weight.grad is not None


@torch.no_grad()
def test_a_product_in_another_thread_leaves_the_mixed_weight_alone() -> None:
    factors, weight, anchor = torch.ones(1, 8), torch.randn(8, 8), torch.zeros(8, 8)
    mixed = fused.mixed_in(torch.float32, factors, weight, anchor, 0.5)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(
            torch.no_grad()(fused.mixed_in), torch.float32, factors, -weight, anchor, 0.5
        ).result()
    assert torch.equal(mixed, weight)
