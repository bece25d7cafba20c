"""Read the library versions that the matrix runs with."""

import importlib.metadata
import platform
from functools import cache

_PACKAGES = ("mixout-export", "torch", "transformers", "onnx", "onnxscript", "onnxruntime")


@cache
def versions() -> dict[str, str]:
    """Return library → version, for all libraries that may change an outcome."""
    found = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), **found}
