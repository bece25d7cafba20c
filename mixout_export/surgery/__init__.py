"""Surgery on models: which layers are mixed, and how they get there and back."""

from mixout_export.surgery.injection import (
    ORIGIN_ATTRIBUTE,
    InjectionReport,
    attach_mixout,
    collapse_mixout,
    inject_mixout,
    mixout_layers,
)

__all__ = [
    "ORIGIN_ATTRIBUTE",
    "InjectionReport",
    "attach_mixout",
    "collapse_mixout",
    "inject_mixout",
    "mixout_layers",
]
