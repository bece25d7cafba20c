"""Finetune with mixout, collapse to a plain model, export it to ONNX, and verify the result.

Names are imported on first use. Commands that only move files, such as `collapse` and `inspect`,
therefore start without PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mixout_export.adamw import MixoutAdamW
    from mixout_export.checkpoint.loading import load_mixout
    from mixout_export.checkpoint.saving import save_mixout
    from mixout_export.config import MixoutConfig
    from mixout_export.errors import MixoutError
    from mixout_export.functional import mixconnect, mixout
    from mixout_export.layers import (
        MixoutConv1D,
        MixoutConv1d,
        MixoutConv2d,
        MixoutEmbedding,
        MixoutLinear,
    )
    from mixout_export.mask_schedule import MaskSchedule
    from mixout_export.surgery.injection import InjectionReport, collapse_mixout, inject_mixout
    from mixout_export.version import __version__

__all__ = [
    "InjectionReport",
    "MaskSchedule",
    "MixoutAdamW",
    "MixoutConfig",
    "MixoutConv1D",
    "MixoutConv1d",
    "MixoutConv2d",
    "MixoutEmbedding",
    "MixoutError",
    "MixoutLinear",
    "__version__",
    "collapse_mixout",
    "inject_mixout",
    "load_mixout",
    "mixconnect",
    "mixout",
    "save_mixout",
]

#: Name → module that defines it.
_MODULES = {
    "InjectionReport": "mixout_export.surgery.injection",
    "MaskSchedule": "mixout_export.mask_schedule",
    "MixoutAdamW": "mixout_export.adamw",
    "MixoutConfig": "mixout_export.config",
    "MixoutConv1D": "mixout_export.layers",
    "MixoutConv1d": "mixout_export.layers",
    "MixoutConv2d": "mixout_export.layers",
    "MixoutEmbedding": "mixout_export.layers",
    "MixoutError": "mixout_export.errors",
    "MixoutLinear": "mixout_export.layers",
    "__version__": "mixout_export.version",
    "collapse_mixout": "mixout_export.surgery.injection",
    "inject_mixout": "mixout_export.surgery.injection",
    "load_mixout": "mixout_export.checkpoint.loading",
    "mixconnect": "mixout_export.functional",
    "mixout": "mixout_export.functional",
    "save_mixout": "mixout_export.checkpoint.saving",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
