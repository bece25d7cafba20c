import json
import math
from dataclasses import asdict
from typing import Any

import pytest

from mixout_export.errors import ArgumentError
from mixout_export.training.options import TrainOptions


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0.0),
        ("epochs", math.nan),
        ("epochs", math.inf),
        ("max_steps", 0),
        ("batch_size", 0),
        ("lr", -1e-5),
        ("lr", math.nan),
        ("lr", math.inf),
        ("warmup_ratio", 1.1),
        ("warmup_ratio", math.nan),
        ("scheduler", "steps"),
        ("weight_decay", -0.1),
        ("decay_toward", "anchor"),
        ("head_weight_decay", -0.1),
        ("max_length", 0),
        ("max_grad_norm", -1.0),
        ("gradient_accumulation", 0),
        ("precision", "fp8"),
        ("anchor_dtype", "int8"),
        ("seed", -1),
        ("seed", 2**63),
        ("data_seed", -1),
        ("examples", 0),
        ("examples_seed", 2**63),
        ("layer_lr_decay", 0.0),
        ("layer_lr_decay", 1.1),
        ("reinit_layers", 0),
        ("label_smoothing", 1.0),
        ("label_smoothing", -0.1),
        ("class_weights", "even"),
        ("class_weights", "1,0"),
        ("class_weights", "1,"),
        ("class_weights", "inf,1"),
        ("recipe", "large"),
        ("eval_every", 0),
        ("save_every", 0),
        ("keep", 0),
        ("patience", 0),
        ("select", "first"),
        ("tracker", "mlflow"),
        ("p", 1.0),
        ("p", -0.1),
        ("p", math.nan),
        ("log_every", 0),
    ],
)
def test_values_out_of_their_domain_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(
        ArgumentError, match=rf"^{field.replace('_', '-')}: .*got {value!r}".replace("'", ".?")
    ):
        TrainOptions(**{field: value})


def test_the_defaults_are_the_contracts() -> None:
    options = TrainOptions()
    assert (options.epochs, options.batch_size, options.lr) == (3, 32, 2e-5)
    assert (options.warmup_ratio, options.scheduler) == (0.1, "linear")
    assert (options.weight_decay, options.decay_toward) == (0.01, "zero")
    assert (options.max_grad_norm, options.gradient_accumulation) == (1.0, 1)
    assert (options.precision, options.seed, options.keep) == ("fp32", 0, 2)


def test_settings_survive_json() -> None:
    options = TrainOptions(p=0.5, select="last", max_steps=7)
    assert TrainOptions(**json.loads(json.dumps(asdict(options)))) == options


def test_active_scope_refuses_decay_of_all_columns() -> None:
    with pytest.raises(ArgumentError, match=r"optimizer-scope: .*--decay-toward"):
        TrainOptions(resample_every=2, optimizer_scope="active", decay_toward="pretrained")
