"""Make tiny random checkpoints from a family's own configuration class."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, PretrainedConfig, PreTrainedModel

from matrix.families import IMAGE_SETTINGS, SETTINGS, SIZES, SPECIAL_TOKENS, classifier_of
from matrix.kinds import KINDS
from mixout_export.quiet import quiet_libraries

#: Standard deviation of the noise that is added to every parameter. Without it, scales would be one
#: and biases zero, and a graph that drops them would compute the same.
_NOISE = 0.1

LABELS = 3

_HEADS = ("num_attention_heads", "num_key_value_heads")
_LAYER_LISTS = ("layer_types", "mlp_layer_types")


def _special_tokens(config: PretrainedConfig, vocabulary: int) -> dict[str, int]:
    """Return ids for the special tokens that the tiny vocabulary does not hold."""
    found = {}
    for name, small in SPECIAL_TOKENS.items():
        value = getattr(config, name, None)
        if isinstance(value, list):
            value = value[0]
        if value is not None and not 0 <= value < vocabulary:
            found[name] = small
    if getattr(config, "pad_token_id", None) is None:
        found["pad_token_id"] = SPECIAL_TOKENS["pad_token_id"]
    return found


def _sizes(config: PretrainedConfig) -> dict[str, int]:
    """Return the sizes to reduce: those where the configuration's value is larger."""
    names = dict.fromkeys((*config.to_dict(), *config.attribute_map.values()))
    found = {}
    for name in names:
        value = getattr(config, name, None)
        if name in SIZES and isinstance(value, int) and value > SIZES[name]:
            found[name] = SIZES[name]
    heads, groups = (getattr(config, name, None) for name in _HEADS)
    if heads is not None and heads == groups and _HEADS[0] in found:
        found[_HEADS[1]] = found[_HEADS[0]]  # keep both numbers equal
    if getattr(config, "head_dim", 0) is None:
        found["head_dim"] = SIZES["head_dim"]
    if getattr(config, "is_encoder_decoder", False):
        start = getattr(config, "decoder_start_token_id", None)
        found["decoder_start_token_id"] = 0 if start is None else start
    return found


def _layer_kinds(config: PretrainedConfig, layers: int) -> dict[str, Any]:
    """Return layer lists with at least one layer of each kind, if a family has several kinds."""
    kinds = {
        name: list(dict.fromkeys(getattr(config, name)))
        for name in _LAYER_LISTS
        if name in config.to_dict()
        and isinstance(getattr(config, name, None), list)
        and not isinstance(getattr(type(config), name, None), property)
    }
    count = max([layers, *map(len, kinds.values())])
    found = {name: values + values[-1:] * (count - len(values)) for name, values in kinds.items()}
    return {**found, "num_hidden_layers": count} if found else {}


def _tiny_settings(config: PretrainedConfig, vocabulary: int | None = None) -> dict[str, Any]:
    """Return the settings that make a configuration and its nested configurations small."""
    settings: dict[str, Any] = _sizes(config)
    settings |= _layer_kinds(config, SIZES["num_hidden_layers"])
    vocabulary = vocabulary or settings.get("vocab_size", getattr(config, "vocab_size", None))
    if vocabulary is not None:
        settings |= _special_tokens(config, vocabulary)
    for name in config.sub_configs:
        nested = getattr(config, name, None)
        if isinstance(nested, PretrainedConfig):
            settings[name] = {**_tiny_settings(nested), "model_type": nested.model_type}
    return settings


def make_config(model_type: str, **settings: Any) -> PretrainedConfig:
    """Return a small configuration for a family.

    Args:
        model_type: The family.
        settings: Entries of the configuration to set, under the family's names or the common ones.
    """
    config_class = CONFIG_MAPPING[model_type]
    names = config_class.attribute_map
    settings = {names.get(name, name): value for name, value in settings.items()}
    tiny = _tiny_settings(config_class(), settings.get("vocab_size"))
    own = {**SETTINGS, **IMAGE_SETTINGS}.get(model_type, {})
    for name, value in own.items():
        nested = tiny.get(name)
        tiny[name] = {**nested, **value} if isinstance(nested, dict) else value
    return config_class(**{**tiny, **settings})


def make_model(build: Callable[[], PreTrainedModel], *, seed: int = 0) -> PreTrainedModel:
    """Build a random model in which no parameter has its default value."""
    with quiet_libraries(), torch.random.fork_rng():
        torch.manual_seed(seed)  # or the weights would depend on what ran before
        model = build()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.empty_like(parameter).normal_(0.0, _NOISE, generator=generator))
    model.eval()  # type: ignore[no-untyped-call]
    return model


def make_classifier(model_type: str, task: str = "text-classification") -> PreTrainedModel:
    """Build a classifier of a family."""
    config = make_config(model_type)
    config.architectures = [classifier_of(model_type, task)]  # read where there are several
    config.id2label = {index: f"LABEL_{index}" for index in range(LABELS)}
    config.label2id = {name: index for index, name in config.id2label.items()}
    build = KINDS[task].auto.from_config
    return make_model(lambda: build(config, dtype=torch.float32))


def write_checkpoint(
    model_type: str, folder: Path, task: str = "text-classification"
) -> PreTrainedModel:
    """Write a family's tiny checkpoint as a Hugging Face folder without a tokenizer.

    Returns:
        The model.
    """
    model = make_classifier(model_type, task)
    with quiet_libraries():
        model.save_pretrained(folder)
    return model
