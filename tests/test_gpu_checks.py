"""Each check of the GPU kit passes as things are, and fails when what it looks for is wrong."""

import itertools
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from checkpoints import TinyCheckpoints
from torch import Tensor
from training_runs import sentences, write_tsv

from gpu import closed_form, correct
from gpu.closed_form import Case, examine, make_layer
from gpu.kit import Kit
from gpu.results import CannotRun, CheckFailed
from gpu.waits import no_waiting
from mixout_export import MixoutAdamW, fused, layers
from mixout_export.fast_linear import element, masked, neuron
from mixout_export.fast_linear.gathering import ActiveNeurons, never_gather
from mixout_export.layers import MixoutLayer, base, embedding
from mixout_export.masks import PackedMask
from mixout_export.training import loop, snapshots

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _fewer_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two precisions are enough to see whether a check notices; the kit runs them all."""
    both = ((torch.float32, None), (torch.float32, torch.bfloat16))
    monkeypatch.setattr(correct, "_PRECISIONS", both)


@pytest.fixture
def kit(tiny: TinyCheckpoints, tmp_path: Path) -> Kit:
    files = [tmp_path / "train.tsv", tmp_path / "dev.tsv"]
    for seed, (path, count) in enumerate(zip(files, (64, 16), strict=True)):
        write_tsv(path, ("sentence", "label"), sentences(count, seed=seed))
    return Kit(tiny.base(), *files, tmp_path / "work")


def fails(check: Callable[..., object], *arguments: object) -> str:
    with pytest.raises(CheckFailed) as caught:
        check(CPU, *arguments)
    return str(caught.value)


def scaled(function: Callable[..., Tensor], factor: float) -> Callable[..., Tensor]:
    return lambda *given, **named: function(*given, **named) * factor


def test_all_precisions_of_a_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for dtype, autocast in correct._PRECISIONS:
        assert examine(Case("linear", "neuron", dtype, autocast), CPU) < 1.0


def test_products_pass() -> None:
    assert "28 layers" in correct.check_products(CPU).text


@pytest.mark.parametrize(
    ("where", "name"),
    [
        (fused, "mix_by"),  # Φ of neuron masks
        (element, "mix_by"),  # Φ of element masks
        (neuron, "weight_gradient"),
        (element, "weight_gradient"),
        (neuron, "input_gradient"),
        (element, "input_gradient"),
        (embedding, "mix"),
    ],
)
def test_a_wrong_scale_is_noticed(
    where: object, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = getattr(where, name)

    def wrong(*given: object, out: Tensor | None = None, **named: object) -> Tensor:
        result = (
            original(*given, out=out, **named) if out is not None else original(*given, **named)
        )
        return result.mul_(1.05) if out is not None else result * 1.05

    monkeypatch.setattr(where, name, wrong)
    assert "× the tolerance" in fails(correct.check_products)


def few_convolutions(device: torch.device) -> object:
    return correct.check_convolutions(device, ((torch.float32, None),))


def test_convolutions_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    both = ((torch.float32, None), (torch.float32, torch.bfloat16))
    assert "15 convolutions" in correct.check_convolutions(CPU, both).text
    monkeypatch.setattr(masked, "_gather", lambda active, values: values[:, : active.columns])
    assert "the weight's gradient" in fails(few_convolutions)


def test_a_wrong_scale_of_a_convolution_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masked, "mix_by", scaled(masked.mix_by, 1.05))
    assert "× the tolerance" in fails(few_convolutions)


def test_rows_of_a_group_with_bits_of_their_own_are_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draw = layers.MixoutConvolution.draw_mask

    def by_row(self: MixoutLayer, device: str | None = None) -> Tensor:
        mask = draw(self, device)
        return mask if mask.shape[0] == 1 else torch.rand(mask.shape) >= self.p

    monkeypatch.setattr(layers.MixoutConvolution, "draw_mask", by_row)
    assert "the weights of one neuron have different bits" in fails(few_convolutions)


def test_a_wrong_gradient_of_the_bias_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    gather = ActiveNeurons.gather

    def without_ones(self: ActiveNeurons, input: Tensor) -> Tensor:
        gathered = gather(self, input)
        if self.has_ones:
            gathered.select(1, self.count).fill_(0.0)
        return gathered

    monkeypatch.setattr(ActiveNeurons, "gather", without_ones)
    assert "the bias's gradient" in fails(correct.check_products)


def test_a_mask_that_is_not_shared_by_all_outputs_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(MixoutLayer, "takes_fast_path", lambda *_: False)
    draw = base.draw_mask
    monkeypatch.setattr(
        base,
        "draw_mask",
        lambda *given, **named: draw(*given, **{**named, "granularity": "element"}),
    )
    assert "not the same for all outputs" in fails(correct.check_products)


def test_an_embedding_mixed_anew_at_each_occurrence_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def each_occurrence(self: layers.MixoutEmbedding, input: Tensor) -> Tensor:
        return torch.rand(*input.shape, 1) >= self.p

    monkeypatch.setattr(layers.MixoutEmbedding, "_row_mask", each_occurrence)
    assert "two occurrences of one id" in fails(correct.check_products)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let plain operations stand in for the kernel, right or wrong by a factor."""

    def install(factor: float) -> None:
        def instead(dtype, factors, weight, pretrained_weight, p):
            mixed = fused.mix_by(factors, weight, pretrained_weight, 1.0 - p)
            return (mixed * factor).to(dtype)

        monkeypatch.setattr(fused, "kernel_applies", lambda *_: not torch.is_grad_enabled())
        monkeypatch.setattr(fused, "run_kernel", instead)

    return install


def test_the_one_pass_kernel(kernel: Callable[[float], None]) -> None:
    kernel(1.0)
    assert "6 layers" in correct.check_one_pass(CPU).text
    kernel(1.05)
    assert "Φ" in fails(correct.check_one_pass)


def test_a_kernel_that_is_never_used_is_noticed() -> None:
    assert "the kernel ran 0 times" in fails(correct.check_one_pass)


def test_checkpointing_passes() -> None:
    assert "16 layers" in correct.check_checkpointing(CPU).text


@pytest.mark.parametrize("granularity", ["neuron", "element"])
def test_a_mask_that_differs_in_the_recomputation_is_noticed(
    granularity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = torch.Generator().manual_seed(0)  # checkpointing does not restore it

    def draw(*given: object, **_: object) -> Tensor:
        return torch.rand(1, 256, generator=own) >= 0.7

    def draw_packed(shape: torch.Size, p: float) -> PackedMask:
        return PackedMask(int(torch.randint(1 << 62, (), generator=own)), shape, p)

    monkeypatch.setattr(correct, "_GRANULARITIES", (granularity,))
    monkeypatch.setattr(base, "draw_mask", draw)
    monkeypatch.setattr(PackedMask, "draw", draw_packed)
    assert "gradient" in fails(correct.check_checkpointing)


def test_accumulated_batches_pass() -> None:
    assert "8 layers" in correct.check_accumulation(CPU).text


def test_a_batch_that_takes_anothers_mask_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    gradients = neuron._parameter_gradients

    def with_the_first_row(ctx, grad, kept, weight, row):
        seen.append(row)
        return gradients(ctx, grad, kept, weight, seen[0])

    with never_gather():  # the whole product, which is multiplied with the mask
        assert correct.check_accumulation(CPU)
        monkeypatch.setattr(neuron, "_parameter_gradients", with_the_first_row)
        assert "the weight's gradient" in fails(correct.check_accumulation)


def test_compact_gradients_pass() -> None:
    assert "AdamW's bits" in correct.check_compact_gradients(CPU).text


def test_a_compact_gradient_that_is_lost_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MixoutAdamW, "_step_all", lambda *_: None)
    assert "MixoutAdamW, fp32, scope all" in fails(correct.check_compact_gradients)


def test_compiled_layers_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = torch.compile
    quick = lambda layer, **named: whole(layer, **named, backend="aot_eager")  # noqa: E731
    monkeypatch.setattr(torch, "compile", quick)
    assert "2 compiled layers" in correct.check_compiled(CPU).text
    monkeypatch.setattr(base, "mix", scaled(base.mix, 1.05))
    assert "× the tolerance" in fails(correct.check_compiled)


def test_mask_statistics_pass() -> None:
    assert "12 statistics" in correct.check_masks(CPU).text


def test_a_wrong_share_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = base.draw_mask
    monkeypatch.setattr(
        base, "draw_mask", lambda weight, p, **named: draw(weight, p + 0.03, **named)
    )
    assert "the share of kept neurons" in fails(correct.check_masks)


def test_a_mask_that_stays_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = torch.rand(1, 128, generator=torch.Generator().manual_seed(0)) >= 0.7
    monkeypatch.setattr(base, "draw_mask", lambda *_, **__: mask)
    fails(correct.check_masks)


def test_layers_that_share_a_mask_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = itertools.count()

    def draw(*_: object, **__: object) -> Tensor:
        generator = torch.Generator().manual_seed(next(numbers) // 2)
        return torch.rand(1, 128, generator=generator) >= 0.7

    monkeypatch.setattr(base, "draw_mask", draw)
    assert "the correlation of two layers" in fails(correct.check_masks)


def test_no_step_waits() -> None:
    assert "never waited" in correct.check_waits(CPU).text


@pytest.mark.parametrize(
    "wait",
    [
        lambda weight: weight.sum().item(),
        lambda weight: bool((weight > 0).any()),
        lambda weight: weight[weight > 0],
        lambda weight: weight.view(-1)[:9].nonzero(),
        lambda weight: torch.equal(weight, weight),
    ],
    ids=["item", "bool", "by mask", "nonzero", "equal"],
)
def test_a_step_that_waits_is_noticed(
    wait: Callable[[Tensor], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    mixed_in = neuron.mixed_in

    def waits(dtype, factors, weight, *rest):
        wait(weight)
        return mixed_in(dtype, factors, weight, *rest)

    monkeypatch.setattr(neuron, "mixed_in", waits)
    assert "waits for the device" in fails(correct.check_waits)


def test_values_of_the_host_are_no_wait() -> None:
    weight = torch.randn(4)
    with no_waiting(CPU, [weight]):
        assert torch.rand(3).sum().item() >= 0.0
        derived = weight.double().exp()
        with pytest.raises(CheckFailed, match="_local_scalar_dense"):
            derived.sum().item()


def test_checkpoints_pass() -> None:
    assert "bit for bit" in correct.check_checkpoints(CPU).text


def test_an_anchor_on_another_device_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    anchor = MixoutLayer.anchor

    def elsewhere(self: MixoutLayer, *given: object, **named: object) -> None:
        anchor(self, *given, **named)
        self.pretrained_weight = self.pretrained_weight.to("meta")

    monkeypatch.setattr(MixoutLayer, "anchor", elsewhere)
    assert "its anchor is on meta and its weight on cpu" in fails(correct.check_checkpoints)


def test_a_collapse_that_changes_a_weight_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    collapse = correct.collapse_mixout

    def changed(model: torch.nn.Module) -> None:
        collapse(model)
        with torch.no_grad():
            next(model.parameters()).mul_(1.0001)

    monkeypatch.setattr(correct, "collapse_mixout", changed)
    assert "collapse_mixout" in fails(correct.check_checkpoints)


def test_a_checkpoint_that_loses_an_anchor_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    load = correct.load_mixout

    def loses(path: Path) -> torch.nn.Module:
        model = load(path)
        layer = next(m for m in model.modules() if isinstance(m, MixoutLayer))
        layer.pretrained_weight = layer.weight.detach().clone()
        return model

    monkeypatch.setattr(correct, "load_mixout", loses)
    assert "pretrained_weight differs" in fails(correct.check_checkpoints)


def test_a_resumed_run_passes(kit: Kit) -> None:
    assert "the same bytes" in correct.check_resume(CPU, kit).text


def test_a_device_that_does_not_repeat_itself_is_told_from_a_fault_of_resuming(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = itertools.count()
    seed = torch.manual_seed
    monkeypatch.setattr(loop.torch, "manual_seed", lambda _: seed(next(numbers)))
    assert "is not deterministic" in fails(correct.check_resume, kit)


def test_generators_that_are_not_restored_are_noticed(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "restore_rng", lambda *_: None)
    assert "differs between a resumed run" in fails(correct.check_resume, kit)


class ReplayedHere:
    """What a recorder does, without a GPU: the work is done again."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.work = work

    def capture(self) -> None:
        torch.manual_seed(1)

    def replay(self) -> None:
        self.work()


class FrozenMask(ReplayedHere):
    def replay(self) -> None:
        torch.manual_seed(1)
        self.work()


def test_replays_with_one_mask_are_noticed() -> None:
    assert "6 replays" in correct.check_graph_capture(CPU, ReplayedHere).text
    assert "have the same mask" in fails(correct.check_graph_capture, FrozenMask)


@pytest.mark.parametrize(("place", "ours"), [(neuron.__file__, True), ("other.py", False)])
def test_waits_of_train_are_ours_or_not(
    place: str, ours: bool, kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    step = loop.Finetuning._step

    def waits(self, *given, **named):
        if modes and modes[-1] == "warn":
            text = "called a synchronizing CUDA operation"
            warnings.warn_explicit(text, UserWarning, place, 7)
        step(self, *given, **named)

    monkeypatch.setattr(loop.Finetuning, "_step", waits)
    if ours:
        assert f"{place}:7" in fails(correct.check_waits_of_train, kit)
    else:
        found = correct.check_waits_of_train(CPU, kit)
        assert (
            "3 waits in three steps of train, none in our code; they are at other.py:7"
            in found.text
        )
    assert modes[-1] == "default"


def test_what_needs_a_gpu_says_so() -> None:
    gated = [correct.KERNEL_CHECKS[name] for name in (correct.ONE_PASS, "captured CUDA graphs")]
    for check in gated:
        with pytest.raises(CannotRun, match="GPU"):
            check(CPU)
    with pytest.raises(CannotRun, match="needs a GPU"):
        correct.CHECKS_WITH_KIT["train does not wait for the GPU"](CPU, SimpleNamespace())


def test_layers_are_the_same_on_every_device() -> None:
    for kind in ("linear", "conv1d", "embedding"):
        one, two = (make_layer(Case(kind), CPU) for _ in range(2))
        assert torch.equal(one.weight, two.weight)
        assert (one.weight - one.pretrained_weight).abs().min() >= 0.49


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("granularity", ["neuron", "element"])
def test_mixed_weights_that_cancel_are_no_fault(
    granularity: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where u and (w − u)/(1 − p) cancel, Φ is all rounding: as large as u's, not as Φ's."""

    def cancelling(case: Case, device: torch.device) -> MixoutLayer:
        layer = make_layer(case, device)
        with torch.no_grad():
            layer.weight.copy_(layer.pretrained_weight * 0.7)
            layer.bias.zero_()
        return layer

    monkeypatch.setattr(closed_form, "make_layer", cancelling)
    assert examine(Case("linear", granularity, dtype), CPU) < 1.0
