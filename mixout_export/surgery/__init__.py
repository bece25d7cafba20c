"""Change models: select layers, inject mixout into them, and collapse them to plain layers."""

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
