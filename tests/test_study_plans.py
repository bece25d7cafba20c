"""The plans in `examples/plans/`: each can be read, and has the runs that it promises."""

from pathlib import Path

import pytest
from pages import ROOT
from study_plans import study

from mixout_export.files.layout import LAYOUT
from mixout_export.stages.study.settings import (
    SCHEMA,
    check_settings,
    prepare_options,
    train_options,
)
from mixout_export.study.plan import read_plan
from mixout_export.study.runs import Run, data_files, expand, settings_of_runs

PLANS = sorted((ROOT / "examples" / "plans").glob("*.toml"))

#: Name → number of tasks, arms and seeds.
SIZES = {
    "head": (1, 3, 10),
    "long-recipe": (2, 4, 10),
    "p-sweep": (1, 7, 10),
    "paper": (4, 6, 20),
    "quick": (1, 3, 8),
    "strategies": (4, 4, 10),
}


@pytest.fixture
def glue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder in GLUE's format, as the plans expect it."""
    for task in ("RTE", "MRPC", "CoLA", "STS-B"):
        for name in ("train.tsv", "dev.tsv"):
            (tmp_path / task).mkdir(exist_ok=True)
            (tmp_path / task / name).write_text("sentence\tlabel\na\t0\n", encoding="utf-8")
    monkeypatch.setenv("GLUE", str(tmp_path))


def runs_of(path: Path) -> list[Run]:
    plan = read_plan(path, SCHEMA)
    settings = settings_of_runs(plan)
    check_settings(plan, settings)
    return expand(plan, base_sha256="", digests=dict.fromkeys(data_files(settings.values()), ""))


def test_there_is_a_plan_for_each_of_the_sizes() -> None:
    assert {path.stem for path in PLANS} == SIZES.keys()


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_a_plan_has_the_runs_that_it_promises(path: Path, glue: None) -> None:
    runs = runs_of(path)
    counts = [len({getattr(run, name) for run in runs}) for name in ("task", "arm", "seeds")]
    assert tuple(counts) == SIZES[path.stem]
    assert len(runs) == counts[0] * counts[1] * counts[2]
    for run in runs:
        prepare_options(run)
        _, options = train_options(run, device=None)
        assert options.select == "last"


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_no_two_arms_of_a_plan_are_the_same(path: Path, glue: None) -> None:
    runs = [run for run in runs_of(path) if run.seeds.head == 0]
    keys = [(run.task, str(run.prepare), str(run.train)) for run in runs]
    assert len(set(keys)) == len(keys)


def test_the_paper_is_run_as_it_was(glue: None) -> None:
    runs = runs_of(ROOT / "examples" / "plans" / "paper.toml")
    assert {run.base for run in runs} == {"google-bert/bert-large-uncased"}
    for run in runs:
        _, options = train_options(run, device=None)
        assert (options.lr, options.batch_size, options.epochs) == (2e-5, 32, 3.0)
        assert (options.examples, options.warmup_ratio, options.precision) == (None, 0.1, "fp32")


@pytest.mark.real
@pytest.mark.repeats
def test_the_quick_plan_answers(tmp_path: Path, real_checkpoint: Path) -> None:
    text = (ROOT / "examples" / "plans" / "quick.toml").read_text(encoding="utf-8")
    small = text.replace("seeds = 8", "seeds = 1").replace("examples = 1000", "examples = 64")
    assert small.count("seeds = 1\n") == small.count("examples = 64\n") == 1
    (tmp_path / "quick.toml").write_text(small, encoding="utf-8")
    result = study(tmp_path / "quick.toml", tmp_path / "out")
    assert (result.done, result.crashed) == (3, ())
    assert (tmp_path / "out" / LAYOUT.report).is_file()
