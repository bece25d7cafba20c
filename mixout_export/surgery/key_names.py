"""The names that a model's tensors have in a saved checkpoint."""

from collections.abc import Collection

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion


def disk_keys(model: nn.Module) -> dict[str, str]:
    """Map each state-dict key to the tensor's name on disk.

    When transformers saves a model, it renames the tensors of some architectures to the names that
    older checkpoints have. It also merges and splits some tensors, for example those of a mixture
    of experts. Those are left out here. Other models keep their state-dict keys.
    """
    state = {  # transformers only renames and reshapes them, so they need no memory
        key: torch.empty_like(value, device="meta")
        for key, value in model.state_dict().items()
        if isinstance(value, torch.Tensor)  # skips the results of `get_extra_state`
    }
    if not isinstance(model, PreTrainedModel):
        return {key: key for key in state}
    stored = revert_weight_conversion(model, dict(state))
    names = {id(value): name for name, value in stored.items()}
    return {key: names[id(value)] for key, value in state.items() if id(value) in names}


def merged_keys(model: PreTrainedModel, wanted: Collection[str]) -> dict[str, str]:
    """Map wanted state-dict keys to the names of the merged tensors on disk that hold them whole.

    Each wanted tensor, which `disk_keys` leaves out, is filled with a number of its own. That
    number is then searched for in the tensors that transformers would save.
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
