"""Select the modules of a model that are mixed."""

import difflib
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from mixout_export.config import ALL_CONV, ALL_LINEAR, MixoutConfig, TargetPattern
from mixout_export.errors import TargetError
from mixout_export.layers import (
    MIXABLE,
    MixoutConv1D,
    MixoutConvolution,
    MixoutLayer,
    MixoutLinear,
    is_mixable,
)

_HEAD = "belongs to the head"

#: Word in the targets → the kinds of layers that it stands for.
_KINDS: dict[str, tuple[type[MixoutLayer], ...]] = {
    ALL_LINEAR: (MixoutLinear, MixoutConv1D),
    ALL_CONV: (MixoutConvolution,),
}


@dataclass(frozen=True)
class Selection:
    """The modules that a configuration selects in a model.

    Attributes:
        names: Names of the modules to mix, in the model's order. A module with several names is
            listed once, by its first name.
        skipped: Name → reason, for each module that matched a target but is not mixed.
    """

    names: tuple[str, ...]
    skipped: dict[str, str]


def body_of(model: nn.Module) -> nn.Module:
    """Return a transformers model's `base_model`, or the model itself if it has none."""
    body = getattr(model, "base_model", None)
    return body if isinstance(body, nn.Module) else model


def transformers_models(model: nn.Module) -> dict[str, PreTrainedModel]:
    """Return the transformers models that a module is or holds, by name, without those inside one.

    A plain module around `AutoModel.from_pretrained(…)` holds one. "" is the module itself.
    """
    found: dict[str, PreTrainedModel] = {}
    for name, module in model.named_modules():
        inside = any(outer == "" or name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, PreTrainedModel) and not inside:
            found[name] = module
    return found


def module_ids(module: nn.Module) -> set[int]:
    """Return the `id` of a module and of all modules inside it."""
    return {id(child) for child in module.modules()}


def tied_weights(model: nn.Module) -> dict[int, list[str]]:
    """Return `id` of a module → full names of all modules that hold the same `weight` parameter."""
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
    """Return `id` → reason, for each module that is mixed only if a target is its full name."""
    reasons: dict[int, str] = {}
    for whole in (model, *transformers_models(model).values()):
        body = body_of(whole)
        if body is not whole:
            inside = module_ids(body) | {id(whole)}
            reasons |= {id(m): _HEAD for m in whole.modules() if id(m) not in inside}
        embeddings = getattr(whole, "get_output_embeddings", None)
        output = embeddings() if callable(embeddings) else None
        if isinstance(output, nn.Module):
            reasons[id(output)] = "is the output embedding"
    for module_id, names in tied_weights(model).items():
        reasons[module_id] = f"has a tied weight, shared by {', '.join(names)}"
    return reasons


def _all_names(model: nn.Module) -> dict[str, nn.Module]:
    """Return all modules by name. A shared module appears under each of its names."""
    return dict(model.named_modules(remove_duplicate=False))


def _similar_names(model: nn.Module, part: str, *, mixable_only: bool = True) -> str:
    names = [n for n, m in model.named_modules() if n and (is_mixable(m) or not mixable_only)]
    if not names:
        return "the model has no module that can be mixed"
    tails = sorted({name.rsplit(".", 1)[-1] for name in names})
    close = difflib.get_close_matches(part.rsplit(".", 1)[-1], tails, n=5, cutoff=0.5)
    close += difflib.get_close_matches(part, names, n=3, cutoff=0.6)
    listed = close or tails[:12]
    return f"similar names: {', '.join(dict.fromkeys(listed))}"


def match_modules(
    model: nn.Module, pattern: TargetPattern, *, option: str, mixable_only: bool = True
) -> dict[str, nn.Module]:
    """Return the modules that a pattern matches; each part of it must match at least one.

    Args:
        model: The model.
        pattern: The pattern.
        option: Name of the option that it came from, for error messages.
        mixable_only: Whether an error suggests only names of modules that can be mixed.

    Raises:
        TargetError: A part of the pattern matches no module.
    """
    names = _all_names(model)
    matched: dict[str, nn.Module] = {}
    for part in pattern.parts():
        found = {n: m for n, m in names.items() if pattern.part_matches(part, n)}
        if not found:
            raise TargetError(
                f"{option}: {part!r} matches no module of {type(model).__name__}; "
                f"{_similar_names(model, part, mixable_only=mixable_only)}"
            )
        matched |= found
    return matched


def _candidates(
    model: nn.Module, config: MixoutConfig, protected: dict[int, str]
) -> dict[str, nn.Module]:
    """Return the modules that the targets match and that can be mixed."""
    pattern = config.targets()
    found: dict[str, nn.Module] = {}
    if pattern.words:
        kinds = tuple(kind for word in pattern.words for kind in _KINDS[word])
        inside = module_ids(body_of(model))
        # Tied weights and output embeddings outside the body are reported as skipped. The rest of
        # the head is not: "all-linear" means the body.
        inside |= {i for i, reason in protected.items() if reason != _HEAD}
        names = _all_names(model)
        found = {n: m for n, m in names.items() if id(m) in inside and is_mixable(m, kinds)}
    matched = match_modules(model, pattern, option="target_modules")
    if pattern.regex is None:
        for name, module in matched.items():
            if not is_mixable(module):
                raise TargetError(
                    f"target_modules: {name!r} is a {type(module).__name__}, which cannot be "
                    f"mixed, only {MIXABLE} can; write a longer name suffix, or "
                    "a regular expression that does not match it"
                )
    return found | {n: m for n, m in matched.items() if is_mixable(m)}


def _reason(
    name: str,
    module: nn.Module,
    pattern: TargetPattern,
    *,
    protected: dict[int, str],
    fresh: Collection[str],
) -> str | None:
    """Return why a module that matched is not mixed, or None if it is mixed."""
    if pattern.names_exactly(name):
        return None
    own = name.rpartition(".")[2]
    own = own.rstrip("0123456789") or own
    linear = is_mixable(module, _KINDS[ALL_LINEAR])
    if pattern.regex is not None and not linear and own not in pattern.text:
        kind = "an Embedding" if isinstance(module, nn.Embedding) else f"a {type(module).__name__}"
        return f"is {kind}, which a regular expression mixes only if it contains {own!r}"
    reason = protected.get(id(module))
    return "has no pretrained weight" if reason is None and name in fresh else reason


def select_targets(
    model: nn.Module, config: MixoutConfig, *, fresh: Collection[str] = ()
) -> Selection:
    """Select the modules to mix, at least one. `inject_mixout` describes the arguments and errors.

    Modules are selected by exact type; see `layers.LAYER_CLASSES`. A regular expression selects
    every linear layer that it matches. It selects an embedding or a convolution only if it contains
    the last part of the module's name, without a number at its end. So ".*" selects neither.

    Some modules are skipped unless a pattern is their full name: those of the head, those with a
    tied weight, output embeddings, and those whose weight did not come from the base.
    """
    exclusions = config.exclusions()
    excluded = set() if exclusions is None else _excluded(model, exclusions)
    protected = _protected(model)
    pattern = config.targets()
    chosen: dict[int, str] = {}
    skipped: dict[str, str] = {}
    for name, module in _candidates(model, config, protected).items():
        if id(module) in excluded or id(module) in chosen:
            continue
        reason = _reason(name, module, pattern, protected=protected, fresh=fresh)
        if reason is not None:
            skipped[name] = reason
        elif "forward" in vars(module):
            raise TargetError(
                f"target_modules: {name!r} has its forward replaced on the instance (for example "
                "by a dispatch hook), which would bypass mixout; inject mixout before that"
            )
        elif getattr(module, "max_norm", None) is not None:
            raise TargetError(
                f"target_modules: {name!r} is an Embedding with a max_norm, which changes its "
                "rows when they are looked up, so it cannot be mixed; leave it out"
            )
        else:
            chosen[id(module)] = name
    if not chosen:
        raise TargetError(_nothing_left(model, config, skipped))
    order = {id(module): name for name, module in model.named_modules() if id(module) in chosen}
    return Selection(tuple(order.values()), skipped)


def _excluded(model: nn.Module, exclusions: TargetPattern) -> set[int]:
    matched = match_modules(model, exclusions, option="exclude_modules")
    return {id(child) for module in matched.values() for child in module.modules()}


def _nothing_left(model: nn.Module, config: MixoutConfig, skipped: dict[str, str]) -> str:
    head = f"target_modules: {config.target_modules!r} selects nothing to mix"
    if skipped:
        name, reason = next(iter(skipped.items()))
        more = f", and {len(skipped) - 1} more are skipped" if len(skipped) > 1 else ""
        return f"{head}: {name!r} {reason}{more}; to mix it anyway, write its full name"
    head = f"{head} in {type(model).__name__}"
    missing = [word for word in _KINDS if word not in config.targets().words]
    for word in missing if config.targets().words else ():
        count = sum(is_mixable(m, _KINDS[word]) for m in body_of(model).modules())
        if count:
            layers = f"{count} layer{'s' if count > 1 else ''}"
            return f"{head}, but {word!r} selects {layers}; write {word!r}"
    return f"{head}; {_similar_names(model, config.target_modules)}"
