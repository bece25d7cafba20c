import json
import math
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from mixout_export.errors import TrainingError
from mixout_export.training.records import LossWindow, MetricsLog


def window(*entries: tuple[int, float, float]) -> LossWindow:
    made = LossWindow()
    for step, loss, norm in entries:
        made.add(step, torch.tensor(loss), torch.tensor(norm))
    return made


def test_summary_is_the_mean_and_forgets() -> None:
    made = window((1, 2.0, 0.5), (2, 4.0, 1.5))
    made.check("")
    assert made.summary(1.0) == {"loss": 3.0, "grad_norm": 1.0, "clip_rate": 0.5}
    assert asdict(made) == {"steps": [], "losses": [], "norms": []}


def test_nothing_counts_as_clipped_where_nothing_is_clipped() -> None:
    made = window((1, 2.0, 5.0))
    made.check("")
    assert made.summary(0.0)["clip_rate"] == 0.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_named_with_its_step(value: float) -> None:
    made = window((11, 1.0, 1.0), (12, value, 1.0), (13, math.nan, 1.0))
    with pytest.raises(TrainingError, match=rf"the loss became {value} at step 12; lower the rate"):
        made.check("lower the rate")


def test_a_gradient_that_is_not_finite_is_named_too() -> None:
    with pytest.raises(TrainingError, match="the gradient norm became inf at step 4"):
        window((4, 1.0, math.inf)).check("")


def test_a_window_survives_being_stored() -> None:
    made = window((1, 0.1, 0.5), (2, 0.3, 1.5))
    made.check("")
    again = LossWindow(**json.loads(json.dumps(asdict(made))))
    again.add(3, torch.tensor(0.7), torch.tensor(1.0))
    made.add(3, torch.tensor(0.7), torch.tensor(1.0))
    again.check("")
    made.check("")
    assert again.summary(1.0) == made.summary(1.0)


def test_records_are_json_lines_with_null_for_nan(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append({"step": 1, "loss": 0.5})
    log.append({"step": 2, "eval_pearson": math.nan, "eval_loss": math.inf})
    assert log.path.read_text() == (
        '{"step": 1, "loss": 0.5}\n{"step": 2, "eval_pearson": null, "eval_loss": null}\n'
    )
    assert log.records()[1] == {"step": 2, "eval_pearson": None, "eval_loss": None}


def test_a_line_that_a_killed_run_left_unfinished_is_no_record(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append({"step": 1})
    with log.path.open("a") as stream:
        stream.write('{"step": 2, "lo')
    assert log.records() == [{"step": 1}]
    log.truncate(5)
    log.append({"step": 2})
    assert log.records() == [{"step": 1}, {"step": 2}]


def test_truncation_keeps_the_first_bytes_exactly(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in range(5):
        log.append({"step": step, "loss": 1 / 3 + step})
    whole = log.path.read_bytes()
    log.truncate(3)
    assert log.path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:3])
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_log_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    assert log.records() == []
    log.truncate(0)
    assert log.path.read_bytes() == b""
