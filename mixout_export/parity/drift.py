"""Find the first module that computes something else.

Both sides run one batch. A PyTorch model is watched with forward hooks; of a graph, the values that
leave each module become outputs of a copy in memory, so that one session gives them all. The graph
itself is judged untouched, by the battery: outputs that are added may keep a runtime from fusing.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from torch import Tensor, nn

from mixout_export.checkpoint.experts import gathered_experts
from mixout_export.files.graph_metadata import recorded_lists
from mixout_export.parity.battery import Batch
from mixout_export.parity.compare import OutputDifference
from mixout_export.parity.drift_map import DriftMap, ModuleDrift
from mixout_export.parity.subject import OnnxSubject, Subject, TorchSubject

Array = npt.NDArray[Any]

#: Largest relative L2 difference of a module's output that rounding explains, by precision.
DRIFT_TOLERANCES = {"fp32": 3e-5, "fp16": 1e-2, "bf16": 8e-2, "int8": 3e-1}

#: Most tokens, or pixels, of a batch that are run: every module's output is kept.
_VALUES = 1024

#: Metadata entry of a graph that says which values leave which module.
_MODULE_VALUES = "module_values"

_SAME = "passes its input on"
_ABSENT = "not in the graph"
_OTHERS = "put another way, as what is around it agrees"

#: A difference that is weaker by this factor in the module around is none of what goes on.
_DILUTION = 1e-3

#: Classes that return one tensor in one order: a changed bias of keys moves nothing around it.
_STRICT = ("Linear", "Conv1D", "Embedding")

#: A module, and which of its calls, from 0.
_Call = tuple[str, int]


@dataclass(frozen=True)
class _Trace:
    """What one side's modules gave.

    Attributes:
        outputs: Call → the tensors that it returned, in the order in which calls ended.
        kinds: Module → name of its class; empty for a graph.
        passing: Modules that returned what they were given.
    """

    outputs: Mapping[_Call, Sequence[Array]]
    kinds: Mapping[str, str]
    passing: frozenset[str]

    @property
    def calls(self) -> Counter[str]:
        """How often each module was called."""
        return Counter(module for module, _ in self.outputs)


def _tensors(output: Any) -> Iterator[Tensor]:
    """Yield the floating-point tensors among what a module returned."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping | tuple | list):
        for value in output.values() if isinstance(output, Mapping) else output:
            yield from _tensors(value)


def _trace_torch(subject: TorchSubject, inputs: Mapping[str, Array], *, headless: bool) -> _Trace:
    """Run a model and keep the output of each call of each module."""
    model: nn.Module = subject.model.base_model if headless else subject.model
    outputs: dict[_Call, list[Array]] = {}
    calls: Counter[str] = Counter()
    kinds: dict[str, str] = {}
    passing: set[str] = set()

    def watch(name: str) -> Any:
        def keep(module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
            # a copy: the model may go on in the same memory
            found = [tensor.detach().float().numpy().copy() for tensor in _tensors(output)]
            if not found:
                return
            if any(value is output for value in given):
                passing.add(name)
            kinds[name] = type(module).__name__
            outputs[name, calls[name]] = found
            calls[name] += 1

        return keep

    hooks = [module.register_forward_hook(watch(name)) for name, module in model.named_modules()]
    try:
        with gathered_experts(subject.model):
            subject.runner(subject.interface.inputs, headless=headless).run(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return _Trace(outputs, kinds, frozenset(passing))


def _module_values(path: Path) -> tuple[onnx.ModelProto, dict[str, list[str]]]:
    """Read a graph and which of its values leave which module, in the graph's order."""
    graph = onnx.load(path, load_external_data=False)
    metadata = {entry.key: entry.value for entry in graph.metadata_props}
    modules = recorded_lists(metadata, _MODULE_VALUES, path) or {}
    order = {name: at for at, node in enumerate(graph.graph.node) for name in node.output}
    there = {
        module: names for module, names in modules.items() if names and order.keys() >= set(names)
    }
    return graph, dict(sorted(there.items(), key=lambda item: (order[item[1][-1]], -len(item[0]))))


def _run_graph(subject: OnnxSubject, inputs: Mapping[str, Array]) -> dict[str, list[Array]]:
    """Run a copy of a graph and return the values that leave its modules, by module."""
    graph, modules = _module_values(subject.graph)
    own = [value.name for value in graph.graph.output]
    modules[""] = own  # the model itself
    names = list(dict.fromkeys(name for values in modules.values() for name in values))
    graph.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in own)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(subject.graph.parent)
    )
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), options, providers=[subject.provider]
    )
    taken = {value.name for value in session.get_inputs()}
    values = session.run(names, {name: inputs[name] for name in taken}) if names else []
    found = {name: value.astype(np.float32) for name, value in zip(names, values, strict=True)}
    return {module: [found[name] for name in values] for module, values in modules.items()}


def _calls_of(values: Sequence[Array], calls: int) -> list[Sequence[Array]]:
    """Part the values that leave a module by its calls; [] if they do not divide."""
    step, rest = divmod(len(values), calls)
    return [] if rest else [values[at : at + step] for at in range(0, len(values), step)]


def _trace_graph(
    subject: OnnxSubject, inputs: Mapping[str, Array], calls: Mapping[str, int]
) -> _Trace:
    """Run a graph; `calls` says how often each module is called, once where it says nothing."""
    outputs = {
        (module, call): left
        for module, values in _run_graph(subject, inputs).items()
        for call, left in enumerate(_calls_of(values, calls.get(module, 1)))
    }
    return _Trace(outputs, {}, frozenset())


def _trace_both(
    reference: Subject, candidate: Subject, inputs: Mapping[str, Array], *, headless: bool
) -> tuple[_Trace, _Trace, _Trace]:
    """Run both sides; return the one whose order counts, the reference's and the candidate's.

    Hooks see calls as they end, a graph's order is one of many: a model comes first.
    """
    sides = (reference, candidate)
    traces = {
        number: _trace_torch(side, inputs, headless=headless)
        for number, side in enumerate(sides)
        if isinstance(side, TorchSubject)
    }
    clock = next(iter(traces.values()), None)
    calls: Mapping[str, int] = {} if clock is None else clock.calls
    for number, side in enumerate(sides):
        if isinstance(side, OnnxSubject):
            traces[number] = _trace_graph(side, inputs, calls)
    return clock or traces[0], traces[0], traces[1]


def _difference(reference: Array, candidate: Array) -> tuple[float, float]:
    """Return the relative L2 and the largest difference, infinite where only one is NaN."""
    left, right = reference.astype(np.float64), candidate.astype(np.float64)
    same = (left == right) | (np.isnan(left) & np.isnan(right))
    with np.errstate(invalid="ignore"):
        apart = np.where(same, 0.0, np.abs(right - left))
    apart = np.where(np.isnan(apart), np.inf, apart)
    norm = float(np.sqrt(np.square(left[np.isfinite(left)]).sum()))
    total = float(np.sqrt(np.square(apart).sum()))
    relative = 0.0 if total == 0.0 else (total / norm if norm else float("inf"))
    return relative, float(apart.max(initial=0.0))


def _compare_tensors(
    reference: Array, candidate: Array, mask: Array | None
) -> tuple[float, float, tuple[int, ...]]:
    """Compare two tensors of one size, without tokens that are padding.

    Padding on the left of a causal model attends to nothing, and a softmax over nothing has no
    value: each side makes something else of it.
    """
    candidate = candidate.reshape(reference.shape)
    if mask is not None and reference.shape[: mask.ndim] == mask.shape:
        real = mask != 0
        return (*_difference(reference[real], candidate[real]), reference.shape)
    return (*_difference(reference, candidate), reference.shape)


def _nearest(
    references: Sequence[Array], candidates: Sequence[Array], mask: Array | None
) -> tuple[float, float, tuple[int, ...]] | None:
    """Compare what a call returned: each tensor of the side with fewer with its nearest.

    Of a graph it is known what leaves a module, not which of the tensors it returns that is: of a
    rotary embedding the sine or the cosine, of a body its states or its pooled output.

    Returns:
        The relative L2 and the absolute difference, and the shape, of the tensor that is furthest
        apart; None where no shapes fit.
    """
    pairs = [[(left, right) for right in candidates] for left in references]
    if len(candidates) < len(references):
        pairs = [list(column) for column in zip(*pairs, strict=True)]
    found = [
        min(
            _compare_tensors(left, right, mask)
            for left, right in choices
            if left.size == right.size
        )
        for choices in pairs
        if any(left.size == right.size for left, right in choices)
    ]
    return max(found, default=None)


def _compare(
    call: _Call, clock: _Trace, ours: _Trace, theirs: _Trace, mask: Array | None
) -> ModuleDrift:
    module, number = call
    kind = clock.kinds.get(module, "")
    if module in clock.passing:
        return ModuleDrift(module, kind, call=number, reason=_SAME)
    if call not in ours.outputs or call not in theirs.outputs:
        return ModuleDrift(module, kind, call=number, reason=_ABSENT)
    found = _nearest(ours.outputs[call], theirs.outputs[call], mask)
    if found is None:
        shapes = [trace.outputs[call][-1].shape for trace in (theirs, ours)]
        reason = f"has shape {shapes[0]} on one side and {shapes[1]} on the other"
        return ModuleDrift(module, kind, call=number, reason=reason)
    return ModuleDrift(module, kind, *found, call=number)


def _encloses(outer: ModuleDrift, inner: ModuleDrift) -> bool:
    return outer.call == inner.call and (
        not outer.module or inner.module.startswith(f"{outer.module}.")
    )


def _doubted(modules: Sequence[ModuleDrift], tolerance: float) -> Iterator[ModuleDrift]:
    """Yield the drifts, without those that nothing around them shows.

    A graph may put what a module returns another way: a router lets out others of its tensors,
    experts see their tokens in another order. Where a module around it is a thousand times closer,
    it is not the module that differs.
    """
    for at, drift in enumerate(modules):
        if drift.relative_l2 is not None and tolerance < drift.relative_l2:
            limit = min(tolerance, _DILUTION * drift.relative_l2)
            agrees = any(  # modules end after those inside them
                _encloses(outer, drift)
                and outer.relative_l2 is not None
                and outer.relative_l2 <= limit
                for outer in modules[at + 1 :]
            )
            if agrees and drift.kind not in _STRICT:
                drift = ModuleDrift(drift.module, drift.kind, call=drift.call, reason=_OTHERS)
        yield drift


def _rows_of(batch: Batch, rows: npt.NDArray[np.int64]) -> Batch:
    return Batch(batch.name, {name: value[rows] for name, value in batch.inputs.items()})


def pick_batch(batches: Sequence[Batch], outputs: Sequence[OutputDifference]) -> Batch:
    """Return the batch with the largest difference, cut to rows whose outputs can all be kept.

    The row that differs most is the first of them, and none is all padding.
    """
    worst = max(outputs, key=lambda output: output.max_abs, default=None)
    number, first = (0, 0) if worst is None else (worst.worst_number, worst.worst_row)
    chosen = batches[max(0, number)]
    rows = np.flatnonzero(~chosen.undefined_rows)
    rows = np.roll(rows, -int(np.searchsorted(rows, max(0, first))))
    each = max(1, int(np.prod(chosen.shape[1:])))
    return _rows_of(chosen, rows[: max(1, _VALUES // each)])


def _runs_row_by_row(subject: Subject) -> bool:
    return isinstance(subject, TorchSubject) and subject.interface.pad_token_id is None


def draw_drift(
    reference: Subject,
    candidate: Subject,
    batch: Batch,
    *,
    tolerance: float = DRIFT_TOLERANCES["fp32"],
    headless: bool = False,
) -> DriftMap:
    """Compare every module's output on one batch.

    Args:
        reference: What the candidate should be.
        candidate: What is judged. A graph knows its modules if this tool exported it.
        batch: What both are run on.
        tolerance: Largest relative L2 difference that is allowed for.
        headless: Whether only the bodies are compared, as one side has no head.

    Returns:
        The calls of modules in the order in which they end; those that are not in a graph are
        listed as such.

    Raises:
        CheckpointError: A side does not run the batch.
    """
    start = time.perf_counter()
    if any(map(_runs_row_by_row, (reference, candidate))):
        batch = _rows_of(batch, np.zeros(1, dtype=np.int64))
    clock, ours, theirs = _trace_both(reference, candidate, batch.inputs, headless=headless)
    mask = batch.inputs.get("attention_mask")
    modules = [_compare(call, clock, ours, theirs, mask) for call in clock.outputs]
    return DriftMap(
        modules=tuple(_doubted(modules, tolerance)),
        tolerance=tolerance,
        batch=batch.name,
        shape=batch.shape,
        seconds=time.perf_counter() - start,
    )


def has_modules(subject: Subject) -> bool:
    """Tell whether a subject knows its modules: a graph of another exporter does not."""
    return isinstance(subject, TorchSubject) or _MODULE_VALUES in subject.session.metadata
