"""The strategies (arms) that are compared: for each one a model and its training step."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.shapes import Shape
from mixout_export import MixoutConfig, fused, inject_mixout
from mixout_export.config import GRANULARITIES
from mixout_export.fast_linear.gathering import never_gather
from mixout_export.surgery.injection import mixout_layers
from mixout_export.training.optimizer import Attraction, PretrainedDecay


@dataclass(frozen=True)
class Arm:
    """How an arm differs from plain finetuning.

    Attributes:
        dropout: Drop probability in the body.
        p: Mix probability.
        kind: A granularity, "literal" or "left out"; None if nothing is mixed. The last two are for
            linear layers only.
        one_pass: Whether Φ comes from the one-pass kernel, on a GPU.
        half_anchors: Whether anchors are bfloat16 in memory (`--anchor-dtype bfloat16`).
        gathers: Whether the product for the weight's gradient skips dropped neurons.
    """

    dropout: float = 0.0
    p: float = 0.0
    kind: str | None = None
    one_pass: bool = False
    half_anchors: bool = False
    gathers: bool = True


ARMS: dict[str, Arm] = {
    "plain": Arm(),
    "plain again": Arm(),
    "product left out": Arm(kind="left out"),
    "dropout 0.1": Arm(dropout=0.1),
    "wdecay(pre)": Arm(),
    "neuron 0.1": Arm(p=0.1, kind="neuron"),
    "neuron 0.3": Arm(p=0.3, kind="neuron"),
    "neuron 0.5": Arm(p=0.5, kind="neuron"),
    "neuron 0.7": Arm(p=0.7, kind="neuron"),
    "neuron 0.8": Arm(p=0.8, kind="neuron"),
    "neuron 0.9": Arm(p=0.9, kind="neuron"),
    "filter 0.7": Arm(p=0.7, kind="filter"),
    "filter 0.8": Arm(p=0.8, kind="filter"),
    "filter 0.9": Arm(p=0.9, kind="filter"),
    "element 0.7": Arm(p=0.7, kind="element"),
    "element 0.8": Arm(p=0.8, kind="element"),
    "literal 0.7": Arm(p=0.7, kind="literal"),
    "neuron 0.7, whole gradient": Arm(p=0.7, kind="neuron", gathers=False),
    "filter 0.8, whole gradient": Arm(p=0.8, kind="filter", gathers=False),
    "neuron 0.7, one pass": Arm(p=0.7, kind="neuron", one_pass=True),
    "neuron 0.7, one pass, bf16 anchors": Arm(
        p=0.7, kind="neuron", one_pass=True, half_anchors=True
    ),
    "neuron 0.9, one pass, bf16 anchors": Arm(
        p=0.9, kind="neuron", one_pass=True, half_anchors=True
    ),
}


@contextmanager
def _ways_of(arm: Arm) -> Iterator[None]:
    """Compute the mixed layers in the way that an arm asks for."""
    gathers = nullcontext() if arm.gathers else never_gather()
    with gathers, fused.one_pass(arm.one_pass):
        yield


class LiteralLinear(nn.Linear):
    """The paper's equation 4 written out, with a mask of the weight's size, under autograd.

    The public implementations do this: they draw one bit per input neuron, repeat it for all
    outputs, and compute ((I - M) u + M w - p u) / (1 - p).
    """

    p: float
    target: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        mask = self.weight.new_empty(1, self.in_features).bernoulli_(1 - self.p)
        mask = mask.repeat(self.out_features, 1)
        mixed = ((1 - mask) * self.target + mask * self.weight - self.p * self.target) / (
            1 - self.p
        )
        return nn.functional.linear(input, mixed, self.bias)


class _WithoutWeightGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(input, weight)
        return nn.functional.linear(input, weight.to(input.dtype), bias.to(input.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        input, weight = ctx.saved_tensors
        flat = grad.reshape(-1, grad.shape[-1])
        grad_input = (flat @ weight.to(grad.dtype)).view(input.shape)
        return grad_input, torch.zeros_like(weight), flat.sum(0)


class LinearWithoutWeightGradient(nn.Linear):
    """A linear layer that sets its weight's gradient to zero instead of computing it."""

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        kind = input.device.type
        if torch.is_autocast_enabled(kind):
            input = input.to(torch.get_autocast_dtype(kind))
        return _WithoutWeightGradient.apply(input, self.weight, self.bias)  # type: ignore


def _body_linears(model: nn.Module) -> list[nn.Linear]:
    body = model.base_model
    return [m for m in body.modules() if type(m) is nn.Linear]  # type: ignore[union-attr]


def build_model(arm: str, shape: Shape, *, device: str = "cpu") -> nn.Module:
    """Return an arm's model in training mode. All arms start from the same weights."""
    chosen = ARMS[arm]
    kind, p = chosen.kind, chosen.p
    torch.manual_seed(0)
    with torch.device(device):  # a GPU initializes BERT-large in a fraction of a CPU's time
        model = shape.build(chosen.dropout)
    if kind in GRANULARITIES:
        config = MixoutConfig(p, kind, target_modules=shape.targets)  # type: ignore[arg-type]
        inject_mixout(model, config)
        for layer in mixout_layers(model).values():
            if chosen.half_anchors:
                layer.pretrained_weight = layer.pretrained_weight.to(torch.bfloat16)
    elif kind == "left out":
        for layer in _body_linears(model):
            layer.__class__ = LinearWithoutWeightGradient
    elif kind == "literal":
        for layer in _body_linears(model):
            layer.__class__ = LiteralLinear
            layer.p, layer.target = p, layer.weight.detach().clone()  # type: ignore[assignment]
    return model.train()


def build_step(
    arm: str, shape: Shape, *, device: str = "cpu", precision: str = "fp32", compiled: bool = False
) -> Callable[[dict[str, Tensor]], None]:
    """Return a function that does one training step: forward, backward, clipping, AdamW.

    Args:
        arm: One of `ARMS`.
        shape: Sizes of the model.
        device: Device of the model.
        precision: "fp32", or "bf16" for autocast with float32 weights.
        compiled: Whether to compile the model with `torch.compile`.
    """
    model = build_model(arm, shape, device=device)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.01, fused=True)
    decay = PretrainedDecay({}, 0.0)
    if arm == "wdecay(pre)":
        optimizer.param_groups[0]["weight_decay"] = 0.0
        weights = [p.data for p in parameters]
        decay = PretrainedDecay({1.0: Attraction(weights, [w.clone() for w in weights])}, 0.01)
    run = torch.compile(model) if compiled else model

    def step(batch: dict[str, Tensor]) -> None:
        with _ways_of(ARMS[arm]):
            kind = device.partition(":")[0]
            with torch.autocast(kind, torch.bfloat16, enabled=precision == "bf16"):
                loss = run(**batch).loss
            loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        decay.apply(1e-5)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step
