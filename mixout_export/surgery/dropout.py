"""Set dropout in the body and in the head, both in the configuration and in the modules."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from mixout_export.surgery.selection import body_of, module_ids

#: Prefixes of configuration entries that set a head's dropout, in transformers.
_HEAD_PREFIXES = ("classif", "cls_", "seq_classif", "summary_", "qa_", "pooler_dropout", "head_")

_DROPOUT_LAYERS = (nn.Dropout, nn.AlphaDropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def dropout_settings(config: Mapping[str, Any], *, body: float, head: float) -> dict[str, float]:
    """Return the configuration entries that set dropout, with their new values.

    Llama-like models store attention dropout as a number and have no module for it. Therefore the
    configuration must be changed too. A head's entry is included even if it is None, which means
    "the same as the body".

    Args:
        config: A model configuration as a dictionary, including defaults.
        body: Drop probability for the body, in [0, 1).
        head: Drop probability for the head, in [0, 1).
    """
    settings: dict[str, float] = {}
    for key, value in config.items():
        if "dropout" not in key and not key.endswith("pdrop"):
            continue
        if key.startswith(_HEAD_PREFIXES):
            if value is None or _is_number(value):
                settings[key] = head
        elif _is_number(value):
            settings[key] = body
    return settings


def set_module_dropout(model: nn.Module, *, body: float, head: float) -> None:
    """Set the drop probability of every dropout module, in place; see `dropout_settings`.

    Everything outside the model's `base_model` is the head.
    """
    inside = module_ids(body_of(model))
    for module in model.modules():
        if isinstance(module, _DROPOUT_LAYERS):
            module.p = body if id(module) in inside else head


def head_has_dropout(model: nn.Module) -> bool:
    """Return whether the head has a dropout module."""
    inside = module_ids(body_of(model))
    return any(isinstance(m, _DROPOUT_LAYERS) and id(m) not in inside for m in model.modules())
