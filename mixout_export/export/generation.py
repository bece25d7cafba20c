"""Export a causal language model to an ONNX graph with a key/value cache.

One graph serves both phases of generation. With an empty cache it reads the prompt; with a filled
cache it reads the tokens that follow. Inputs and outputs have the names that Optimum and
transformers.js expect: `past_key_values.0.key`, …, `present.0.key`, ….
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
    modules_by_node,
    rename_values,
)
from mixout_export.export.opset import check_opset
from mixout_export.export.tracing import traceable
from mixout_export.quiet import quiet_libraries

#: Sizes of the example input that the graph is captured with. They are primes so that no other
#: size in the model equals them by accident.
_BATCH, _PAST, _LENGTH = 3, 5, 7

#: Name of the attention mask's length: the cached tokens plus the new ones.
_TOTAL = "total_sequence_length"

#: Cache layers that hold one key and one value for each token, or for each recent token.
_GROWING = (DynamicLayer, DynamicSlidingWindowLayer)


@dataclass(frozen=True)
class CacheLayout:
    """The key/value cache of a model.

    Attributes:
        shapes: For each layer, (number of heads, size of a key's head, size of a value's head).
        takes_positions: Whether the model takes `position_ids` as an input.
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
        """Return keys and values of zeros, each float32 `(batch, heads, past, size)`."""
        return [
            torch.zeros(batch, heads, past, size) for heads, *sizes in self.shapes for size in sizes
        ]


def _cache_layers(model: PreTrainedModel) -> list[Any]:
    """Return the layers of the cache that a model returns for one token; [] if it returns none."""
    token = torch.zeros((1, 1), dtype=torch.int64)
    with quiet_libraries(), torch.no_grad():
        try:
            outputs = model(
                input_ids=token, attention_mask=token + 1, use_cache=True, return_dict=True
            )
        except TypeError:  # its forward does not take use_cache
            return []
    cache = getattr(outputs, "past_key_values", None)
    return list(getattr(cache, "layers", []))


def describe_cache(model: PreTrainedModel) -> CacheLayout:
    """Run a model on one token and describe the cache that it returns.

    A layer with a sliding window gets a cache of all tokens. The attention mask then hides the
    tokens outside the window, so users of the graph need not know how the model cuts its cache.

    Raises:
        ExportError: The model returns no cache, or one that does not grow by one key and one value
            per token.
    """
    layers = _cache_layers(model)
    other = [layer for layer in layers if type(layer) not in _GROWING]
    if not layers or other:
        found = f"its cache has a {type(other[0]).__name__}" if other else "it returns no cache"
        raise ExportError(
            f"{type(model).__name__}: a graph with a key/value cache cannot be written because "
            f"{found}, expected one key and one value per token; give --no-cache"
        )
    return CacheLayout(
        shapes=tuple(
            (layer.keys.shape[1], layer.keys.shape[3], layer.values.shape[3]) for layer in layers
        ),
        takes_positions="position_ids" in inspect.signature(model.forward).parameters,
    )


class _CachedModel(nn.Module):
    """Wrap a model so that it takes and returns its cache as a flat sequence of tensors."""

    def __init__(self, model: PreTrainedModel, layout: CacheLayout) -> None:
        super().__init__()
        self.model = model
        self._names = layout.inputs[: -2 * len(layout.shapes)]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run the model; `CacheLayout.inputs` and `outputs` name the tensors."""
        named = dict(zip(self._names, inputs, strict=False))
        past = inputs[len(self._names) :]
        cache = DynamicCache(list(zip(past[::2], past[1::2], strict=True)))
        outputs = self.model(**named, past_key_values=cache, use_cache=True, return_dict=True)
        layers = outputs.past_key_values.layers
        return (outputs.logits, *(part for layer in layers for part in (layer.keys, layer.values)))


def _example(layout: CacheLayout, interface: ModelInterface) -> tuple[Tensor, ...]:
    """Return a batch with a cache of a few tokens. Its last row is padded on the left."""
    ids = torch.arange(_LENGTH).expand(_BATCH, _LENGTH) % interface.vocabulary_size
    mask = torch.ones((_BATCH, _PAST + _LENGTH), dtype=torch.int64)
    mask[-1, :2] = 0
    made = {"input_ids": ids.clone(), "attention_mask": mask, "position_ids": positions_of(mask)}
    # A slice keeps the strides of the whole, and torch 2.11 takes them for a limit on the length.
    made["position_ids"] = made["position_ids"][:, _PAST:].contiguous()
    names = [name for name in layout.inputs if name in made]
    return (*(made[name] for name in names), *layout.empty(_BATCH, _PAST))


def positions_of(mask: Tensor) -> Tensor:
    """Return each token's position in its row, not counting padding, as `generate` does.

    `mask` and the result are int64 `(batch, length)`. The mask is 1 for tokens and 0 for padding.
    """
    return (mask.cumsum(-1) - 1).clamp(min=0)


def _axis_names(layout: CacheLayout) -> list[dict[int, str]]:
    """Return axis → name of each input's dynamic axes.

    The names are Optimum's. transformers.js needs them to find the size of an empty cache.
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
    """Return each input's dynamic axes. `limit` is the largest length, in tokens."""
    dims: dict[str, object] = {
        "batch_size": Dim("batch_size", min=1),
        "sequence_length": Dim("sequence_length", min=1, max=limit),
        "past_sequence_length": Dim("past_sequence_length", min=0, max=limit),
        _TOTAL: Dim.DYNAMIC,  # the exporter infers that it is the sum of the two lengths
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
    """Export a causal language model to an ONNX graph with a key/value cache.

    The graph's inputs are:

    - `input_ids`, int64 `(batch, sequence)`
    - `attention_mask`, int64 `(batch, past + sequence)`
    - `position_ids`, int64 `(batch, sequence)`, if the model takes them
    - one key and one value per layer, float32 `(batch, heads, past, size)`; `past` may be 0

    Its outputs are `logits`, float32 `(batch, sequence, vocabulary)`, and the cache extended by the
    new tokens.

    The model is put in evaluation mode.

    Raises:
        ArgumentError: The opset is not supported.
        ExportError: The model has no such cache, or it cannot be captured.
    """
    check_opset(opset)
    model.eval()  # type: ignore[no-untyped-call]
    layout, limit = describe_cache(model), interface.sequence_limit
    try:
        graph = _capture(model, layout, interface, opset=opset, limit=limit)
    except ExportError:
        if limit is None or limit // 2 < _LENGTH:
            raise
        # Some models check that past + sequence is within the limit. A range for each length
        # cannot express that, so each gets half of it here. The graph itself has no limit.
        graph = _capture(model, layout, interface, opset=opset, limit=limit // 2)
    modules = modules_by_node(graph, dict(model.named_modules()).keys())
    rename_values(graph, _axis_names(layout), default=_TOTAL)
    return ExportedGraph(model=graph, modules_by_node=modules, opset=opset)
