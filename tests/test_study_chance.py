"""What counts as chance in a study of a language model."""

from pathlib import Path

from checkpoints import TinyCheckpoints
from study_plans import study
from task_data import task_data

from mixout_export.study.run_log import RunLog

PLAN = """
[study]
base = "{base}"
seeds = 1
prepare = {{ task = "masked-lm", p = 0 }}
train = {{ lr = 1e-3, batch-size = 16, max-steps = 4 }}

[[task]]
name = "verbs"
train-file = "{train}"
eval-file = "{dev}"

[[arm]]
name = "plain"

[[arm]]
name = "wild"
train = {{ lr = 1e30, max-grad-norm = 0, warmup-ratio = 0 }}
"""


def test_a_language_model_has_to_end_better_than_it_began(
    tiny: TinyCheckpoints, tmp_path: Path
) -> None:
    data = task_data(tmp_path, "masked-lm", train=64, dev=16)
    plan = tmp_path / "plan.toml"
    text = PLAN.format(base=tiny.base(), train=data.train_file, dev=data.eval_file)
    plan.write_text(text, encoding="utf-8")
    study(plan, tmp_path / "out")
    done, diverged = RunLog(tmp_path / "out" / "runs.jsonl").latest().values()
    for record in (done, diverged):
        assert (record.metric, record.lower_is_better) == ("loss", True)
        assert record.chance == record.metrics_before["loss"]
    assert (done.status, done.failed, done.compared_score) == ("done", False, done.score)
    assert (diverged.status, diverged.failed) == ("diverged", True)
    assert diverged.compared_score == diverged.chance
