"""The strategies (arms) that are compared: for each one a model and its training step."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.shapes import Shape
from mixout_export import MaskSchedule, MixoutAdamW, MixoutConfig, fused, inject_mixout
from mixout_export.adamw import Scope
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
        compact: Whether gradients stay compact up to the optimizer, as in `train`.
        held: Number of steps for which masks are held; None draws them at each step.
        scope: What a step changes in a mixed weight (`--optimizer-scope`).
    """

    dropout: float = 0.0
    p: float = 0.0
    kind: str | None = None
    one_pass: bool = False
    half_anchors: bool = False
    gathers: bool = True
    compact: bool = True
    held: int | None = None
    scope: Scope = "all"


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
    "neuron 0.7, whole gradient": Arm(p=0.7, kind="neuron", gathers=False, compact=False),
    "neuron 0.7, dense gradient": Arm(p=0.7, kind="neuron", compact=False),
    "neuron 0.9, dense gradient": Arm(p=0.9, kind="neuron", compact=False),
    "neuron 0.9, bf16 anchors": Arm(p=0.9, kind="neuron", half_anchors=True),
    "neuron 0.9, bf16 anchors, held, active": Arm(
        p=0.9, kind="neuron", half_anchors=True, held=100, scope="active"
    ),
    "filter 0.8, whole gradient": Arm(p=0.8, kind="filter", gathers=False, compact=False),
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


@dataclass(frozen=True)
class Step:
    """One training step of an arm: forward, backward, clipping, AdamW.

    Attributes:
        arm: The arm.
        model: Its model.
        run: The model, or its compiled form.
        optimizer: The optimizer.
        masks: The schedule of held masks; None if masks are not held.
        decay: Decay toward the pretrained weights.
        device: Kind of device.
        precision: "fp32", or "bf16" for autocast with float32 weights.
    """

    arm: Arm
    model: nn.Module
    run: Any
    optimizer: Optimizer
    masks: MaskSchedule | None
    decay: PretrainedDecay
    device: str
    precision: str

    def __call__(self, batch: dict[str, Tensor]) -> None:
        """Do the step."""
        self.backward(batch)
        self.update()

    def backward(self, batch: dict[str, Tensor]) -> None:
        """Compute the gradients."""
        if self.masks is not None:
            self.masks.step()
        with _ways_of(self.arm):
            with torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16"):
                loss = self.run(**batch).loss
            loss.backward()

    def update(self) -> None:
        """Clip the gradients and change the weights."""
        if isinstance(self.optimizer, MixoutAdamW):
            self.optimizer.clip_grad_norm_(1.0)
        else:
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.decay.apply(1e-5)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def state_bytes(self) -> dict[str, int]:
        """Return the bytes of weights, anchors, gradients and the optimizer's state as they are."""
        parameters, layers = list(self.model.parameters()), mixout_layers(self.model).values()
        gradients = [p.grad for p in parameters if p.grad is not None and not p.grad.is_sparse]
        for layer in layers:
            if layer.compact is not None and layer.compact.slices is not None:
                gradients += [layer.compact.slices.values, layer.compact.slices.indices]
        state = [v for values in self.optimizer.state.values() for v in values.values()]
        if isinstance(self.optimizer, MixoutAdamW):
            state += self.optimizer.buffers()
        return {
            "weights": _bytes(parameters),
            "anchors": _bytes(layer.pretrained_weight for layer in layers),
            "gradients": _bytes(gradients),
            "optimizer": _bytes(state),
        }


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def build_step(
    arm: str, shape: Shape, *, device: str = "cpu", precision: str = "fp32", compiled: bool = False
) -> Step:
    """Return the training step of an arm.

    Args:
        arm: One of `ARMS`.
        shape: Sizes of the model.
        device: Device of the model.
        precision: "fp32", or "bf16" for autocast with float32 weights.
        compiled: Whether to compile the model with `torch.compile`.
    """
    chosen = ARMS[arm]
    model = build_model(arm, shape, device=device)
    parameters = list(model.parameters())
    optimizer: Optimizer
    if chosen.compact and chosen.kind in GRANULARITIES:
        optimizer = MixoutAdamW(model, lr=1e-5, weight_decay=0.01, scope=chosen.scope)
    else:
        optimizer = torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.01, fused=True)
    decay = PretrainedDecay({}, 0.0)
    if arm == "wdecay(pre)":
        optimizer.param_groups[0]["weight_decay"] = 0.0
        weights = [p.data for p in parameters]
        decay = PretrainedDecay({1.0: Attraction(weights, [w.clone() for w in weights])}, 0.01)
    masks = None if chosen.held is None else MaskSchedule(model, resample_every=chosen.held)
    run = torch.compile(model) if compiled else model
    return Step(chosen, model, run, optimizer, masks, decay, device.partition(":")[0], precision)
