"""The model with which a training run starts."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mixout_export.checkpoint.keys import is_statistic, weight_key
from mixout_export.checkpoint.loading import load_mixout_from
from mixout_export.checkpoint.mixed import MixoutCheckpoint
from mixout_export.checkpoint.mixout_metadata import MixoutMetadata
from mixout_export.checkpoint.plain import PlainCheckpoint
from mixout_export.checkpoint.torch_tensors import tensor_of
from mixout_export.errors import ArgumentError, CheckpointError
from mixout_export.files.tensors import same_rows
from mixout_export.surgery.freezing import freeze_modules
from mixout_export.surgery.injection import mixout_layers
from mixout_export.surgery.key_names import disk_keys, merged_keys
from mixout_export.surgery.reinitialize import reinitialize_layers
from mixout_export.training.options import TrainOptions


@dataclass(frozen=True)
class Start:
    """The model with which a run starts.

    Attributes:
        model: The model, its weights in float32.
        metadata: The mixout metadata of the checkpoints that the run writes.
        fresh: Names of the parameters that did not come from the base.
        pretrained: Parameter name → pretrained value; empty unless weights decay toward them.
    """

    model: PreTrainedModel
    metadata: MixoutMetadata
    fresh: frozenset[str]
    pretrained: dict[str, Tensor]


def load_start(source: PlainCheckpoint, options: TrainOptions) -> Start:
    """Load the model in float32 and apply the options that concern it.

    Raises:
        ArgumentError: An option does not fit the model.
        CheckpointError: The checkpoint cannot be loaded, or lacks pretrained values.
    """
    if isinstance(source, MixoutCheckpoint) and not source.recorded and options.p is None:
        raise ArgumentError(
            f"p: {source.path} holds pretrained weights but does not record p; give --p"
        )
    model, metadata = load_mixout_from(source), source.require_metadata()
    model.float()  # type: ignore[no-untyped-call]
    pretrained = _pretrained_values(source, model, options)
    fresh = metadata.fresh_keys
    if options.reinit_layers is not None:
        again = reinitialize_layers(model, options.reinit_layers, seed=metadata.seed or 0)
        metadata = metadata.with_reinitialized(
            again.modules, _keys_of(model, again.parameters).values()
        )
        fresh |= {*again.parameters}
    for layer in mixout_layers(model).values():
        if options.p is not None:
            layer.p = options.p
        if options.anchor_dtype is not None:
            dtype = getattr(torch, options.anchor_dtype)
            layer.pretrained_weight = layer.pretrained_weight.to(dtype)
    if options.freeze is not None:
        freeze_modules(model, options.freeze)
    if options.gradient_checkpointing:
        _checkpoint_gradients(model)
    if options.p is not None:
        metadata = metadata.with_p(options.p)
    return Start(model, metadata, fresh, pretrained)


def _checkpoint_gradients(model: PreTrainedModel) -> None:
    if not model.supports_gradient_checkpointing:
        raise ArgumentError(
            f"gradient-checkpointing: {type(model).__name__} does not support it; leave it out"
        )
    # transformers renamed it, and drops the older name in version 6
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)()


def _keys_of(model: PreTrainedModel, parameters: tuple[str, ...]) -> dict[str, str]:
    """Return parameter name → its key on disk, or that of the tensor it is merged into."""
    keys = disk_keys(model)
    merged = [name for name in parameters if name not in keys]
    found = {**keys, **(merged_keys(model, merged) if merged else {})}
    return {name: found.get(name, name) for name in parameters}


def _pretrained_values(
    source: PlainCheckpoint, model: PreTrainedModel, options: TrainOptions
) -> dict[str, Tensor]:
    """Return parameter name → pretrained value; empty unless weights decay toward them."""
    if options.decay_toward != "pretrained":
        return {}
    names = {name: tuple(value.shape) for name, value in model.named_parameters()}
    by_key = {key: name for name, key in disk_keys(model).items()}
    stored = {weight_key(key): entry for key, entry in source.anchors.items()}
    values = {by_key.get(key, key): entry for key, entry in stored.items()}
    values = {name: entry for name, entry in values.items() if not is_statistic(name)}
    foreign = sorted(
        name
        for name, entry in values.items()
        if name not in names or not same_rows(names[name], entry.shape)
    )
    if foreign or not source.pretrained_paths:
        what = repr(foreign[0]) if foreign else "those of the unmixed parameters"
        raise CheckpointError(
            f"{source.path}: decay toward the pretrained weights needs the pretrained value of "
            f"every parameter, and {what} cannot be matched; use --decay-toward zero"
        )
    return {name: tensor_of(entry) for name, entry in values.items()}
