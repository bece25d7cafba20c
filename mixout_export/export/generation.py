"""Capture a causal language model as an ONNX graph with a key/value cache.

One graph serves both phases: with an empty cache it reads a prompt, with a filled one it reads the
tokens since. Names are those that Optimum and transformers.js know: `past_key_values.0.key`, …,
`present.0.key`, ….
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.export import Dim
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from mixout_export.checkpoint.interface import ModelInterface
from mixout_export.errors import ExportError
from mixout_export.export.graph import (
    ExportedGraph,
    capture,
    check_opset,
    modules_by_node,
    rename_values,
)
from mixout_export.export.tracing import traceable
from mixout_export.quiet import quiet_libraries

#: Shape of the example the graph is captured with: primes, so that no other size equals them.
_BATCH, _PAST, _LENGTH = 3, 5, 7

#: Name of the attention mask's length, which is that of the cache and of the new tokens together.
_TOTAL = "total_sequence_length"

#: Layers of a cache that hold a key and a value for each token, or for each of the latest.
_GROWING = (DynamicLayer, DynamicSlidingWindowLayer)


@dataclass(frozen=True)
class CacheLayout:
    """The key/value cache of a model.

    Attributes:
        shapes: For each layer, (heads, size of a key's head, size of a value's head).
        takes_positions: Whether the model is told each token's position.
    """

    shapes: tuple[tuple[int, int, int], ...]
    takes_positions: bool

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the graph's inputs."""
        positions = ("position_ids",) if self.takes_positions else ()
        return ("input_ids", "attention_mask", *positions, *self._names("past_key_values"))

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the graph's outputs."""
        return ("logits", *self._names("present"))

    def _names(self, prefix: str) -> list[str]:
        layers = range(len(self.shapes))
        return [f"{prefix}.{layer}.{part}" for layer in layers for part in ("key", "value")]

    def empty(self, batch: int, past: int) -> list[Tensor]:
        """Return keys and values of no meaning, float32 `(batch, heads, past, size)` each."""
        return [
            torch.zeros(batch, heads, past, size) for heads, *sizes in self.shapes for size in sizes
        ]


def _cache_layers(model: PreTrainedModel) -> list[Any]:
    """Return the layers of the cache that a model leaves after one token; [] if it leaves none."""
    token = torch.zeros((1, 1), dtype=torch.int64)
    with quiet_libraries(), torch.no_grad():
        try:
            outputs = model(
                input_ids=token, attention_mask=token + 1, use_cache=True, return_dict=True
            )
        except TypeError:  # its forward knows no use_cache
            return []
    cache = getattr(outputs, "past_key_values", None)
    return list(getattr(cache, "layers", []))


def describe_cache(model: PreTrainedModel) -> CacheLayout:
    """Run a model on one token and look at the cache that it leaves.

    A layer with a sliding window is given a cache of everything: the mask leaves out what the
    window does, and a user need not know how the model would have cut it.

    Raises:
        ExportError: It leaves none, or one that does not grow by a key and a value a token.
    """
    layers = _cache_layers(model)
    other = [layer for layer in layers if type(layer) not in _GROWING]
    if not layers or other:
        kind = f"a {type(other[0]).__name__}" if other else "no list of layers"
        raise ExportError(
            f"{type(model).__name__}: what it keeps from token to token is {kind}, expected a key "
            "and a value for each token, so a graph with a cache cannot be written; give --no-cache"
        )
    return CacheLayout(
        shapes=tuple(
            (layer.keys.shape[1], layer.keys.shape[3], layer.values.shape[3]) for layer in layers
        ),
        takes_positions="position_ids" in inspect.signature(model.forward).parameters,
    )


class _CachedModel(nn.Module):
    """A model called with positional inputs and a flat cache, that returns the new cache too."""

    def __init__(self, model: PreTrainedModel, layout: CacheLayout) -> None:
        super().__init__()
        self.model = model
        self._names = layout.inputs[: -2 * len(layout.shapes)]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run the model; see `CacheLayout.inputs` and `outputs`."""
        named = dict(zip(self._names, inputs, strict=False))
        past = inputs[len(self._names) :]
        cache = DynamicCache(list(zip(past[::2], past[1::2], strict=True)))
        outputs = self.model(**named, past_key_values=cache, use_cache=True, return_dict=True)
        layers = outputs.past_key_values.layers
        return (outputs.logits, *(part for layer in layers for part in (layer.keys, layer.values)))


def _example(layout: CacheLayout, interface: ModelInterface) -> tuple[Tensor, ...]:
    """Return a batch whose last row is padded on the left, with a cache of some tokens."""
    ids = torch.arange(_LENGTH).expand(_BATCH, _LENGTH) % interface.vocabulary_size
    mask = torch.ones((_BATCH, _PAST + _LENGTH), dtype=torch.int64)
    mask[-1, :2] = 0
    made = {"input_ids": ids.clone(), "attention_mask": mask, "position_ids": positions_of(mask)}
    # a slice's strides are those of the whole, and torch 2.11 takes them for a limit on the length
    made["position_ids"] = made["position_ids"][:, _PAST:].contiguous()
    names = [name for name in layout.inputs if name in made]
    return (*(made[name] for name in names), *layout.empty(_BATCH, _PAST))


def positions_of(mask: Tensor) -> Tensor:
    """Return each token's position among those of its row that are not padding, as `generate` does.

    Args:
        mask: int64 `(batch, length)`, 1 for tokens and 0 for padding.
    """
    return (mask.cumsum(-1) - 1).clamp(min=0)


def _axis_names(layout: CacheLayout) -> list[dict[int, str]]:
    """Return each input's dynamic axes by name, in order.

    The names are Optimum's: transformers.js finds the size of an empty cache by them.
    """
    tokens = {0: "batch_size", 1: "sequence_length"}
    own = {
        "input_ids": tokens,
        "attention_mask": {0: "batch_size", 1: _TOTAL},
        "position_ids": tokens,
    }
    cache = {0: "batch_size", 2: "past_sequence_length"}
    return [own.get(name, cache) for name in layout.inputs]


def _dims(names: Sequence[dict[int, str]], limit: int | None) -> list[dict[int, object]]:
    """Return each input's dynamic axes, where no length is above a limit."""
    dims: dict[str, object] = {
        "batch_size": Dim("batch_size", min=1),
        "sequence_length": Dim("sequence_length", min=1, max=limit),
        "past_sequence_length": Dim("past_sequence_length", min=0, max=limit),
        _TOTAL: Dim.DYNAMIC,  # the sum of two others, which the exporter finds out
    }
    return [{axis: dims[name] for axis, name in named.items()} for named in names]


def _capture(
    model: PreTrainedModel,
    layout: CacheLayout,
    interface: ModelInterface,
    *,
    opset: int,
    limit: int | None,
) -> ir.Model:
    dims = _dims(_axis_names(layout), limit)
    with traceable(model):
        return capture(
            _CachedModel(model, layout).eval(),
            _example(layout, interface),
            (tuple(dims),),
            name=f"{type(model).__name__} with a cache",
            inputs=layout.inputs,
            outputs=layout.outputs,
            opset=opset,
        )


def export_cached_graph(
    model: PreTrainedModel, interface: ModelInterface, *, opset: int = 20
) -> ExportedGraph:
    """Capture a causal language model as an ONNX graph with a key/value cache.

    Its inputs are `input_ids` `(batch, sequence)`, `attention_mask` `(batch, past + sequence)` and,
    where the model takes them, `position_ids` `(batch, sequence)`, all int64, and a key and a value
    a layer, float32 `(batch, heads, past, size)`, where `past` may be 0. Its outputs are `logits`
    `(batch, sequence, vocabulary)` and the grown cache.

    Args:
        model: A plain causal language model; it is put in evaluation mode.
        interface: Its inputs and outputs.
        opset: ONNX operator set version.

    Raises:
        ArgumentError: The opset is not supported.
        ExportError: The model has no such cache, or cannot be captured.
    """
    check_opset(opset)
    model.eval()  # type: ignore[no-untyped-call]
    layout, limit = describe_cache(model), interface.sequence_limit
    try:
        graph = _capture(model, layout, interface, opset=opset, limit=limit)
    except ExportError:
        if limit is None or limit // 2 < _LENGTH:
            raise
        # a model that checks the sum of both lengths is captured with halves, for no range of two
        # lengths can say so; the graph itself knows no limits
        graph = _capture(model, layout, interface, opset=opset, limit=limit // 2)
    modules = modules_by_node(graph, dict(model.named_modules()).keys())
    rename_values(graph, _axis_names(layout), default=_TOTAL)
    return ExportedGraph(model=graph, modules_by_node=modules, opset=opset)
