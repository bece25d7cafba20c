"""Under which names a model's tensors are stored."""

from collections.abc import Collection

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion


def disk_keys(model: nn.Module) -> dict[str, str]:
    """Return what each tensor is called on disk, by its state-dict key.

    transformers gives the tensors of some architectures other names when it saves them, those of
    the checkpoints that were there first; it merges and splits some (a mixture's experts, say),
    which are left out here.

    Args:
        model: Any module; one that is not a transformers model keeps its names.
    """
    state = {  # as transformers only moves them around, no tensor needs memory
        key: torch.empty_like(value, device="meta")
        for key, value in model.state_dict().items()
        if isinstance(value, torch.Tensor)  # not what `get_extra_state` returns
    }
    if not isinstance(model, PreTrainedModel):
        return {key: key for key in state}
    stored = revert_weight_conversion(model, dict(state))
    names = {id(value): name for name, value in stored.items()}
    return {key: names[id(value)] for key, value in state.items() if id(value) in names}


def merged_keys(model: PreTrainedModel, wanted: Collection[str]) -> dict[str, str]:
    """Return in which tensor on disk others lie that are merged on the way there.

    Each gets a number in place of its values, and is looked for by that number.

    Args:
        model: A transformers model.
        wanted: State-dict keys that `disk_keys` leaves out.

    Returns:
        State-dict key → key on disk, of those that lie in one tensor as they are.
    """
    numbers = {key: float(number) for number, key in enumerate(wanted, start=1)}
    state = {
        key: torch.tensor(numbers.get(key, 0.0)).expand(value.shape)
        for key, value in model.state_dict().items()
        if isinstance(value, torch.Tensor)
    }
    found = {}
    for name, value in revert_weight_conversion(model, dict(state)).items():
        for number, count in zip(*value.unique(return_counts=True), strict=True):
            for key in (key for key, own in numbers.items() if own == number):
                if state[key].numel() == count:
                    found[key] = name
    return found
