"""Find the first module that computes something else.

Both sides run one batch. A PyTorch model is watched with forward hooks; of a graph, the values that
leave each module become outputs of a copy in memory, so that one session gives them all. The graph
itself is judged untouched, by the battery: outputs that are added may keep a runtime from fusing.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from torch import Tensor, nn

from mixout_export.errors import CheckpointError
from mixout_export.parity.battery import Batch
from mixout_export.parity.compare import OutputDifference
from mixout_export.parity.drift_map import DriftMap, ModuleDrift
from mixout_export.parity.subject import OnnxSubject, Subject, TorchSubject

Array = npt.NDArray[Any]

#: Largest relative L2 difference of a module's output that rounding explains, by precision.
DRIFT_TOLERANCES = {"fp32": 3e-5, "fp16": 1e-2, "bf16": 8e-2, "int8": 3e-1}

#: Most tokens, or pixels, of a batch that are run: every module's output is kept.
_FEWEST_ROWS, _VALUES = 1, 1024

#: Metadata entry of a graph that says which values leave which module.
_MODULE_VALUES = "module_values"

_SAME = "passes its input on"
_ABSENT = "not in the graph"


@dataclass(frozen=True)
class _Trace:
    """What one side's modules gave, in the order in which they ended.

    Attributes:
        outputs: Module → output of each call; a graph may name several values for a call, of which
            the last is what the module returns.
        kinds: Module → name of its class; empty for a graph.
        passing: Modules that returned what they were given.
        per_call: Whether there is exactly one value a call.
    """

    outputs: Mapping[str, Sequence[Array]]
    kinds: Mapping[str, str]
    passing: frozenset[str]
    per_call: bool


def _first_tensor(output: Any) -> Tensor | None:
    """Return the first floating-point tensor of what a module returned."""
    if isinstance(output, Tensor):
        return output if output.is_floating_point() else None
    values = output.values() if isinstance(output, Mapping) else output
    if not isinstance(output, Mapping | tuple | list):
        return None
    return next((found for value in values if (found := _first_tensor(value)) is not None), None)


def _trace_torch(subject: TorchSubject, inputs: Mapping[str, Array], *, headless: bool) -> _Trace:
    """Run a model and keep the output of each call of each module."""
    model: nn.Module = subject.model.base_model if headless else subject.model
    outputs: dict[str, list[Array]] = {}
    kinds: dict[str, str] = {}
    passing: set[str] = set()

    def watch(name: str) -> Any:
        def keep(module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
            found = _first_tensor(output)
            if found is None:
                return
            if any(value is output for value in given):
                passing.add(name)
            kinds[name] = type(module).__name__
            outputs.setdefault(name, []).append(found.detach().float().numpy().copy())

        return keep

    hooks = [module.register_forward_hook(watch(name)) for name, module in model.named_modules()]
    try:
        runner = subject.runner(subject.interface.inputs, headless=headless)
        runner.run(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return _Trace(outputs, kinds, frozenset(passing), per_call=True)


def _module_values(path: Path) -> tuple[onnx.ModelProto, dict[str, list[str]]]:
    """Read a graph and which of its values leave which module, in the graph's order."""
    graph = onnx.load(path, load_external_data=False)
    recorded = {entry.key: entry.value for entry in graph.metadata_props}.get(_MODULE_VALUES)
    try:
        modules: dict[str, list[str]] = json.loads(recorded or "{}")
    except ValueError as error:
        raise CheckpointError(
            f"{path}: the recorded modules are not JSON ({error}); export it again"
        ) from error
    order = {name: at for at, node in enumerate(graph.graph.node) for name in node.output}
    there = {
        module: names for module, names in modules.items() if names and order.keys() >= set(names)
    }
    return graph, dict(sorted(there.items(), key=lambda item: (order[item[1][-1]], -len(item[0]))))


def _trace_graph(subject: OnnxSubject, inputs: Mapping[str, Array]) -> _Trace:
    """Run a copy of a graph that gives the values that leave its modules too."""
    graph, modules = _module_values(subject.graph)
    own = [value.name for value in graph.graph.output]
    modules[""] = own[:1]  # the model itself
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
    outputs = {module: [found[name] for name in values] for module, values in modules.items()}
    return _Trace(outputs, {}, frozenset(), per_call=False)


def _trace(subject: Subject, inputs: Mapping[str, Array], *, headless: bool) -> _Trace:
    if isinstance(subject, OnnxSubject):
        return _trace_graph(subject, inputs)
    return _trace_torch(subject, inputs, headless=headless)


def _calls(trace: _Trace, module: str, calls: int) -> list[Array] | None:
    """Return one value for each of so many calls; None if they cannot be told apart."""
    values = list(trace.outputs[module])
    if len(values) == calls:
        return values
    if trace.per_call or not values or len(values) % calls:
        return None
    step = len(values) // calls
    return values[step - 1 :: step]


def _alike(trace: _Trace, other: _Trace, module: str) -> list[Array]:
    """Return the last of one call's values that is as large as what the other side returns."""
    values = trace.outputs[module]
    size = other.outputs[module][-1].size if other.per_call else values[-1].size
    return [next((value for value in reversed(values) if value.size == size), values[-1])]


def _difference(reference: Array, candidate: Array) -> tuple[float, float]:
    """Return the relative L2 and the largest absolute difference, infinite for a lone NaN."""
    left, right = reference.astype(np.float64), candidate.astype(np.float64)
    same = (left == right) | (np.isnan(left) & np.isnan(right))
    with np.errstate(invalid="ignore"):
        apart = np.where(same, 0.0, np.abs(right - left))
    apart = np.where(np.isnan(apart), np.inf, apart)
    norm = float(np.sqrt(np.square(left[np.isfinite(left)]).sum()))
    total = float(np.sqrt(np.square(apart).sum()))
    relative = 0.0 if total == 0.0 else (total / norm if norm else float("inf"))
    return relative, float(apart.max(initial=0.0))


def _compare_call(
    module: str, kind: str, call: int, reference: Array, candidate: Array
) -> ModuleDrift:
    if reference.size != candidate.size:
        reason = f"has shape {candidate.shape} on one side and {reference.shape} on the other"
        return ModuleDrift(module, kind, call=call, reason=reason)
    relative, largest = _difference(reference, candidate.reshape(reference.shape))
    return ModuleDrift(module, kind, relative, largest, tuple(reference.shape), call)


def _compare_module(module: str, ours: _Trace, theirs: _Trace) -> Iterator[ModuleDrift]:
    """Yield one entry for each call of a module that the reference has."""
    kind = ours.kinds.get(module) or theirs.kinds.get(module, "")
    if module in ours.passing:
        yield ModuleDrift(module, kind, reason=_SAME)
        return
    if module not in theirs.outputs:
        yield ModuleDrift(module, kind, reason=_ABSENT)
        return
    precise = ours if ours.per_call else theirs
    calls = len(precise.outputs[module]) if precise.per_call else 1
    left, right = _calls(ours, module, calls), _calls(theirs, module, calls)
    if calls == 1 and precise.per_call:
        left, right = _alike(ours, theirs, module), _alike(theirs, ours, module)
    if left is None or right is None:
        yield ModuleDrift(module, kind, reason="is called another number of times")
        return
    for call, (reference, candidate) in enumerate(zip(left, right, strict=True)):
        if reference.size != candidate.size and not (ours.per_call and theirs.per_call):
            yield ModuleDrift(module, kind, call=call, reason=_ABSENT)  # it gives another value
            continue
        yield _compare_call(module, kind, call, reference, candidate)


def pick_batch(batches: Sequence[Batch], outputs: Sequence[OutputDifference]) -> Batch:
    """Return the batch with the largest difference, cut to rows whose outputs can all be kept."""
    worst = max(outputs, key=lambda output: output.max_abs, default=None)
    chosen = next(
        (
            batch
            for batch in batches
            if worst is not None
            and (batch.name, batch.shape) == (worst.worst_batch, worst.worst_shape)
        ),
        batches[0],
    )
    rows = np.flatnonzero(~chosen.undefined_rows)
    each = max(1, int(np.prod(chosen.shape[1:])))
    rows = rows[: max(_FEWEST_ROWS, _VALUES // each)]
    return Batch(chosen.name, {name: value[rows] for name, value in chosen.inputs.items()})


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
        The modules in the order in which the reference's ended; those that are not in the
        candidate's graph are listed as such.

    Raises:
        CheckpointError: A side does not run the batch.
    """
    start = time.perf_counter()
    ours = _trace(reference, batch.inputs, headless=headless)
    theirs = _trace(candidate, batch.inputs, headless=headless)
    modules = tuple(
        drift for module in ours.outputs for drift in _compare_module(module, ours, theirs)
    )
    return DriftMap(
        modules=modules,
        tolerance=tolerance,
        batch=batch.name,
        shape=batch.shape,
        seconds=time.perf_counter() - start,
    )


def has_modules(subject: Subject) -> bool:
    """Tell whether a subject knows its modules: a graph of another exporter does not."""
    return isinstance(subject, TorchSubject) or _MODULE_VALUES in subject.session.metadata
