"""Layers as large as real ones, which gather the active neurons, against the formula."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from rank_runs import run_two_ranks
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mixout_export import MixoutConv1D, MixoutLinear
from mixout_export.fast_linear.gathering import ActiveNeurons
from mixout_export.functional import draw_mask

INPUTS, OUTPUTS, BATCH, TOKENS = 768, 3072, 4, 128

#: How far a result may be off, relative to the largest value.
TOLERANCE = {None: 1e-5, torch.bfloat16: 2e-2}

Call = Callable[[nn.Module, Tensor], Tensor]


def make_layer(kind: str, p: float) -> nn.Module:
    torch.manual_seed(0)
    sizes = (OUTPUTS, INPUTS) if kind == "conv1d" else (INPUTS, OUTPUTS)
    layer = {"conv1d": MixoutConv1D, "linear": MixoutLinear}[kind](*sizes, p=p)
    with torch.no_grad():
        layer.weight.add_(0.1 * torch.randn_like(layer.weight))
        layer.bias.copy_(torch.randn(OUTPUTS))
    return layer


def spelled_out(layer: nn.Module, inputs: Tensor) -> Tensor:
    """Compute the product as the paper's formula says, under the mask that the layer draws."""
    w, u, p = layer.weight, layer.pretrained_weight, layer.p
    mask = draw_mask(w, p, granularity="neuron", input_dim=layer.input_dim)
    phi = u + (mask / (1 - p)) * (w - u)
    return F.linear(inputs, phi if layer.input_dim == 1 else phi.t(), layer.bias)


def accumulate(
    layer: nn.Module, compute: Call, call: Call, autocast: torch.dtype | None
) -> list[Tensor]:
    """Return outputs, input gradients and the parameters' gradients over two batches.

    Args:
        layer: The layer that holds the parameters.
        compute: Maps the layer and an input to its output.
        call: Calls a function of the input, for instance under checkpointing.
        autocast: The dtype of autocast, None to leave it disabled.
    """
    layer.zero_grad()
    generator = torch.Generator().manual_seed(1)
    results = []
    for seed in (5, 6):
        inputs = torch.randn(BATCH, TOKENS, INPUTS, generator=generator).requires_grad_()
        upstream = torch.randn(BATCH, TOKENS, OUTPUTS, generator=generator)
        torch.manual_seed(seed)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast is not None):
            # Changed in place, as Longformer does with its queries.
            output = call(lambda value: compute(layer, value).div_(8.0), inputs)
        output.backward(upstream.to(output.dtype))
        results += [output.detach(), inputs.grad]
    return [*results, layer.weight.grad, layer.bias.grad]


@pytest.fixture
def gathered(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Note how many columns each call of `gather` returns; a test must gather at least once."""
    columns: list[int] = []
    gather = ActiveNeurons.gather

    def noted(self: ActiveNeurons, input: Tensor) -> Tensor:
        columns.append(self.columns)
        return gather(self, input)

    monkeypatch.setattr(ActiveNeurons, "gather", noted)
    yield columns
    assert columns
    assert max(columns) < INPUTS


CALLS: dict[str, Call] = {
    "plain": lambda function, value: function(value),
    "re-entrant": lambda function, value: checkpoint(function, value, use_reentrant=True),
    "non-re-entrant": lambda function, value: checkpoint(function, value, use_reentrant=False),
}


@pytest.mark.usefixtures("gathered")
@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    ("kind", "p", "calls"),
    [
        ("linear", 0.7, "plain"),
        ("linear", 0.7, "re-entrant"),
        ("linear", 0.7, "non-re-entrant"),
        ("linear", 0.3, "non-re-entrant"),  # more than half of the columns: the input is kept
        ("conv1d", 0.7, "plain"),
    ],
)
def test_two_batches_are_the_formula(
    kind: str, p: float, calls: str, autocast: torch.dtype | None
) -> None:
    layer = make_layer(kind, p)
    fast = accumulate(layer, lambda own, value: own(value), CALLS[calls], autocast)
    slow = accumulate(layer, spelled_out, CALLS["plain"], autocast)
    for got, wanted in zip(fast, slow, strict=True):
        assert got.dtype == wanted.dtype
        tolerance = TOLERANCE[autocast] * wanted.abs().max().item()
        torch.testing.assert_close(got, wanted, rtol=0.0, atol=tolerance)
    assert torch.equal(fast[-2] == 0, slow[-2] == 0)  # the columns that both masks drop


def test_two_ranks_are_the_mean_of_the_formula(tmp_path: Path) -> None:
    """Each rank computes what both ranks' gradients should be, and compares their mean."""
    script = f"""
    sys.path.insert(0, {str(Path(__file__).parent)!r})
    from test_gathering_sizes import BATCH, INPUTS, OUTPUTS, TOKENS, make_layer, spelled_out

    def step(network, of_rank, autocast):
        generator = torch.Generator().manual_seed(of_rank)
        inputs = torch.randn(BATCH // 2, TOKENS, INPUTS, generator=generator)
        torch.manual_seed(10 + of_rank)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output = network(inputs)
        output.float().square().mean().backward()

    for autocast, tolerance in ((False, 1e-5), (True, 2e-2)):
        layer = make_layer("linear", 0.7)
        ddp = DistributedDataParallel(layer)
        step(ddp, rank, autocast)
        found = [p.grad.clone() for p in layer.parameters()]
        layer.zero_grad()
        for of_rank in range(2):
            step(lambda value: spelled_out(layer, value), of_rank, autocast)
        for got, parameter in zip(found, layer.parameters(), strict=True):
            wanted = parameter.grad / 2
            atol = tolerance * wanted.abs().max().item()
            torch.testing.assert_close(got, wanted, rtol=0.0, atol=atol)
    print("all holds")
    """
    assert run_two_ranks(script, tmp_path) == ["all holds\n"] * 2
