"""Under which names a model's tensors are stored."""

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
    stored = revert_weight_conversion(model, dict(state))  # type: ignore[no-untyped-call]
    names = {id(value): name for name, value in stored.items()}
    return {key: names[id(value)] for key, value in state.items() if id(value) in names}
