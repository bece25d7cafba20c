"""Inject mixout into a model, and collapse it back, in place."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from mixout_export.config import MixoutConfig
from mixout_export.errors import ArgumentError
from mixout_export.layers import MixoutLayer, to_mixout, to_plain
from mixout_export.surgery.key_names import disk_keys
from mixout_export.surgery.ranks import unwatch_anchors, watch_anchors
from mixout_export.surgery.selection import select_targets, transformers_models
from mixout_export.version import __version__

#: Format version of the record that `inject_mixout` writes to `model.config.mixout`.
RECORD_VERSION = 1

#: Attribute in which `load_mixout` stores the folder that a model's anchors came from.
ORIGIN_ATTRIBUTE = "_mixout_origin"


@dataclass(frozen=True)
class InjectionReport:
    """The result of `inject_mixout`.

    Attributes:
        replaced: Names of the modules that are mixed now, in the model's order.
        skipped: Name → reason, for each module that matched a target but was not mixed.
        parameters: Total number of weights that are mixed.
    """

    replaced: tuple[str, ...]
    skipped: dict[str, str]
    parameters: int


def mixout_layers(model: nn.Module) -> dict[str, MixoutLayer]:
    """Return the model's mixout layers by name. A shared layer appears once."""
    return {n: m for n, m in model.named_modules() if isinstance(m, MixoutLayer)}


def _refuse_second_injection(model: nn.Module) -> None:
    present = mixout_layers(model)
    if present:
        raise ArgumentError(
            f"model: {next(iter(present))!r} has mixout already, and a second injection would "
            "replace its pretrained weight by the current one; call collapse_mixout(model) first"
        )


def _refuse_new_anchors(model: nn.Module) -> None:
    """Refuse a model that was saved with mixout and loaded without: its anchors were not loaded."""
    for name, inner in transformers_models(model).items():
        if hasattr(inner.config, "mixout"):
            where = f"model: {name!r}" if name else "model:"
            raise ArgumentError(
                f"{where} was saved with mixout and loaded without its anchors, so the trained "
                "weights would become the anchors; load it with load_mixout(path), or collapse the "
                "folder first if you want new anchors"
            )


def inject_mixout(
    model: nn.Module, config: MixoutConfig | None = None, *, fresh: Collection[str] = ()
) -> InjectionReport:
    """Turn the selected layers of a model into mixout layers, in place.

    The current weights become the pretrained weights (the anchors). Every module object, parameter,
    hook and state-dict key stays the same. A transformers model, also one inside another module,
    gets a record in its `config.mixout`, which `save_pretrained` stores.

    Args:
        model: Any module.
        config: Which layers to mix, and how strongly. None means the defaults of `MixoutConfig`.
        fresh: Names of modules whose weight did not come from a pretrained checkpoint. They are not
            mixed unless the targets contain their full name.

    Returns:
        The names of the mixed and of the skipped modules.

    Raises:
        ArgumentError: The model has mixout already, or was saved with mixout and loaded without.
        TargetError: The targets select no module, or one that cannot be mixed.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> inject_mixout(model, MixoutConfig(p=0.7)).replaced
        ('0', '2')
    """
    config = config if config is not None else MixoutConfig()
    _refuse_second_injection(model)
    _refuse_new_anchors(model)
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
    """Turn the modules of these full names into mixout layers. If one fails, none is changed.

    The patterns of `config` are only recorded. `anchors` maps each name to u; None means the
    current weights.
    """
    _refuse_second_injection(model)
    modules = dict(model.named_modules())
    attached: list[MixoutLayer] = []
    try:
        for name in names:
            if name not in modules:
                raise ArgumentError(f"names: {type(model).__name__} has no module {name!r}")
            anchor = None if anchors is None else anchors[name]
            attached.append(
                to_mixout(modules[name], anchor, p=config.p, granularity=config.granularity)
            )
    except ArgumentError:
        for layer in attached:
            to_plain(layer)
        raise
    watch_anchors(model, mixout_layers(model))
    _record(model, names, config)


def _record(model: nn.Module, names: Sequence[str], config: MixoutConfig) -> None:
    """Record mixout in the configuration of each transformers model that a module is or holds.

    The names are those inside that model, which may be saved without the module around it.
    """
    for prefix, inner in transformers_models(model).items():
        start = f"{prefix}." if prefix else ""
        own = [name.removeprefix(start) for name in names if name.startswith(start)]
        if not own:
            continue
        record = {
            "format_version": RECORD_VERSION,
            "tool_version": __version__,
            **config.to_dict(),
            "modules": own,
        }
        keys = disk_keys(inner)
        mixed = {f"{name}.{part}" for name in own for part in ("weight", "pretrained_weight")}
        renamed = {key: keys[key] for key in mixed & keys.keys() if keys[key] != key}
        if renamed:
            record["keys"] = dict(sorted(renamed.items()))
        inner.config.mixout = record


def collapse_mixout(model: nn.Module) -> tuple[str, ...]:
    """Turn every mixout layer back into a plain layer, in place.

    The parameters stay the same objects. Nothing of mixout remains in the modules, the state dict
    or the configuration.

    Args:
        model: A module with mixout layers.

    Returns:
        The names of the collapsed modules.

    Raises:
        ArgumentError: The model holds no mixout layer.
    """
    layers = mixout_layers(model)
    if not layers:
        raise ArgumentError("model: holds no mixout layer, so there is nothing to collapse")
    for layer in layers.values():
        to_plain(layer)
    unwatch_anchors(model, layers)
    for inner in transformers_models(model).values():
        vars(inner).pop(ORIGIN_ATTRIBUTE, None)  # a later injection has other anchors
        if hasattr(inner.config, "mixout"):
            del inner.config.mixout
    return tuple(layers)
