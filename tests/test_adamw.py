"""`MixoutAdamW` against PyTorch's AdamW on the dense gradient, and its two scopes."""

import copy
import gc
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from mixout_export import MaskSchedule, MixoutAdamW, MixoutConfig, inject_mixout
from mixout_export.errors import ArgumentError
from mixout_export.fast_linear.gathering import always_gather
from mixout_export.layers import MixoutLayer
from mixout_export.surgery.injection import mixout_layers

RATES = {"lr": 0.01, "betas": (0.8, 0.95), "weight_decay": 0.1}


def network(dtype: torch.dtype = torch.float64, *, p: float = 0.7) -> nn.Sequential:
    """Return mixed layers of both layouts, and a layer that is not mixed."""
    torch.manual_seed(0)
    layers = (nn.Linear(12, 20), nn.Tanh(), Conv1D(18, 20), nn.Tanh(), nn.Linear(18, 3))
    model = nn.Sequential(*layers).to(dtype)
    inject_mixout(model, MixoutConfig(p=p, target_modules="0,2"))
    with torch.no_grad():
        for layer in mixout_layers(model).values():
            layer.pretrained_weight.add_(torch.randn_like(layer.pretrained_weight), alpha=0.1)
    return model.train()


def batch(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(5, 12, dtype=dtype, generator=torch.Generator().manual_seed(1))


def mixed(model: nn.Module) -> list[MixoutLayer]:
    return list(mixout_layers(model).values())


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    clip: Callable[[float], Tensor],
    *,
    updates: int,
    begin: Callable[[], object] = lambda: None,
    batches: int = 1,
    limit: float = float("inf"),
) -> list[float]:
    """Train and return the norms of the gradients."""
    x, norms = batch(next(model.parameters()).dtype), []
    torch.manual_seed(2)
    for _ in range(updates):
        begin()
        for _ in range(batches):
            model(x).square().mean().backward()
        norms.append(float(clip(limit)))
        optimizer.step()
        optimizer.zero_grad()
    return norms


def clipping(model: nn.Module) -> Callable[[float], Tensor]:
    return lambda limit: nn.utils.clip_grad_norm_(model.parameters(), limit)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("batches", [1, 2])
@pytest.mark.parametrize("held", [False, True])
def test_weights_are_those_of_the_dense_optimizer(
    dtype: torch.dtype, batches: int, held: bool
) -> None:
    ours, plain = network(dtype), network(dtype)
    optimizer, reference = (
        MixoutAdamW(ours, **RATES),
        AdamW(plain.parameters(), **RATES, fused=True),
    )
    nothing = lambda: None  # noqa: E731
    with always_gather():
        norms = train(
            ours, optimizer, optimizer.clip_grad_norm_, updates=50, batches=batches,
            begin=MaskSchedule(ours, resample_every=3).step if held else nothing,
        )  # fmt: skip
        expected = train(
            plain, reference, clipping(plain), updates=50, batches=batches,
            begin=MaskSchedule(plain, resample_every=3).step if held else nothing,
        )  # fmt: skip
    for name, value in ours.state_dict().items():
        assert torch.equal(value, plain.state_dict()[name]), name
    torch.testing.assert_close(torch.tensor(norms), torch.tensor(expected))


def test_gradients_are_compact() -> None:
    model = network(p=0.9)
    optimizer = MixoutAdamW(model, **RATES)
    model(batch()).sum().backward()
    for layer in mixed(model):
        compact = layer.compact
        assert layer.weight.grad.is_sparse
        assert compact is not None
        assert compact.slices is not None
        assert compact.slices.values.shape[layer.input_dim] == len(compact.slices.indices)
        assert compact.slices.values.numel() < 0.5 * layer.weight.numel()
    assert model[4].weight.grad is not None  # which is not mixed
    optimizer.zero_grad()
    assert all(layer.compact is not None and layer.compact.slices is None for layer in mixed(model))


def test_clipping_scales_compact_gradients() -> None:
    ours, plain = network(), network()
    optimizer, reference = (
        MixoutAdamW(ours, **RATES),
        AdamW(plain.parameters(), **RATES, fused=True),
    )
    norms = train(ours, optimizer, optimizer.clip_grad_norm_, updates=5, limit=0.01)
    expected = train(plain, reference, clipping(plain), updates=5, limit=0.01)
    assert norms == pytest.approx(expected)
    assert min(norms) > 0.01
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[name])


def dense_gradients(model: nn.Module, backward: Callable[[Tensor], object]) -> list[Tensor | None]:
    torch.manual_seed(3)
    backward(model(batch()).square().sum())
    return [layer.weight.grad for layer in mixed(model)]


def test_gradients_that_are_returned_are_not_kept() -> None:
    model = network()
    x = batch().requires_grad_()
    optimizer = MixoutAdamW(model, **RATES)
    loss = model(x).square().sum()
    torch.autograd.grad(loss, x, retain_graph=True)
    weights = [layer.weight for layer in mixed(model)]
    returned = torch.autograd.grad(loss, weights, retain_graph=True)
    assert all(layer.compact is not None and layer.compact.slices is None for layer in mixed(model))
    loss.backward()
    for layer, gradient in zip(mixed(model), returned, strict=True):
        assert layer.compact is not None
        layer.compact.make_dense()
        assert torch.equal(layer.weight.grad, gradient)
    del optimizer


def test_second_derivatives_stay_dense() -> None:
    model = network()
    optimizer = MixoutAdamW(model, **RATES)
    gradients = dense_gradients(model, lambda loss: loss.backward(create_graph=True))
    assert all(gradient is not None and gradient.requires_grad for gradient in gradients)
    optimizer.step()


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant: bool) -> None:
    ours, plain = network(), network()
    optimizer = MixoutAdamW(ours, **RATES)

    def gradients(model: nn.Module, *, recompute: bool) -> None:
        torch.manual_seed(4)
        x = batch().requires_grad_()
        out = checkpoint(model, x, use_reentrant=reentrant) if recompute else model(x)
        out.square().sum().backward()

    gradients(ours, recompute=True)
    gradients(plain, recompute=False)
    for mine, theirs in zip(mixed(ours), mixed(plain), strict=True):
        assert mine.compact is not None
        assert mine.weight.grad.is_sparse
        mine.compact.make_dense()
        assert torch.equal(mine.weight.grad, theirs.weight.grad)
    del optimizer


def test_without_its_optimizer_a_model_has_dense_gradients() -> None:
    model = network()
    optimizer = MixoutAdamW(model, **RATES)
    copied = copy.deepcopy(model)
    assert all(gradient is not None for gradient in dense_gradients(copied, Tensor.backward))
    del optimizer
    gc.collect()
    assert all(gradient is not None for gradient in dense_gradients(model, Tensor.backward))


def test_float16_stays_dense_for_the_loss_scaler() -> None:
    model = network(torch.float32)
    optimizer = MixoutAdamW(model, **RATES)
    with torch.autocast("cpu", torch.float16):
        loss = model(batch(torch.float32)).sum()
    loss.backward()
    assert all(layer.weight.grad is not None for layer in mixed(model))
    del optimizer


def test_a_shared_layer_adds_up_under_several_masks() -> None:
    ours, plain = network(), network()
    optimizer = MixoutAdamW(ours, **RATES)
    for model in (ours, plain):
        torch.manual_seed(5)
        x = batch()
        (model[0](x) + model[0](2 * x)).sum().backward()
    mine = mixed(ours)[0]
    assert torch.equal(mine.weight.grad, mixed(plain)[0].weight.grad)
    del optimizer


def test_state_can_be_saved_and_loaded() -> None:
    whole, first = network(), network()
    optimizer = MixoutAdamW(whole, **RATES)
    train(whole, optimizer, optimizer.clip_grad_norm_, updates=4)
    optimizer = MixoutAdamW(first, **RATES)
    train(first, optimizer, optimizer.clip_grad_norm_, updates=2)
    second = copy.deepcopy(first)
    resumed = MixoutAdamW(second, **RATES)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    state = torch.get_rng_state()
    for _ in range(2):  # `train` would seed again
        second(batch()).square().mean().backward()
        resumed.step()
        resumed.zero_grad()
    torch.set_rng_state(state)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def active_reference(model: nn.Module, *, updates: int, every: int) -> None:
    """Train as documented, with a new dense AdamW over the active columns for each mask."""
    x = batch()
    torch.manual_seed(2)
    schedule = MaskSchedule(model, resample_every=every)
    rest = AdamW(
        [p for n, p in model.named_parameters() if n not in ("0.weight", "2.weight")],
        **RATES, fused=True,
    )  # fmt: skip
    parts: dict[int, tuple[Tensor, AdamW]] = {}
    for update in range(updates):
        schedule.step()
        model(x).square().mean().backward()
        for layer in mixed(model):
            dim = layer.input_dim
            assert isinstance(layer.held_mask, Tensor)
            active = layer.held_mask.view(-1).nonzero().view(-1)
            if update % every == 0:
                part = layer.weight.detach().index_select(dim, active).requires_grad_()
                parts[id(layer)] = part, AdamW([part], **RATES, fused=True)
            part, optimizer = parts[id(layer)]
            part.grad = layer.weight.grad.index_select(dim, active)
            optimizer.step()
            with torch.no_grad():
                layer.weight.index_copy_(dim, active, part)
        rest.step()
        model.zero_grad()


@pytest.mark.parametrize("plain_path", [False, True])
def test_scope_active_is_an_optimizer_over_the_active_columns(
    plain_path: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if plain_path:
        monkeypatch.setattr(MixoutLayer, "takes_fast_path", lambda *_: False)
    ours, plain = network(), network()
    optimizer = MixoutAdamW(ours, **RATES, scope="active")
    schedule = MaskSchedule(ours, resample_every=3)
    train(ours, optimizer, optimizer.clip_grad_norm_, updates=8, begin=schedule.step)
    active_reference(plain, updates=8, every=3)
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[name], msg=name)


def test_scope_active_keeps_moments_of_active_columns_only() -> None:
    model = network(p=0.8)
    optimizer = MixoutAdamW(model, **RATES, scope="active")
    train(model, optimizer, optimizer.clip_grad_norm_, updates=2, begin=MaskSchedule(model).step)
    for layer in mixed(model):
        moments = optimizer.state[layer.weight]["exp_avg"]
        assert isinstance(layer.held_mask, Tensor)
        assert moments.shape[layer.input_dim] == int(layer.held_mask.sum())


def test_scope_active_resumes_within_a_mask() -> None:
    whole, first = network(), network()
    optimizer, schedule = (
        MixoutAdamW(whole, **RATES, scope="active"),
        MaskSchedule(whole, resample_every=9),
    )
    train(whole, optimizer, optimizer.clip_grad_norm_, updates=4, begin=schedule.step)
    optimizer, schedule = (
        MixoutAdamW(first, **RATES, scope="active"),
        MaskSchedule(first, resample_every=9),
    )
    train(first, optimizer, optimizer.clip_grad_norm_, updates=2, begin=schedule.step)
    second = copy.deepcopy(first)
    resumed, again = (
        MixoutAdamW(second, **RATES, scope="active"),
        MaskSchedule(second, resample_every=9),
    )
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    again.load_state_dict(copy.deepcopy(schedule.state_dict()))
    train(second, resumed, resumed.clip_grad_norm_, updates=2, begin=again.step)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_scope_active_needs_held_masks() -> None:
    model = network()
    optimizer = MixoutAdamW(model, **RATES, scope="active")
    model(batch()).sum().backward()
    with pytest.raises(ArgumentError, match="MaskSchedule"):
        optimizer.step()


def test_scope_active_needs_neuron_masks() -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    inject_mixout(model, MixoutConfig(granularity="element"))
    with pytest.raises(ArgumentError, match=r"scope: .*'0'.*element"):
        MixoutAdamW(model, scope="active")


def test_an_unknown_scope_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"scope: got 'some'"):
        MixoutAdamW(network(), scope="some")  # type: ignore[arg-type]
