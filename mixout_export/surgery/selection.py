"""Which modules of a model mixout is injected into."""

import difflib
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass

from torch import nn

from mixout_export.config import ALL_LINEAR, MixoutConfig, TargetPattern
from mixout_export.errors import TargetError
from mixout_export.layers import is_mixable

_HEAD = "belongs to the head"


@dataclass(frozen=True)
class Selection:
    """The outcome of matching a configuration against a model.

    Attributes:
        names: Modules to mix, by their first name in the model, in the model's order.
        skipped: Modules that matched and are left alone, each with the reason.
    """

    names: tuple[str, ...]
    skipped: dict[str, str]


def body_of(model: nn.Module) -> nn.Module:
    """Return the pretrained body: a transformers model's `base_model`, else the model itself."""
    body = getattr(model, "base_model", None)
    return body if isinstance(body, nn.Module) else model


def _module_ids(module: nn.Module) -> set[int]:
    return {id(child) for child in module.modules()}


def tied_weights(model: nn.Module) -> dict[int, list[str]]:
    """Return, for each module that shares its weight with another, the names of all that do.

    Args:
        model: Any module.

    Returns:
        Module id → the full names of the modules that hold the same `weight` parameter.
    """
    holders: dict[int, dict[int, str]] = defaultdict(dict)
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        if weight is not None:
            holders[id(weight)].setdefault(id(module), name)
    return {
        module: list(names.values())
        for names in holders.values()
        if len(names) > 1
        for module in names
    }


def _protected(model: nn.Module) -> dict[int, str]:
    """Return the modules that are mixed only when named exactly, with the reason for each."""
    reasons: dict[int, str] = {}
    body = body_of(model)
    if body is not model:
        inside = _module_ids(body)
        for module in model.modules():
            if id(module) not in inside and module is not model:
                reasons[id(module)] = _HEAD
    embeddings = getattr(model, "get_output_embeddings", None)
    output = embeddings() if callable(embeddings) else None
    if isinstance(output, nn.Module):
        reasons[id(output)] = "is the output embedding"
    for module_id, names in tied_weights(model).items():
        reasons[module_id] = f"has a tied weight, shared by {', '.join(names)}"
    return reasons


def _all_names(model: nn.Module) -> dict[str, nn.Module]:
    """Return every name of every module, shared ones under each of their names."""
    return dict(model.named_modules(remove_duplicate=False))


def _near_misses(model: nn.Module, part: str) -> str:
    mixable = [n for n, m in model.named_modules() if is_mixable(m) and n]
    if not mixable:
        return "the model has no Linear or Conv1D module"
    tails = sorted({name.rsplit(".", 1)[-1] for name in mixable})
    close = difflib.get_close_matches(part.rsplit(".", 1)[-1], tails, n=5, cutoff=0.5)
    close += difflib.get_close_matches(part, mixable, n=3, cutoff=0.6)
    shown = close or tails[:12]
    return f"near misses: {', '.join(dict.fromkeys(shown))}"


def _match(model: nn.Module, pattern: TargetPattern, *, option: str) -> dict[str, nn.Module]:
    """Return the modules a pattern names; each part of it must name at least one."""
    names = _all_names(model)
    matched: dict[str, nn.Module] = {}
    for part in pattern.parts():
        found = {n: m for n, m in names.items() if pattern.part_matches(part, n)}
        if not found:
            raise TargetError(
                f"{option}: {part!r} matches no module of {type(model).__name__}; "
                f"{_near_misses(model, part)}"
            )
        matched |= found
    return matched


def _candidates(
    model: nn.Module, config: MixoutConfig, protected: dict[int, str]
) -> dict[str, nn.Module]:
    if config.target_modules == ALL_LINEAR:
        inside = _module_ids(body_of(model))
        # Outside the body, a tied weight and an output embedding are named as left alone; that
        # the head is no part of the body goes without saying.
        inside |= {i for i, reason in protected.items() if reason != _HEAD}
        return {n: m for n, m in _all_names(model).items() if id(m) in inside}
    pattern = config.targets()
    matched = _match(model, pattern, option="target_modules")
    if pattern.regex is None:
        for name, module in matched.items():
            if not is_mixable(module):
                raise TargetError(
                    f"target_modules: {name!r} is a {type(module).__name__}, which cannot be "
                    "mixed, expected exactly Linear or Conv1D, or Embedding; name it more fully, "
                    "or exclude it with a regular expression"
                )
    return matched


def _reason(
    name: str,
    module: nn.Module,
    config: MixoutConfig,
    *,
    protected: dict[int, str],
    fresh: Collection[str],
) -> str | None:
    """Return why a module that matched is left alone; None if it is mixed."""
    pattern = config.targets()
    if config.target_modules != ALL_LINEAR and pattern.names_exactly(name):
        return None
    own = name.rpartition(".")[2]
    if isinstance(module, nn.Embedding) and pattern.regex is not None and own not in pattern.text:
        return f"is an Embedding, which a regular expression mixes only if it spells {own!r}"
    reason = protected.get(id(module))
    return "has no pretrained weight" if reason is None and name in fresh else reason


def select_targets(
    model: nn.Module, config: MixoutConfig, *, fresh: Collection[str] = ()
) -> Selection:
    """Select the modules to mix.

    Modules are selected by exact type: `nn.Linear`, transformers' `Conv1D`, and on request
    `nn.Embedding`, which "all-linear" never takes, and a regular expression only if it spells the
    last part of its name, so that ".*" is not a request. A head, a tied weight, an output
    embedding and a weight that did not come from the base are left alone unless the pattern spells
    out their full name.

    Args:
        model: The model, of any class.
        config: Targets and exclusions.
        fresh: Names of modules whose weight did not come from the base.

    Returns:
        The selection, at least one module.

    Raises:
        TargetError: A pattern matches nothing, names a module that cannot be mixed, or nothing is
            left after exclusions.
    """
    exclusions = config.exclusions()
    excluded = set() if exclusions is None else _excluded(model, exclusions)
    protected = _protected(model)
    named = config.target_modules != ALL_LINEAR
    chosen: dict[int, str] = {}
    skipped: dict[str, str] = {}
    for name, module in _candidates(model, config, protected).items():
        mixable = is_mixable(module, embeddings=named)
        if not mixable or id(module) in excluded or id(module) in chosen:
            continue
        reason = _reason(name, module, config, protected=protected, fresh=fresh)
        if reason is not None:
            skipped[name] = reason
        elif "forward" in vars(module):
            raise TargetError(
                f"target_modules: {name!r} has its forward replaced on the instance (by a "
                "dispatch hook, say), which would bypass mixout; inject before that"
            )
        elif getattr(module, "max_norm", None) is not None:
            raise TargetError(
                f"target_modules: {name!r} is an Embedding with a max_norm, which rewrites its "
                "rows when they are looked up, so it cannot be mixed; leave it out"
            )
        else:
            chosen[id(module)] = name
    if not chosen:
        raise TargetError(_nothing_left(model, config, skipped))
    order = {id(module): name for name, module in model.named_modules() if id(module) in chosen}
    return Selection(tuple(order.values()), skipped)


def _excluded(model: nn.Module, exclusions: TargetPattern) -> set[int]:
    matched = _match(model, exclusions, option="exclude_modules")
    return {id(child) for module in matched.values() for child in module.modules()}


def _nothing_left(model: nn.Module, config: MixoutConfig, skipped: dict[str, str]) -> str:
    head = f"target_modules: {config.target_modules!r} selects nothing to mix"
    if skipped:
        name, reason = next(iter(skipped.items()))
        return (
            f"{head}: {name!r} {reason} (and {len(skipped) - 1} more are left alone); "
            "write its full name to mix it all the same"
        )
    return f"{head} in {type(model).__name__}; {_near_misses(model, config.target_modules)}"
