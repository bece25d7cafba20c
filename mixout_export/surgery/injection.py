"""Inject mixout into a model, and collapse it back, in place."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from mixout_export.config import MixoutConfig
from mixout_export.errors import ArgumentError
from mixout_export.layers import MixoutLayer, to_mixout, to_plain
from mixout_export.surgery.key_names import disk_keys
from mixout_export.surgery.ranks import unwatch_anchors, watch_anchors
from mixout_export.surgery.selection import select_targets
from mixout_export.version import __version__

#: Version of the record that `inject_mixout` leaves in `model.config.mixout`.
RECORD_VERSION = 1

#: Attribute of a model in which `load_mixout` keeps the folder that its anchors came from.
ORIGIN_ATTRIBUTE = "_mixout_origin"


@dataclass(frozen=True)
class InjectionReport:
    """What `inject_mixout` did.

    Attributes:
        replaced: Names of the modules that are mixed now, in the model's order.
        skipped: Names of modules that matched and were left alone, each with the reason.
        parameters: Number of weights that are mixed.
    """

    replaced: tuple[str, ...]
    skipped: dict[str, str]
    parameters: int


def mixout_layers(model: nn.Module) -> dict[str, MixoutLayer]:
    """Return the model's mixout layers by name, each once."""
    return {n: m for n, m in model.named_modules() if isinstance(m, MixoutLayer)}


def _refuse_second_injection(model: nn.Module) -> None:
    present = mixout_layers(model)
    if present:
        raise ArgumentError(
            f"model: {next(iter(present))!r} has mixout already, and a second snapshot would move "
            "its anchor; collapse_mixout(model) first"
        )


def inject_mixout(
    model: nn.Module, config: MixoutConfig | None = None, *, fresh: Collection[str] = ()
) -> InjectionReport:
    """Replace the selected layers of a model by mixout layers anchored at their present weights.

    The change is in place and keeps every module object, parameter, hook and state-dict key. A
    transformers model also records it in `model.config.mixout`, which survives other people's
    `save_pretrained`.

    Args:
        model: Any module.
        config: What to mix and how strongly; the defaults of `MixoutConfig` if None.
        fresh: Names of modules whose weight did not come from a pretrained checkpoint and which
            are therefore left alone.

    Returns:
        What was replaced and what was left alone.

    Raises:
        ArgumentError: The model has mixout already.
        TargetError: The targets select nothing, or what cannot be mixed.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> inject_mixout(model, MixoutConfig(p=0.7)).replaced
        ('0', '2')
    """
    config = config if config is not None else MixoutConfig()
    _refuse_second_injection(model)
    selection = select_targets(model, config, fresh=fresh)
    attach_mixout(model, selection.names, config)
    layers = mixout_layers(model)
    return InjectionReport(
        replaced=selection.names,
        skipped=selection.skipped,
        parameters=sum(layers[name].weight.numel() for name in selection.names),
    )


def attach_mixout(
    model: nn.Module,
    names: Sequence[str],
    config: MixoutConfig,
    anchors: Mapping[str, Tensor] | None = None,
) -> None:
    """Make exactly the named modules mixout layers, with given anchors, or none of them.

    Args:
        model: Any module without mixout.
        names: Full module names.
        config: p and granularity; the patterns are only recorded.
        anchors: Module name → u, of the weight's shape; None anchors at the present weights.

    Raises:
        ArgumentError: A name is no Linear, Conv1D or Embedding of the model, or an anchor does not
            fit.
    """
    _refuse_second_injection(model)
    modules = dict(model.named_modules())
    attached: list[MixoutLayer] = []
    try:
        for name in names:
            if name not in modules:
                raise ArgumentError(f"module {name!r}: there is none in {type(model).__name__}")
            anchor = None if anchors is None else anchors[name]
            attached.append(
                to_mixout(modules[name], anchor, p=config.p, granularity=config.granularity)
            )
    except ArgumentError:
        for layer in attached:  # all or nothing
            to_plain(layer)
        raise
    watch_anchors(model, mixout_layers(model))
    _record(model, names, config)


def _record(model: nn.Module, names: Sequence[str], config: MixoutConfig) -> None:
    model_config = getattr(model, "config", None)
    if model_config is not None and hasattr(model_config, "to_dict"):
        record = {
            "format_version": RECORD_VERSION,
            "tool_version": __version__,
            **config.to_dict(),
            "modules": list(names),
        }
        keys = disk_keys(model)
        mixed = {f"{name}.{part}" for name in names for part in ("weight", "pretrained_weight")}
        renamed = {key: keys[key] for key in mixed & keys.keys() if keys[key] != key}
        if renamed:
            record["keys"] = dict(sorted(renamed.items()))
        model_config.mixout = record


def collapse_mixout(model: nn.Module) -> tuple[str, ...]:
    """Turn every mixout layer back into the plain layer it stands for, in place.

    The layers keep the very same parameters; nothing of mixout stays in the modules, in the state
    dict or in the configuration.

    Args:
        model: A module with mixout layers.

    Returns:
        The names of the collapsed modules.

    Raises:
        ArgumentError: The model holds no mixout layer.
    """
    layers = mixout_layers(model)
    if not layers:
        raise ArgumentError("model: holds no mixout layer, expected at least one to collapse")
    for layer in layers.values():
        to_plain(layer)
    unwatch_anchors(model, layers)
    vars(model).pop(ORIGIN_ATTRIBUTE, None)  # anchors of a later injection come from elsewhere
    if hasattr(getattr(model, "config", None), "mixout"):
        del model.config.mixout  # type: ignore[union-attr]
    return tuple(layers)
