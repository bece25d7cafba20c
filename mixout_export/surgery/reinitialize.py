"""Start a model's top layers afresh."""

import copy
import hashlib
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from mixout_export.errors import ArgumentError
from mixout_export.layers import MixoutLayer, to_plain
from mixout_export.quiet import quiet_libraries
from mixout_export.surgery.injection import mixout_layers
from mixout_export.surgery.layer_list import find_layers
from mixout_export.surgery.selection import body_of

_OPTION = "reinit-layers"


@dataclass(frozen=True)
class Reinitialized:
    """What `reinitialize_layers` did.

    Attributes:
        modules: Names of the layers, and of the pooler if the model's body has one.
        parameters: Names of their parameters.
    """

    modules: tuple[str, ...]
    parameters: tuple[str, ...]


def _seed_of(seed: int) -> int:
    """Return another seed, so that the layers do not get the numbers that the head has got."""
    return int.from_bytes(hashlib.sha256(f"{_OPTION} {seed}".encode()).digest()[:7])


def fresh_model(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """Build a model of the same architecture as if there were no pretrained weights."""
    config = copy.deepcopy(model.config)
    with torch.random.fork_rng(devices=[]), quiet_libraries():
        torch.manual_seed(_seed_of(seed))
        return type(model)(config)


def reinitialize_layers(model: PreTrainedModel, count: int, *, seed: int) -> Reinitialized:
    """Initialize the top layers at random, in place, as the model's architecture does.

    The pooler is initialized too, because it reads the top layer (Zhang et al., 2021). Where these
    layers were mixed, they become plain: they have no pretrained weight any more.

    Args:
        model: A model with mixout.
        count: Number of layers, counted from the output.
        seed: Seed of the initialization.

    Raises:
        ArgumentError: The model has no more layers than that, or no list of layers, or nothing
            remains that is mixed.
    """
    layers = find_layers(model, option=_OPTION)
    if count >= len(layers.names):
        raise ArgumentError(
            f"{_OPTION}: got {count}, expected at most {len(layers.names) - 1}, because "
            f"{type(model).__name__} has {len(layers.names)} layers and one must stay pretrained"
        )
    body = {id(module) for module in body_of(model).modules()}
    poolers = [
        name
        for name, module in model.named_modules()
        if name.rpartition(".")[2] == "pooler" and id(module) in body
    ]
    modules = (*layers.names[-count:], *poolers)
    fresh = dict(fresh_model(model, seed).named_modules())
    parameters: list[str] = []
    for name in modules:
        module = model.get_submodule(name)
        for child in module.modules():
            if isinstance(child, MixoutLayer):
                to_plain(child)
        module.load_state_dict(fresh[name].state_dict())
        parameters += [f"{name}.{inner}" for inner, _ in module.named_parameters()]
    if not mixout_layers(model):
        raise ArgumentError(
            f"{_OPTION}: all mixed layers are among the top {count}, so nothing remains to mix; "
            "lower it, or prepare with other --target-modules"
        )
    return Reinitialized(modules, tuple(parameters))
