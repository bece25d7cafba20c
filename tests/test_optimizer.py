import copy
import math

import pytest
import torch
from torch import Tensor, nn

from mixout_export.errors import ArgumentError
from mixout_export.training.optimizer import (
    build_optimizer,
    build_pretrained_decay,
    build_scheduler,
)
from mixout_export.training.options import TrainOptions

LR, RATE = 0.1, 0.5


class Small(nn.Module):
    """A body and a head, each kind of parameter once."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 3)
        self.norm = nn.LayerNorm(3)
        self.classifier = nn.Linear(3, 2)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(generator=generator)


FRESH = frozenset({"classifier.weight", "classifier.bias"})


def decays(model: nn.Module, options: TrainOptions) -> dict[str, float]:
    optimizer = build_optimizer(model, options, fresh=FRESH)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: group["weight_decay"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def adam_step(w: Tensor, gradient: Tensor, m: Tensor, v: Tensor, t: int, lr: float) -> Tensor:
    """Adam with bias correction, in the words of the paper (Kingma, Ba 2015)."""
    m.mul_(0.9).add_(0.1 * gradient)
    v.mul_(0.999).add_(0.001 * gradient**2)
    return w - lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)


def test_an_error_about_the_scope_names_the_option() -> None:
    options = TrainOptions(resample_every=2, optimizer_scope="active")
    with pytest.raises(
        ArgumentError, match=r"^optimizer_scope: 'active' needs a model with mixout"
    ):
        build_optimizer(Small(), options, fresh=FRESH)


def test_decay_toward_zero_leaves_out_biases_and_normalization() -> None:
    options = TrainOptions(weight_decay=RATE)
    assert decays(Small(), options) == {
        "body.weight": RATE,
        "body.bias": 0.0,
        "norm.weight": 0.0,
        "norm.bias": 0.0,
        "classifier.weight": RATE,
        "classifier.bias": 0.0,
    }


def test_toward_pretrained_only_the_head_decays_toward_zero() -> None:
    options = TrainOptions(weight_decay=RATE, head_weight_decay=0.25, decay_toward="pretrained")
    found = decays(Small(), options)
    assert found.pop("classifier.weight") == 0.25
    assert set(found.values()) == {0.0}
    assert len(found) == 5


def test_frozen_parameters_are_not_optimized() -> None:
    model = Small()
    model.body.weight.requires_grad_(False)
    assert "body.weight" not in decays(model, TrainOptions())


@pytest.mark.parametrize("head_decay", [None, 0.0, 0.25])
def test_decay_toward_zero_is_decoupled_with_bias_correction(head_decay: float | None) -> None:
    model = Small()
    options = TrainOptions(lr=LR, weight_decay=RATE, head_weight_decay=head_decay)
    optimizer = build_optimizer(model, options, fresh=FRESH)
    expected = {n: p.detach().double().clone() for n, p in model.named_parameters()}
    moments = {n: (torch.zeros_like(w), torch.zeros_like(w)) for n, w in expected.items()}
    for t in (1, 2, 3):
        gradients(model, seed=t)
        for name, parameter in model.named_parameters():
            rate = RATE if name == "body.weight" else 0.0
            if name == "classifier.weight":
                rate = RATE if head_decay is None else head_decay
            w = expected[name] * (1 - LR * rate)
            expected[name] = adam_step(w, parameter.grad.double(), *moments[name], t, LR)
        optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.double(), expected[name], rtol=1e-5, atol=1e-6)


def test_decay_toward_pretrained_is_decoupled_and_precedes_adam() -> None:
    model = Small()
    options = TrainOptions(lr=LR, weight_decay=RATE, decay_toward="pretrained")
    pretrained = {n: torch.full_like(p, 3.0) for n, p in model.named_parameters() if n not in FRESH}
    optimizer = build_optimizer(model, options, fresh=FRESH)
    decay = build_pretrained_decay(model, pretrained, options, fresh=FRESH)
    expected = {n: p.detach().double().clone() for n, p in model.named_parameters()}
    moments = {n: (torch.zeros_like(w), torch.zeros_like(w)) for n, w in expected.items()}
    for t in (1, 2, 3):
        gradients(model, seed=t)
        for name, parameter in model.named_parameters():
            w = expected[name]
            if name in FRESH:  # the head decays toward zero, its bias not at all
                w = w * (1 - LR * RATE) if name == "classifier.weight" else w
            else:
                w = w - LR * RATE * (w - 3.0)
            expected[name] = adam_step(w, parameter.grad.double(), *moments[name], t, LR)
        decay.apply(LR)
        optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.double(), expected[name], rtol=1e-5, atol=1e-6)


def test_decay_at_the_pretrained_weights_moves_nothing() -> None:
    model = Small()
    before = copy.deepcopy(model.state_dict())
    decay = build_pretrained_decay(model, before, TrainOptions(weight_decay=RATE), fresh=FRESH)
    decay.apply(LR)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_pretrained_values_may_be_of_another_dtype() -> None:
    model = Small()
    pretrained = {"body.weight": torch.zeros(3, 3, dtype=torch.bfloat16)}
    before = model.body.weight.detach().clone()
    options = TrainOptions(weight_decay=RATE)
    build_pretrained_decay(model, pretrained, options, fresh=FRESH).apply(LR)
    torch.testing.assert_close(model.body.weight.detach(), before * (1 - LR * RATE))


def rates(scheduler: str, warmup_ratio: float, steps: int) -> list[float]:
    options = TrainOptions(lr=1.0, scheduler=scheduler, warmup_ratio=warmup_ratio)
    optimizer = build_optimizer(Small(), options, fresh=FRESH)
    schedule = build_scheduler(optimizer, options, steps=steps)
    found = []
    for _ in range(steps):
        found.append(float(schedule.get_last_lr()[0]))
        optimizer.step()
        schedule.step()
    return found


def test_linear_schedule_rises_and_falls_to_zero() -> None:
    expected = [0.0, 0.5, *((10 - t) / 8 for t in range(2, 10))]
    assert rates("linear", 0.2, 10) == pytest.approx(expected)


def test_linear_schedule_without_warm_up_starts_at_the_peak() -> None:
    assert rates("linear", 0.0, 4) == pytest.approx([1.0, 0.75, 0.5, 0.25])


def test_warm_up_is_not_lengthened_by_rounding() -> None:
    assert math.ceil(0.07 * 100) == 8  # the trap: 0.07 * 100 is 7.000000000000001
    assert rates("linear", 0.07, 100)[7] == pytest.approx(1.0)


def test_cosine_schedule_is_half_way_down_in_the_middle() -> None:
    assert rates("cosine", 0.0, 10)[5] == pytest.approx(0.5)
    assert rates("constant", 0.5, 10) == [1.0] * 10
    assert rates("constant_with_warmup", 0.5, 10)[5:] == [1.0] * 5
