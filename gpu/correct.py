"""Check that mixout gives correct results on this device."""

import copy
import itertools
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import BertConfig, BertForSequenceClassification

from gpu.closed_form import (
    Case,
    P,
    compare_passes,
    examine,
    examine_embedding,
    make_inputs,
    make_layer,
    make_upstream,
)
from gpu.convolutions import check_convolutions
from gpu.kit import Kit
from gpu.results import CannotRun, CheckFailed, Finding
from gpu.waits import no_waiting
from mixout_export import (
    MaskSchedule,
    MixoutAdamW,
    MixoutConfig,
    collapse_mixout,
    fused,
    inject_mixout,
    load_mixout,
    save_mixout,
)
from mixout_export.fast_linear.gathering import always_gather
from mixout_export.layers import MixoutLayer
from mixout_export.surgery.injection import mixout_layers
from mixout_export.training.records import Observer

Check = Callable[[torch.device], Finding]

_GRANULARITIES = ("neuron", "element")
#: The kinds of layers that multiply, with the weight stored either way.
_PRODUCTS = ("linear", "conv1d")
_HALVES = (torch.bfloat16, torch.float16)
#: Weights' dtype, autocast's dtype.
_PRECISIONS = (
    (torch.float32, None),
    *((half, None) for half in _HALVES),
    *((torch.float32, half) for half in _HALVES),
)
#: Allowed deviation of a statistic, in standard errors. One run in a billion exceeds it by chance.
_SIGMAS = 6.0


def _worst(errors: list[float], what: str) -> Finding:
    text = f"{len(errors)} {what}; largest error {max(errors):.2f} × the tolerance"
    return Finding(text, data={"errors": errors})


def check_products(device: torch.device) -> Finding:
    """Forward and gradients of every layer and granularity in every precision."""
    sizes = ({}, {"inputs": 64, "outputs": 48, "rows": 6}, {"rows": 0}, {"bias": False})
    errors = []
    for granularity, (dtype, autocast) in itertools.product(_GRANULARITIES, _PRECISIONS):
        for size in sizes:
            case = Case("linear", granularity, dtype, autocast, **size)  # type: ignore[arg-type]
            errors.append(examine(case, device))
        errors.append(examine(Case("conv1d", granularity, dtype, autocast), device))
        case = Case("embedding", granularity, dtype, autocast)
        errors.append(examine_embedding(case, device))
    for kind, (dtype, autocast) in itertools.product(_PRODUCTS, _PRECISIONS):
        errors.append(examine(Case(kind, "filter", dtype, autocast), device))
    return _worst(errors, "layers compared with the formula in float64")


def check_one_pass(device: torch.device) -> Finding:
    """The one-pass kernel for Φ, where there is one."""
    errors = []
    with fused.one_pass() as kernel:
        for kind, precision in itertools.product(_PRODUCTS, _PRECISIONS):
            errors.append(examine(Case(kind, "neuron", *precision), device))
        for half in _HALVES:
            case = Case("linear", "neuron", torch.float32, half)
            errors.append(examine(case, device, call=_with_half_anchors))
        _check_no_waits(device, autocast=True)
    if kernel.calls < 2 * len(errors):
        raise CheckFailed(
            f"the kernel ran {kernel.calls} times, expected both passes of all layers"
        )
    return _worst(errors, "layers with the one-pass kernel; no training step waits for the GPU")


def _with_half_anchors(layer: MixoutLayer, inputs: Tensor) -> Tensor:
    """Call a layer whose anchors are bfloat16, as `--anchor-dtype bfloat16` makes them."""
    layer.pretrained_weight = layer.pretrained_weight.to(torch.bfloat16)
    return layer(inputs)  # type: ignore[no-any-return]


def check_checkpointing(device: torch.device) -> Finding:
    """The recomputation of both kinds of gradient checkpointing draws the same mask."""

    def call(reentrant: bool) -> Callable[[MixoutLayer, Tensor], Tensor]:
        return lambda layer, inputs: checkpoint(layer, inputs, use_reentrant=reentrant)

    errors = [
        examine(Case(kind, granularity, torch.float32, autocast), device, call=call(reentrant))
        for kind, granularity, autocast, reentrant in itertools.product(
            _PRODUCTS, _GRANULARITIES, (None, torch.bfloat16), (True, False)
        )
    ]
    return _worst(errors, "layers under re-entrant and non-re-entrant checkpointing")


def check_compiled(device: torch.device) -> Finding:
    """`torch.compile` compiles a mixed layer without graph breaks."""
    errors = []
    for granularity in _GRANULARITIES:
        torch.compiler.reset()

        def call(layer: MixoutLayer, inputs: Tensor) -> Tensor:
            return torch.compile(layer, fullgraph=True)(inputs)  # type: ignore[no-any-return]

        errors.append(examine(Case("linear", granularity), device, call=call))
    return _worst(errors, "compiled layers")


def check_accumulation(device: torch.device) -> Finding:
    """Gradients of several batches, each under a mask of its own, add up."""
    errors = [
        examine(Case(kind, granularity, torch.float32, autocast), device, passes=3)
        for kind, granularity, autocast in itertools.product(
            _PRODUCTS, _GRANULARITIES, (None, torch.bfloat16)
        )
    ]
    return _worst(errors, "layers over three accumulated batches")


def _bits(layer: MixoutLayer, eye: Tensor) -> Tensor:
    """Return one call's mask as 0 and 1, shape (out, in)."""
    phi = layer(eye).t()
    scale = 1.0 / (1.0 - P)
    anchor, away = layer.pretrained_weight, layer.weight - layer.pretrained_weight
    return ((phi - anchor).abs() > (phi - anchor - scale * away).abs()).double()


def _check_statistic(what: str, value: float) -> float:
    if not abs(value) <= _SIGMAS:
        raise CheckFailed(f"{what} is off by {value:.1f} standard errors, expected at most 6")
    return abs(value)


@torch.no_grad()
def check_masks(device: torch.device) -> Finding:
    """Masks keep a share 1 − p, are independent, and leave the mean of Φ at w."""
    calls, errors = 400, []
    for granularity in _GRANULARITIES:
        case = Case("linear", granularity, inputs=128, outputs=96, bias=False)
        layer, other = make_layer(case, device), make_layer(case, device)
        eye = torch.eye(case.inputs, device=device)
        torch.manual_seed(11)
        total = torch.zeros_like(layer.weight, dtype=torch.float64)
        drawn, of_other = [], []
        for _ in range(calls):
            bits = _bits(layer, eye)
            # all rows of a neuron mask are equal, and one row of an element mask is enough
            drawn.append(bits[0])
            of_other.append(_bits(other, eye)[0])
            anchor = layer.pretrained_weight.double()
            total += anchor + bits / (1 - P) * (layer.weight.double() - anchor)
        spread = (P * (1 - P)) ** 0.5
        ours, theirs = ((torch.stack(m) - (1 - P)) / spread for m in (drawn, of_other))
        count = ours.numel()
        away = (layer.weight - layer.pretrained_weight).double().abs()
        of_mean = away * (P / (1 - P)) ** 0.5 / calls**0.5
        statistics = {
            "the share of kept neurons": ours.sum() / count**0.5,
            "the largest deviation of one neuron's share": (ours.sum(0) / calls**0.5).abs().max(),
            "the correlation of one step's mask with the next": (ours[1:] * ours[:-1]).sum()
            / (count - case.inputs) ** 0.5,
            "the correlation of neighboring neurons": (ours[:, 1:] * ours[:, :-1]).sum()
            / (count - calls) ** 0.5,
            "the correlation of two layers": (ours * theirs).sum() / count**0.5,
            "the mean of Φ": ((total / calls - layer.weight.double()).abs() / of_mean).max(),
        }
        for what, value in statistics.items():
            errors.append(_check_statistic(f"{granularity} masks: {what}", float(value)))
    text = (
        f"{len(errors)} statistics of {calls} masks; largest deviation {max(errors):.1f} standard "
        "errors (limit 6)"
    )
    return Finding(text, data={"sigmas": errors})


class _AllKinds(nn.Module):
    """A small network with every layer class in every granularity."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        sizes = {"inputs": 256, "outputs": 256, "rows": 0}
        self.table = nn.ModuleList(
            make_layer(Case("embedding", granularity, **sizes), device)  # type: ignore[arg-type]
            for granularity in _GRANULARITIES
        )
        self.layers = nn.ModuleList(
            make_layer(Case(kind, granularity, **sizes), device)  # type: ignore[arg-type]
            for kind, granularity in itertools.product(_PRODUCTS, _GRANULARITIES)
        )

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids (rows,) to a number."""
        states = self.table[0](ids) + self.table[1](ids)
        for layer in self.layers:
            states = torch.tanh(layer(states) / 64)
        return states.square().mean()


def _check_no_waits(device: torch.device, *, autocast: bool) -> None:
    """Do training steps with every kind of layer; raise an error if one waits for the device."""
    network = _AllKinds(device)
    parameters = list(network.parameters())
    optimizer = MixoutAdamW(network, lr=1e-3)
    # as many as a batch of 32 x 128 has: large batches use another code path in the gradient
    ids = torch.randint(0, 256, (4096,), generator=torch.Generator().manual_seed(1)).to(device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            loss = network(ids)
        loss.backward()
        optimizer.clip_grad_norm_(1.0)
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(2):
        step()  # sets up allocators and kernels
    state = [*optimizer.buffers(), *(v for s in optimizer.state.values() for v in s.values())]
    with no_waiting(device, [*parameters, *network.buffers(), *state, ids]):
        for _ in range(3):
            step()


def check_waits(device: torch.device) -> Finding:
    """No training step waits for the device: mask, forward, backward, clipping, AdamW."""
    for autocast in (False, True):
        _check_no_waits(device, autocast=autocast)
    return Finding("in 6 training steps with all kinds of layers, the CPU never waited")


class _StepsOnly(Observer):
    """Watches `train` and lets PyTorch report waits during steps 3 to 5."""

    def __init__(self) -> None:
        self.steps = 0

    def stepped(self, *, step: int, **_: Any) -> None:
        """Turn reports on after two steps, and off again."""
        self.steps = step
        torch.cuda.set_sync_debug_mode("warn" if 2 <= step < 5 else "default")


def check_waits_of_train(device: torch.device, kit: Kit) -> Finding:
    """`train` itself adds no wait; those inside transformers are counted and named."""
    observer = _StepsOnly()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            kit.train("waits", device, observer=observer, max_steps=8, log_every=1000)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [w for w in caught if "synchronizing CUDA operation" in str(w.message)]
    places = sorted({f"{Path(w.filename).name}:{w.lineno}" for w in waits})
    ours = [w for w in waits if "mixout_export" in Path(w.filename).parts]
    if ours:
        raise CheckFailed(
            f"train waits for the device at {ours[0].filename}:{ours[0].lineno} in each step"
        )
    text = f"{len(waits)} waits in three steps of train, none in our code"
    return Finding(text + (f"; they are at {', '.join(places)}" if places else ""))


class Recorder:
    """Captures work in a CUDA graph and replays it."""

    def __init__(self, work: Callable[[], None]) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):  # sets up libraries and allocators, which a capture must not do
                work()
        torch.cuda.current_stream().wait_stream(side)
        self.work, self.graph = work, torch.cuda.CUDAGraph()

    def capture(self) -> None:
        """Capture the work."""
        with torch.cuda.graph(self.graph):
            self.work()

    def replay(self) -> None:
        """Repeat the captured work."""
        self.graph.replay()


def check_graph_capture(
    device: torch.device, recorder: Callable[[Callable[[], None]], Recorder] = Recorder
) -> Finding:
    """A captured CUDA graph draws a new mask at each replay."""
    errors: list[float] = []
    for granularity in _GRANULARITIES:
        case = Case("linear", granularity)
        layer, inputs = make_layer(case, device), make_inputs(case, device)
        upstream, shown = make_upstream(case, device), {}

        def step(layer=layer, inputs=inputs, upstream=upstream, shown=shown) -> None:  # type: ignore
            layer.zero_grad(set_to_none=True)  # so that a replay writes the gradients anew
            inputs.grad = None
            output = layer(inputs)
            output.backward(upstream)
            shown["output"] = output.detach()  # else a warm-up's graph would live until the capture

        recorded = recorder(step)
        recorded.capture()
        outputs = []
        for _ in range(3):
            recorded.replay()
            errors.append(compare_passes(case, layer, inputs, [(shown["output"], upstream)]))
            outputs.append(shown["output"].clone())
        if any(torch.equal(a, b) for a, b in itertools.combinations(outputs, 2)):
            raise CheckFailed(f"{case}: two replays of a captured graph have the same mask")
    return _worst(errors, "replays of captured graphs, each with a mask of its own")


def _random_bert(device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=128, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=128, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return BertForSequenceClassification(config).to(device)


def _move_weights(model: nn.Module) -> None:
    """Move every weight away from its anchor."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))


def _check_anchors(model: nn.Module, device: torch.device) -> None:
    layers: Mapping[str, MixoutLayer] = mixout_layers(model)
    if not layers:
        raise CheckFailed("the model has no mixed layer")
    for name, layer in layers.items():
        if layer.pretrained_weight.device != layer.weight.device:
            raise CheckFailed(
                f"{name}: its anchor is on {layer.pretrained_weight.device} and its weight on "
                f"{layer.weight.device}"
            )
        if layer.weight.device.type != device.type:
            raise CheckFailed(f"{name}: is on {layer.weight.device}, expected {device}")


def _check_equal(what: str, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    if ours.keys() != theirs.keys():
        other = sorted(ours.keys() ^ theirs.keys())[0]
        raise CheckFailed(f"{what}: only one side has {other}")
    for name, value in ours.items():
        if not torch.equal(value.cpu(), theirs[name].cpu()):
            raise CheckFailed(f"{what}: {name} differs")


def check_compact_gradients(device: torch.device) -> Finding:
    """`MixoutAdamW` changes the weights exactly as AdamW does with dense gradients."""
    ids = torch.randint(0, 128, (64, 16), generator=torch.Generator().manual_seed(1)).to(device)
    labels = torch.arange(64, device=device) % 2
    steps, kinds = 10, ((None, "all"), (torch.bfloat16, "all"))
    for autocast, scope in (*kinds, (None, "active")):
        ends = []
        for compact in (True, False):
            model = _random_bert(device).train()
            inject_mixout(model, MixoutConfig(p=P))
            _move_weights(model)
            parameters = list(model.parameters())
            ours = MixoutAdamW(model, lr=1e-3, scope=scope)  # type: ignore[arg-type]
            schedule = MaskSchedule(model, resample_every=4)
            optimizer = ours
            if not compact and scope == "all":
                del ours
                optimizer = torch.optim.AdamW(parameters, lr=1e-3, fused=True)  # type: ignore
            torch.manual_seed(3)
            for _ in range(steps):
                schedule.step()
                half = torch.autocast(device.type, autocast, enabled=autocast is not None)
                with half, always_gather():  # the product that compact gradients come from
                    loss = model(ids, labels=labels).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            ends.append(dict(model.state_dict()))
        _check_equal(f"MixoutAdamW, {autocast or 'fp32'}, scope {scope}", *ends)
    return Finding(
        f"{steps} steps in fp32 and bf16 end with AdamW's bits; {steps} steps with scope active "
        "can be repeated"
    )


def check_checkpoints(device: torch.device) -> Finding:
    """The library's inject, save, load and collapse work with tensors on the device."""
    model = _random_bert(device)
    plain_keys = set(model.state_dict())
    inject_mixout(model, MixoutConfig(p=P))
    _check_anchors(model, device)
    _move_weights(model)
    ids = torch.randint(0, 128, (4, 9), generator=torch.Generator().manual_seed(1)).to(device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "saved"
        save_mixout(model, path)  # type: ignore[arg-type]
        loaded = load_mixout(path).to(device)  # type: ignore[arg-type]
    _check_anchors(loaded, device)
    _check_equal("save_mixout and load_mixout", model.state_dict(), loaded.state_dict())
    moved = copy.deepcopy(loaded).to("cpu").to(device)
    _check_anchors(moved, device)
    with torch.no_grad():
        before = loaded.eval()(ids).logits
        collapse_mixout(loaded)
        after = loaded(ids).logits
    if not torch.equal(before, after):
        raise CheckFailed("collapse_mixout: the logits differ from those before")
    if set(loaded.state_dict()) != plain_keys:
        raise CheckFailed("collapse_mixout: the keys are not those of a plain model")
    weights = {name: value for name, value in model.state_dict().items() if name in plain_keys}
    _check_equal("collapse_mixout", weights, loaded.state_dict())
    return Finding("injected, saved, loaded and collapsed on the device, bit for bit")


class _Interrupted(Exception):  # noqa: N818 (ends a run, as Ctrl-C does)
    pass


class _StopAt(Observer):
    """Ends a run after a given step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def stepped(self, *, step: int, **_: Any) -> None:
        """End the run."""
        if step == self.step:
            raise _Interrupted


def check_resume(device: torch.device, kit: Kit) -> Finding:
    """`train --resume` ends with the bytes of a run that was never interrupted."""
    precision = "bf16" if device.type == "cuda" else "fp32"
    options = {"max_steps": 8, "save_every": 2, "precision": precision}
    # not warn_only: with it, attention could still use nondeterministic kernels
    torch.use_deterministic_algorithms(True)
    try:
        whole, again = (kit.train(name, device, **options) for name in ("whole", "again"))
        _check_same_run(whole, again, "two identical runs: this device is not deterministic")
        try:
            kit.train("resumed", device, observer=_StopAt(5), **options)
        except _Interrupted:
            resumed = kit.train("resumed", device, resume=True, **options)
        else:
            raise CheckFailed("the run was not interrupted after step 5 as planned")
    finally:
        torch.use_deterministic_algorithms(False)
    _check_same_run(whole, resumed, "a resumed run and one without a break")
    return Finding(f"{precision}: interrupted after step 5, resumed from step 4, the same bytes")


def _check_same_run(one: Path, other: Path, which: str) -> None:
    for name in ("model.safetensors", "metrics.jsonl"):
        if (one / name).read_bytes() != (other / name).read_bytes():
            raise CheckFailed(f"{name} differs between {which}")


def _on_gpu(check: Callable[..., Finding], why: str) -> Callable[..., Finding]:
    """Return a check that a CPU cannot run."""

    def run(device: torch.device, *arguments: Any) -> Finding:
        if device.type != "cuda":
            raise CannotRun(why)
        return check(device, *arguments)

    return run


#: Most valuable first.
CHECKS: dict[str, Check] = {
    "layers against the formula": check_products,
    "training steps do not wait for the device": check_waits,
    "convolutions": lambda device: check_convolutions(device, _PRECISIONS),
    "compact gradients": check_compact_gradients,
    "save, load, collapse": check_checkpoints,
    "gradient checkpointing": check_checkpointing,
    "accumulated batches": check_accumulation,
    "mask statistics": check_masks,
}

#: Checks that train the kit's checkpoint, after the others.
CHECKS_WITH_KIT: dict[str, Callable[[torch.device, Kit], Finding]] = {
    "a resumed run gives identical bytes": check_resume,
    "train does not wait for the GPU": _on_gpu(
        check_waits_of_train, "needs a GPU: on a CPU `train` looks at the loss after each step"
    ),
}

#: The one-pass kernel is timed only if this check passes.
ONE_PASS = "one-pass kernel"

#: Checks that run in a separate process, because a fault in a kernel or a capture breaks it.
KERNEL_CHECKS: dict[str, Check] = {
    ONE_PASS: _on_gpu(
        check_one_pass, "the kernel runs on a GPU only; a test runs it through Triton's interpreter"
    ),
    "torch.compile": check_compiled,
    "captured CUDA graphs": _on_gpu(check_graph_capture, "CUDA graphs need a GPU"),
}
