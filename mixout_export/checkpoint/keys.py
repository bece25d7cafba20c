"""What the keys of tensors say."""

from mixout_export.files.layout import LAYOUT


def is_anchor(key: str) -> bool:
    """Tell whether a tensor's key is that of a pretrained value."""
    return key.rpartition(".")[2].startswith(LAYOUT.pretrained_prefix)


def anchor_key(key: str) -> str:
    """Return the key of a parameter's pretrained value: `a.weight` → `a.pretrained_weight`."""
    module, _, name = key.rpartition(".")
    return f"{module}.{LAYOUT.pretrained_prefix}{name}".lstrip(".")


def weight_key(key: str) -> str:
    """Return the key of the parameter an anchor belongs to, the inverse of `anchor_key`."""
    module, _, name = key.rpartition(".")
    return f"{module}.{name.removeprefix(LAYOUT.pretrained_prefix)}".lstrip(".")


#: What batch normalization learns in buffers, not in parameters.
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def is_statistic(key: str) -> bool:
    """Tell whether a tensor holds statistics of batch normalization, by its key or its name."""
    return key.rpartition(".")[2] in _STATISTICS
