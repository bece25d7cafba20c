"""`MixoutAdamW` where models and loops do what PyTorch's AdamW allows, and where they may not."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from test_adamw import RATES, batch, clipping, mixed, network, train
from torch import Tensor, distributed, nn
from torch.optim import AdamW, Optimizer

from mixout_export import (
    MaskSchedule,
    MixoutAdamW,
    MixoutConfig,
    collapse_mixout,
    inject_mixout,
)
from mixout_export.errors import ArgumentError

Loop = Callable[[nn.Module, Optimizer], object]


def make_optimizers(make: Callable[[], nn.Module]) -> list[tuple[nn.Module, Optimizer]]:
    """Return a model with MixoutAdamW, and the same one with AdamW."""
    ours, plain = make(), make()
    fused = AdamW(plain.parameters(), **RATES, fused=True)
    return [(ours, MixoutAdamW(ours, **RATES)), (plain, fused)]


def assert_same(make: Callable[[], nn.Module], loop: Loop) -> None:
    """Run a loop with both optimizers and compare the weights."""
    pairs = make_optimizers(make)
    for model, optimizer in pairs:
        torch.manual_seed(3)
        loop(model, optimizer)
    (ours, _), (plain, _) = pairs
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, msg=name)


def backward(model: nn.Module, x: Tensor | None = None) -> None:
    model(batch() if x is None else x).square().mean().backward()


def test_gradients_are_dropped_with_those_of_the_model() -> None:
    def loop(model: nn.Module, optimizer: Optimizer) -> None:
        for number in range(4):
            backward(model)
            if number != 1:  # a step that a loop leaves out
                optimizer.step()
            model.zero_grad()

    assert_same(network, loop)


def test_gradients_may_be_set_to_zero_by_the_optimizer() -> None:
    def loop(model: nn.Module, optimizer: Optimizer) -> None:
        for number in range(4):
            if number != 2:
                backward(model)
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)

    assert_same(network, loop)


@pytest.mark.parametrize("batches", [3, 4])
def test_clipping_gets_the_norm_of_all_batches(batches: int) -> None:
    (ours, optimizer), (plain, reference) = make_optimizers(network)
    assert isinstance(optimizer, MixoutAdamW)
    norms = train(ours, optimizer, optimizer.clip_grad_norm_, updates=3, batches=batches)
    expected = train(plain, reference, clipping(plain), updates=3, batches=batches)
    assert norms == pytest.approx(expected)


def test_nothing_to_clip() -> None:
    assert MixoutAdamW(network()).clip_grad_norm_(1.0) == 0.0


def tied(*, target_modules: str = "0,2") -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 12)).double()
    model[2].weight = model[0].weight
    inject_mixout(model, MixoutConfig(p=0.5, target_modules=target_modules))
    return model.train()


@pytest.mark.parametrize("targets", ["0,2", "0"])
def test_layers_may_share_a_weight(targets: str) -> None:
    def loop(model: nn.Module, optimizer: Optimizer) -> None:
        norms = train(model, optimizer, clip_of(model, optimizer), updates=3, limit=0.01)
        results.append(norms)

    results: list[list[float]] = []
    assert_same(lambda: tied(target_modules=targets), loop)
    assert results[0] == pytest.approx(results[1])


def clip_of(model: nn.Module, optimizer: Optimizer) -> Callable[[float], Tensor]:
    return optimizer.clip_grad_norm_ if isinstance(optimizer, MixoutAdamW) else clipping(model)


@pytest.mark.parametrize("scope", ["all", "active"])
@pytest.mark.parametrize("granularity", ["neuron", "filter"])
def test_weights_in_another_memory_format(granularity: str, scope: str) -> None:
    def make(memory_format: torch.memory_format) -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(6, 8, 3), nn.Tanh(), nn.Conv2d(8, 4, 3)).double()
        inject_mixout(model, MixoutConfig(p=0.5, granularity=granularity, target_modules="0,2"))
        return model.to(memory_format=memory_format).train()

    x = torch.randn(2, 6, 7, 7, dtype=torch.float64)
    models = [make(torch.channels_last), make(torch.contiguous_format)]
    for model in models:
        optimizer = MixoutAdamW(model, **RATES, scope=scope)
        schedule = MaskSchedule(model, resample_every=2)
        torch.manual_seed(2)
        for _ in range(3):
            schedule.step()
            backward(model, x)
            optimizer.step()
            optimizer.zero_grad()
    for ours, plain in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(ours, plain)


def test_a_transposed_weight() -> None:
    def make() -> nn.Module:
        model = network()
        model[0].weight = nn.Parameter(model[0].weight.detach().t().contiguous().t())
        return model

    assert_same(make, lambda m, o: train(m, o, clip_of(m, o), updates=3))


@pytest.mark.parametrize("pending", [False, True])
def test_collapsed_layers_are_still_trained(pending: bool) -> None:
    def loop(model: nn.Module, optimizer: Optimizer) -> None:
        backward(model)
        if not pending:
            optimizer.step()
            optimizer.zero_grad()
        collapse_mixout(model)
        backward(model)
        optimizer.step()

    assert_same(network, loop)


def test_p_may_change_from_and_to_0() -> None:
    def loop(model: nn.Module, optimizer: Optimizer) -> None:
        for p in (0.0, 0.5, 0.0, 0.7):
            for layer in mixed(model):
                layer.p = p
            backward(model)
            optimizer.step()
            model.zero_grad()

    assert_same(lambda: network(p=0.0), loop)


def test_scope_active_starts_when_p_rises() -> None:
    model = network(p=0.0)
    optimizer, schedule = MixoutAdamW(model, **RATES, scope="active"), MaskSchedule(model)
    for p in (0.0, 0.5, 0.0):
        for layer in mixed(model):
            layer.p = p
        train(model, optimizer, optimizer.clip_grad_norm_, updates=1, begin=schedule.step)
        for layer in mixed(model):
            moments = optimizer.state[layer.weight]["exp_avg"]
            assert (moments.shape == layer.weight.shape) == (p == 0.0)


def test_hooks_on_a_weight_get_its_dense_gradient() -> None:
    models = [network(), network()]
    optimizer = MixoutAdamW(models[0], **RATES)
    for model in models:
        model[0].weight.register_hook(lambda gradient: 2 * gradient)
        torch.manual_seed(1)
        backward(model)
    assert torch.equal(models[0][0].weight.grad, models[1][0].weight.grad)
    del optimizer


def test_hooks_on_a_step_run_once() -> None:
    AdamW([nn.Parameter(torch.zeros(1))])  # which wraps the step of its class
    model, calls = network(), []
    optimizer = MixoutAdamW(model, **RATES)
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    backward(model)
    optimizer.step()
    assert calls == [1]


def test_two_optimizers_of_one_weight_both_see_its_gradient() -> None:
    def make_two(model: nn.Module, optimizer: Optimizer) -> None:
        second = type(optimizer)(
            *((model,) if isinstance(optimizer, MixoutAdamW) else (model.parameters(),)),
            **RATES,
        )
        for _ in range(3):
            backward(model)
            for each in (optimizer, second):
                each.step()
            optimizer.zero_grad()

    assert_same(network, make_two)


def test_added_groups_have_compact_gradients() -> None:
    model = network()
    optimizer = MixoutAdamW(model, [model[0].weight], scope="active")
    optimizer.add_param_group({"params": [model[2].weight]})
    MaskSchedule(model).step()
    backward(model)
    assert model[2].weight.grad.is_sparse


def test_weights_frozen_after_the_forward_pass() -> None:
    model = network()
    optimizer = MixoutAdamW(model, **RATES)
    loss = model(batch()).sum()
    model[0].weight.requires_grad_(False)
    loss.backward()
    del optimizer


def other_readers() -> dict[str, Callable[[nn.Module], object]]:
    return {
        "clipping": lambda model: nn.utils.clip_grad_norm_(model.parameters(), 0.1),
        "AdamW": lambda model: AdamW(model.parameters()).step(),
    }


@pytest.mark.parametrize("reader", list(other_readers()))
def test_code_that_needs_dense_gradients_fails(reader: str) -> None:
    model = network()
    optimizer = MixoutAdamW(model, **RATES)
    backward(model)
    with pytest.raises(RuntimeError, match=r"[Ss]parse"):
        other_readers()[reader](model)
    del optimizer


def test_changes_of_the_placeholder_are_refused() -> None:
    model = network()
    optimizer = MixoutAdamW(model, **RATES)
    backward(model)
    for parameter in model.parameters():
        parameter.grad.div_(2)
    with pytest.raises(ArgumentError, match="gradient of a mixed weight was changed"):
        optimizer.step()


def test_a_loss_scaler_must_see_all_gradients() -> None:
    model = network(torch.float32)
    optimizer = MixoutAdamW(model, **RATES)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(model(batch(torch.float32)).sum()).backward()
    with pytest.raises(ArgumentError, match="GradScaler"):
        scaler.step(optimizer)


@pytest.mark.parametrize("scope", ["all", "active"])
def test_a_loss_scaler_in_float16(scope: str) -> None:
    model, x = network(torch.float32), batch(torch.float32)
    optimizer = MixoutAdamW(model, **RATES, scope=scope)
    schedule, scaler = MaskSchedule(model), torch.amp.GradScaler("cpu", init_scale=4.0)
    for factor, moves in ((1.0, True), (math.inf, False), (1.0, True)):
        before = [parameter.detach().clone() for parameter in model.parameters()]
        schedule.step()
        with torch.autocast("cpu", torch.float16):
            loss = model(x).square().mean() * factor
        scaler.scale(loss).backward()
        if moves:
            gradient = model[0].weight.grad / scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        for parameter, value in zip(model.parameters(), before, strict=True):
            assert torch.equal(parameter, value) != moves
    moments = optimizer.state[model[0].weight]["exp_avg"]
    if scope == "active":  # the last step's only
        held = mixed(model)[0].held_mask.view(-1).nonzero().view(-1)
        expected = (1 - RATES["betas"][0]) * gradient.index_select(1, held)
        torch.testing.assert_close(moments, expected)


def test_an_optimizer_cannot_be_copied() -> None:
    with pytest.raises(TypeError, match="belongs to its model"):
        copy.deepcopy(MixoutAdamW(network()))


@pytest.mark.parametrize("setting", ["amsgrad", "maximize"])
def test_settings_that_it_does_not_have_are_refused(setting: str) -> None:
    model = network()
    with pytest.raises(ArgumentError, match=setting):
        MixoutAdamW(model, [{"params": [model[0].weight], setting: True}])
    state = AdamW(model.parameters(), **{setting: True}).state_dict()
    with pytest.raises(ArgumentError, match=setting):
        MixoutAdamW(model).load_state_dict(state)


def test_state_of_an_ordinary_adamw_can_be_loaded() -> None:
    model, other = network(), network()
    plain = AdamW(model.parameters(), **RATES)
    train(model, plain, clipping(model), updates=2)
    other.load_state_dict(model.state_dict())
    ours = MixoutAdamW(other, **RATES)
    ours.load_state_dict(copy.deepcopy(plain.state_dict()))
    for each, optimizer in ((model, plain), (other, ours)):
        train(each, optimizer, clip_of(each, optimizer), updates=2)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, msg=name)


def active(model: nn.Module, *, updates: int = 2) -> tuple[MixoutAdamW, MaskSchedule]:
    optimizer = MixoutAdamW(model, **RATES, scope="active")
    schedule = MaskSchedule(model, resample_every=9)
    train(model, optimizer, optimizer.clip_grad_norm_, updates=updates, begin=schedule.step)
    return optimizer, schedule


def test_moments_of_active_columns_do_not_fit_scope_all() -> None:
    optimizer, _ = active(network())
    with pytest.raises(ArgumentError, match="scope='active'"):
        MixoutAdamW(network()).load_state_dict(optimizer.state_dict())


def test_scope_active_resumes_in_half_precision() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(600, 4)).bfloat16()  # bfloat16 has no 257
    inject_mixout(model, MixoutConfig(p=0.5, target_modules="0"))
    schedule = MaskSchedule(model.train(), resample_every=9)
    x, state = torch.randn(2, 600).bfloat16(), None
    for _ in range(2):
        optimizer = MixoutAdamW(model, scope="active")
        if state is not None:
            optimizer.load_state_dict(state)
        schedule.step()
        backward(model, x)
        optimizer.step()
        optimizer.zero_grad()
        state = copy.deepcopy(optimizer.state_dict())
    assert optimizer.state[model[0].weight]["step"] == 2


def test_scope_active_needs_the_mask_of_the_forward_pass() -> None:
    model = network()
    optimizer, schedule = MixoutAdamW(model, scope="active"), MaskSchedule(model)
    schedule.step()
    backward(model)
    schedule.step()
    with pytest.raises(ArgumentError, match="another mask"):
        optimizer.step()


def test_scope_active_needs_one_mask_for_all_batches() -> None:
    model = network()
    optimizer, schedule = MixoutAdamW(model, scope="active"), MaskSchedule(model)
    for _ in range(2):
        schedule.step()
        backward(model)
    with pytest.raises(ArgumentError, match="once for an update"):
        optimizer.step()
    optimizer.zero_grad()
    backward(model.eval())  # which needs no mask, and whose gradient is dense
    optimizer.step()


def test_scope_active_needs_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    optimizer = MixoutAdamW(model, scope="active")
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    with pytest.raises(ArgumentError, match="single process"):
        optimizer.step()


@pytest.mark.parametrize(
    ("model", "message"),
    [(nn.Linear(2, 2), "needs a model with mixout"), (tied(), "'0', because another layer")],
)
def test_scope_active_refuses_models(model: nn.Module, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        MixoutAdamW(model, scope="active")
