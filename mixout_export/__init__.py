"""Finetune with Mixout, collapse to a plain model, export it, and prove that nothing changed.

The names below are imported on first use, so that the parts which only move files (`collapse`,
`inspect`) start without PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mixout_export.checkpoint.model import load_mixout, save_mixout
    from mixout_export.config import MixoutConfig
    from mixout_export.errors import MixoutError
    from mixout_export.functional import mixout
    from mixout_export.layers import MixoutConv1D, MixoutEmbedding, MixoutLinear
    from mixout_export.surgery import InjectionReport, collapse_mixout, inject_mixout
    from mixout_export.version import __version__

__all__ = [
    "InjectionReport",
    "MixoutConfig",
    "MixoutConv1D",
    "MixoutEmbedding",
    "MixoutError",
    "MixoutLinear",
    "__version__",
    "collapse_mixout",
    "inject_mixout",
    "load_mixout",
    "mixout",
    "save_mixout",
]

_LIGHT_HOMES = {
    "MixoutConfig": "mixout_export.config",
    "MixoutError": "mixout_export.errors",
    "__version__": "mixout_export.version",
}

#: Those that need PyTorch.
_HOMES = {
    "InjectionReport": "mixout_export.surgery",
    "MixoutConv1D": "mixout_export.layers",
    "MixoutEmbedding": "mixout_export.layers",
    "MixoutLinear": "mixout_export.layers",
    "collapse_mixout": "mixout_export.surgery",
    "inject_mixout": "mixout_export.surgery",
    "load_mixout": "mixout_export.checkpoint.model",
    "mixout": "mixout_export.functional",
    "save_mixout": "mixout_export.checkpoint.model",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name) or _LIGHT_HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
