"""Anchors under DistributedDataParallel (DDP): they are compared once and never broadcast.

DDP broadcasts a model's buffers from rank 0, once when it wraps the model and again at every
forward pass. Anchors never change, so they are left out. A rank that has loaded other pretrained
weights would then keep them, and nobody would notice. Therefore the first training step compares
the anchors of all ranks.

The comparison is a collective operation, which hangs unless every rank takes part. It runs where
DDP itself needs all ranks: in the forward pass of the wrapped model whose gradients DDP will
reduce. It never runs for a model that DDP has not wrapped, however many processes there are.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, distributed, nn

from mixout_export.errors import TrainingError
from mixout_export.layers import MixoutLayer
from mixout_export.torch_internals import synchronizing_ddp

#: The attribute in which DDP looks for the names of tensors that it must not broadcast.
_IGNORED = "_ddp_params_and_buffers_to_ignore"
#: The attribute that holds the handle of the hook that compares the anchors.
_HOOK = "_mixout_anchor_check"

#: Largest number of layers per rank, and of ranks, that an error names.
_MOST_NAMED = 3


def watch_anchors(model: nn.Module, layers: Mapping[str, MixoutLayer]) -> None:
    """Exclude a model's anchors from DDP's broadcasts; compare them at the first training step."""
    ignored = [*getattr(model, _IGNORED, []), *_anchor_names(layers)]
    setattr(model, _IGNORED, ignored)
    setattr(model, _HOOK, model.register_forward_pre_hook(_compare_once))


def unwatch_anchors(model: nn.Module, layers: Mapping[str, MixoutLayer]) -> None:
    """Undo `watch_anchors`, keeping the names that others have put into DDP's list."""
    _stop_comparing(model)
    if hasattr(model, _IGNORED):
        anchors = set(_anchor_names(layers))
        kept = [name for name in getattr(model, _IGNORED) if name not in anchors]
        if kept:
            setattr(model, _IGNORED, kept)
        else:
            delattr(model, _IGNORED)


def _anchor_names(layers: Mapping[str, MixoutLayer]) -> list[str]:
    return [f"{name}.pretrained_weight".lstrip(".") for name in layers]


def _stop_comparing(model: nn.Module) -> None:
    handle = vars(model).pop(_HOOK, None)
    if handle is not None:
        handle.remove()


def _compare_once(model: nn.Module, inputs: Any) -> None:
    """Compare the anchors if all ranks are in this forward pass; a forward pre-hook."""
    if torch.compiler.is_compiling():
        return
    ddp = synchronizing_ddp(model)
    if ddp is not None:
        require_same_anchors(model, ddp.process_group)
        _stop_comparing(model)


def require_same_anchors(model: nn.Module, group: distributed.ProcessGroup) -> None:
    """Raise the same `TrainingError` on all ranks of a group unless they hold the same anchors.

    Every rank of the group must call this. If all is well, the ranks exchange one short digest.
    """
    if group.size() == 1:
        return
    layers = {n: m for n, m in model.named_modules() if isinstance(m, MixoutLayer)}
    own = {name: _describe(layer.pretrained_weight) for name, layer in layers.items()}
    digest = hashlib.sha256(repr(own).encode()).digest()
    parameter = next(model.parameters())
    with torch.cuda.device_of(parameter):  # type: ignore[no-untyped-call]  # NCCL sends from it
        if len(set(_gather(digest, group))) > 1:
            found = _gather(own, group)
            raise TrainingError(_difference(found, distributed.get_process_group_ranks(group)))


def _gather(value: Any, group: distributed.ProcessGroup) -> list[Any]:
    """Return the value of each rank, in the group's order."""
    values = [None] * group.size()
    distributed.all_gather_object(values, value, group=group)
    return values


def _describe(anchor: Tensor) -> str:
    """Return a text that is the same for two anchors only if they are equal bit for bit."""
    kind = f"{anchor.dtype} {tuple(anchor.shape)}"
    if type(anchor) is not Tensor:
        return f"{kind} sharded"  # each rank holds a different part
    values = anchor.detach().cpu().reshape(-1).view(torch.uint8)
    return f"{kind} {hashlib.sha256(values.numpy().data).hexdigest()}"


def _difference(found: list[dict[str, str]], ranks: list[int]) -> str:
    """Return an error text that names the layers and the ranks that differ from the first."""
    clauses = []
    for rank, anchors in zip(ranks, found, strict=True):
        names = [n for n in found[0] | anchors if found[0].get(n) != anchors.get(n)]
        if names:
            more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
            layers = ", ".join(repr(name) for name in names[:_MOST_NAMED])
            clauses.append(f"rank {rank} in {layers}{more}")
    others = len(clauses) - _MOST_NAMED
    listed = "; ".join(clauses[:_MOST_NAMED]) + (f"; and {others} more ranks" if others > 0 else "")
    return (
        f"pretrained_weight: the anchors of these processes differ from those of rank {ranks[0]}: "
        f"{listed}. All processes must load the same pretrained weights"
    )
