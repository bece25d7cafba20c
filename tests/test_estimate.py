"""The memory that `train` estimates before its first step, against what a step uses."""

import pytest
import torch
from checkpoints import TinyCheckpoints
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from mixout_export import MaskSchedule, MixoutAdamW, MixoutConfig, inject_mixout
from mixout_export.surgery.injection import mixout_layers
from mixout_export.training.estimate import training_bytes
from mixout_export.training.options import TrainOptions


@pytest.mark.parametrize("p", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("scope", ["all", "active"])
def test_bytes_of_gradients_and_optimizer(p: float, scope: str, tiny: TinyCheckpoints) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(tiny.classifier())
    inject_mixout(model, MixoutConfig(p=p))
    options = TrainOptions(resample_every=1, optimizer_scope=scope)
    optimizer = MixoutAdamW(model, scope=scope)  # type: ignore[arg-type]
    schedule = MaskSchedule(model)
    torch.manual_seed(0)
    for _ in range(2):  # the second backward pass begins with a state
        schedule.step()
        model.train()(torch.arange(5, 13).view(2, 4), labels=torch.tensor([0, 1])).loss.backward()
        known = [q.grad for q in model.parameters() if q.grad is not None]
        gradients: list[Tensor] = [gradient for gradient in known if not gradient.is_sparse]
        for layer in mixout_layers(model).values():
            if layer.compact is not None and layer.compact.slices is not None:
                gradients.append(layer.compact.slices.values)
        used = sum(tensor.nbytes for tensor in gradients)
        optimizer.step()
        optimizer.zero_grad()
    moments = ("exp_avg", "exp_avg_sq")
    used += sum(state[name].nbytes for state in optimizer.state.values() for name in moments)
    assert training_bytes(model, options) == pytest.approx(used, rel=0.05)
