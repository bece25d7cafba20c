"""A study as a whole: its runs, its records, resuming."""

import dataclasses
import hashlib
import html
import json
import logging
import math
import os
import shlex
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from checkpoints import TinyCheckpoints
from cli_runs import Program, content
from study_plans import ARMS, InProcess, lines, study, summary, workers, write_plan
from training_runs import TrainingGround

from mixout_export.errors import DataError, OutputError, TrainingStoppedError
from mixout_export.files.layout import LAYOUT
from mixout_export.files.output import acquire_lock
from mixout_export.stages.study.dry_run import dry_run
from mixout_export.stages.study.engine import Job, Outcome
from mixout_export.stages.study.run import load_plan, run_study
from mixout_export.study.run_log import RunLog

THIRD = """
[[arm]]
name = "dropout"
inherit = "plain"
prepare = { dropout = 0.1 }
"""


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory, tiny: TinyCheckpoints) -> TrainingGround:
    return TrainingGround(tmp_path_factory.mktemp("study"), tiny)


@pytest.fixture(scope="module")
def finished(ground: TrainingGround) -> Path:
    """The folder of a finished study, with its plan beside it."""
    out = ground.root / "finished"
    study(write_plan(ground.root, ground), out)
    return out


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "out"))


def test_a_study_records_every_run_and_leaves_nothing_else(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    written = {"plan.toml", "runs.jsonl", "summary.json", "report.html", "pictures"}
    assert names == {".mixout-export.lock", *written}
    records = lines(finished)
    assert [(r["arm"], r["seeds"]["head"]) for r in records] == [
        *[("plain", 0), ("mixout 0.7", 0)],
        *[("plain", 1), ("mixout 0.7", 1)],
    ]
    assert len({record["key"] for record in records}) == 4
    for record in records:
        assert record["status"] == "done"
        assert record["score"] == record["metrics"]["accuracy"]
        assert record["chance"] >= 0.5
        assert record["distance"] > 0
        assert record["steps"] == 4
        assert [each["step"] for each in record["curve"]] == [0, 4, 4]
        assert 0 < record["training_seconds"] < record["seconds"]
        assert 0 < record["evaluation_seconds"] < record["seconds"]


def test_a_run_has_the_weights_of_the_same_commands_on_their_own(
    finished: Path, tmp_path: Path, capfd, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = lines(finished)[-1]
    monkeypatch.chdir(tmp_path)
    for command in record["commands"]:
        threads, name, *words = shlex.split(command)
        assert (threads, name) == ("OMP_NUM_THREADS=1", "mixout-export")  # as in all tests
        Program(capfd)(*words, "--quiet").done()
    found = hashlib.sha256((tmp_path / "trained" / "model.safetensors").read_bytes()).hexdigest()
    assert found == record["weights_sha256"]


def test_a_finished_study_runs_nothing_again(copied: Path, ground: TrainingGround) -> None:
    engine = InProcess()
    before = (copied / "runs.jsonl").read_bytes(), (copied / "summary.json").read_bytes()
    result = study(write_plan(copied.parent, ground), copied, engine=engine)
    assert (result.runs, result.done, result.new) == (4, 4, 0)
    assert engine.jobs == []
    assert ((copied / "runs.jsonl").read_bytes(), (copied / "summary.json").read_bytes()) == before


def test_a_finished_study_needs_no_engine(copied: Path, ground: TrainingGround) -> None:
    def start(_: object) -> Any:
        pytest.fail("an engine was made")

    result = run_study(write_plan(copied.parent, ground), copied, engine=start)
    assert (result.done, result.new) == (4, 0)


def test_added_seeds_and_arms_run_only_what_is_new(copied: Path, ground: TrainingGround) -> None:
    engine = InProcess()
    plan = write_plan(copied.parent, ground, seeds=3, arms=ARMS + THIRD)
    result = study(plan, copied, engine=engine)
    assert [(job.run.arm, job.run.seeds.head) for job in engine.jobs] == [
        ("dropout", 0),
        ("dropout", 1),
        *[("plain", 2), ("mixout 0.7", 2), ("dropout", 2)],
    ]
    assert (result.runs, result.done, result.new, result.other) == (9, 9, 5, 0)


def test_runs_that_the_plan_has_no_longer_stay_in_the_file(
    copied: Path, ground: TrainingGround
) -> None:
    result = study(write_plan(copied.parent, ground, seeds=1), copied)
    assert (result.runs, result.new, result.other) == (2, 0, 2)
    assert len(lines(copied)) == 4


def test_the_report_names_the_command_in_whatever_folder_it_is_typed(
    copied: Path, ground: TrainingGround, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = write_plan(copied.parent, ground).rename(copied.parent / "my plan.toml")
    monkeypatch.chdir(copied)
    study(plan, Path())
    page = html.unescape((copied / "report.html").read_text())
    assert "mixout-export study 'my plan.toml' out<" in page


def test_arms_with_equal_options_share_their_runs(copied: Path, ground: TrainingGround) -> None:
    same = '\n[[arm]]\nname = "the same"\nprepare = { p = 0.0, granularity = "neuron" }\n'
    result = study(write_plan(copied.parent, ground, arms=ARMS + same), copied)
    assert (result.runs, result.new) == (4, 0)
    assert [(arm.name, arm.runs) for arm in result.summary.tasks[0].arms] == [
        *[("plain", 2), ("mixout 0.7", 2), ("the same", 2)]
    ]


class Failing(InProcess):
    """An engine whose first attempts at a run fail."""

    def __init__(self, *failures: str | None) -> None:
        super().__init__()
        self._failures = list(failures)

    def wait(self, timeout: float) -> list[Outcome]:
        if self._failures and (failure := self._failures.pop(0)) is not None:
            return [Outcome(self._waiting.pop(), None, failure)]
        return super().wait(timeout)


def test_a_crashed_run_is_recorded_and_retried(finished: Path, ground, tmp_path: Path) -> None:
    engine = Failing(None, "lost", "lost again")
    result = study(write_plan(tmp_path, ground), tmp_path / "out", engine=engine)
    records = lines(tmp_path / "out")
    assert [(r["arm"], r["status"], r["attempt"], r["error"]) for r in records[:4]] == [
        ("plain", "done", 1, None),
        ("mixout 0.7", "crashed", 1, "lost"),
        ("mixout 0.7", "crashed", 2, "lost again"),
        ("mixout 0.7", "done", 3, None),
    ]
    assert (result.done, result.crashed) == (4, ())
    assert summary(tmp_path / "out") == summary(finished)


def test_a_run_that_always_crashes_is_given_up_until_the_next_start(
    ground: TrainingGround, tmp_path: Path
) -> None:
    plan = write_plan(tmp_path, ground, seeds=1)
    result = study(plan, tmp_path / "out", engine=Failing("a", "b", "c"))
    assert (result.done, [record.error for record in result.crashed]) == (1, ["c"])
    assert study(plan, tmp_path / "out").done == 2


def test_an_error_in_a_run_is_a_crash_and_the_study_goes_on(ground, tmp_path: Path) -> None:
    wrong = '\n[[arm]]\nname = "wrong"\nprepare = { target-modules = "nonesuch" }\n'
    result = study(write_plan(tmp_path, ground, seeds=1, arms=ARMS + wrong), tmp_path / "out")
    assert result.done == 2
    assert len(result.crashed) == 1
    assert "nonesuch" in result.crashed[0].error


def test_a_diverged_run_is_a_failed_run(ground: TrainingGround, tmp_path: Path) -> None:
    wild = '\n[[arm]]\nname = "wild"\ntrain = { lr = 1e30, max-grad-norm = 0, warmup-ratio = 0 }\n'
    result = study(write_plan(tmp_path, ground, seeds=1, arms=wild), tmp_path / "out")
    record = next(iter(RunLog(tmp_path / "out" / "runs.jsonl").latest().values()))
    assert (record.status, record.score, record.failed) == ("diverged", None, True)
    assert record.metric == "accuracy"
    assert record.chance >= 0.5
    assert record.compared_score == record.chance
    assert record.metrics_before
    assert (result.done, result.crashed) == (1, ())


def test_kept_checkpoints_are_those_of_the_records(ground: TrainingGround, tmp_path: Path) -> None:
    study(write_plan(tmp_path, ground, seeds=1, more="keep = true"), tmp_path / "out")
    for record in lines(tmp_path / "out"):
        weights = tmp_path / "out" / "checkpoints" / record["key"] / "model.safetensors"
        assert hashlib.sha256(weights.read_bytes()).hexdigest() == record["weights_sha256"]


def test_a_checkpoint_is_kept_if_the_study_is_killed_before_it_is_moved(
    copied: Path, ground: TrainingGround, caplog: pytest.LogCaptureFixture
) -> None:
    key = lines(copied)[0]["key"]
    (copied / "work" / key).mkdir(parents=True)
    with caplog.at_level(logging.WARNING):
        study(write_plan(copied.parent, ground, more="keep = true"), copied)
    assert [path.name for path in (copied / "checkpoints").iterdir()] == [key]
    assert not (copied / "work").exists()
    assert "keep: 3 of the runs ended without keep = true" in caplog.text


def test_a_study_goes_on_though_it_was_killed_while_it_wrote_its_report(
    copied: Path, ground: TrainingGround
) -> None:
    written = [copied / "report.html", *(copied / "pictures").iterdir()]
    for path in written:
        path.with_name(f"{path.name}.partial").write_text("half of it")
    study(write_plan(copied.parent, ground), copied)
    assert [path for path in written if not path.is_file()] == []
    assert list(copied.rglob("*.partial")) == []


def test_a_folder_inside_the_base_is_refused(ground: TrainingGround, tmp_path: Path) -> None:
    base = shutil.copytree(ground.base(), tmp_path / "base")
    plan = write_plan(tmp_path, ground)
    plan.write_text(plan.read_text().replace(str(ground.base()), "base"))
    before = content(base)
    with pytest.raises(OutputError, match="lies inside the base"):
        study(plan, base / "out")
    assert content(base) == before


def test_runs_of_a_changed_base_are_other_runs(ground: TrainingGround, tmp_path: Path) -> None:
    base = shutil.copytree(ground.base(), tmp_path / "base")
    plan = write_plan(tmp_path, ground)
    plan.write_text(plan.read_text().replace(str(ground.base()), "base"))
    keys = [{run.key for run in load_plan(plan)[1]}]
    for name in (LAYOUT.config, "tokenizer_config.json"):
        settings = json.loads((base / name).read_text())
        (base / name).write_text(json.dumps({**settings, "note": "changed"}))
        keys.append({run.key for run in load_plan(plan)[1]})
    assert not keys[0] & keys[1]
    assert not keys[1] & keys[2]
    (base / "README.md").write_text("No run reads this.")
    assert {run.key for run in load_plan(plan)[1]} == keys[2]


def test_a_budget_starts_no_new_run(ground: TrainingGround, tmp_path: Path) -> None:
    plan = write_plan(tmp_path, ground, more='budget = "1s"')
    out = tmp_path / "out"
    study(plan, out)
    path = out / "runs.jsonl"
    kept = [json.loads(line) for line in path.read_text().splitlines()][:2]
    path.write_text("".join(json.dumps({**r, "training_seconds": 0.6}) + "\n" for r in kept))
    result = study(plan, out)
    assert (result.done, result.new, result.stopped_by_budget) == (2, 0, True)


def test_a_second_study_on_one_folder_is_refused(copied: Path, ground: TrainingGround) -> None:
    with (
        acquire_lock(copied),
        pytest.raises(OutputError, match="another process is writing it"),
    ):
        study(write_plan(copied.parent, ground), copied)


def test_a_folder_that_holds_something_else_is_refused(ground, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("")
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="contains no study"):
            study(write_plan(tmp_path, ground), tmp_path / "out", overwrite=overwrite)


def test_overwrite_starts_anew(copied: Path, ground: TrainingGround) -> None:
    result = study(write_plan(copied.parent, ground, seeds=1), copied, overwrite=True)
    assert (result.new, len(lines(copied))) == (2, 2)


def test_an_unfinished_line_is_removed_and_its_run_done_again(
    copied: Path, finished: Path, ground: TrainingGround
) -> None:
    path = copied / "runs.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    result = study(write_plan(copied.parent, ground), copied)
    assert (result.done, result.new) == (4, 1)
    assert [r["weights_sha256"] for r in lines(copied)] == [
        r["weights_sha256"] for r in lines(finished)
    ]
    assert summary(copied) == summary(finished)


@pytest.mark.parametrize("line", [b"{", b"[]", b'{"key": 1}', b"\xff\xfe", b"", b"null"])
def test_a_line_that_is_no_record_is_named(
    copied: Path, ground: TrainingGround, line: bytes
) -> None:
    path = copied / "runs.jsonl"
    first, _, rest = path.read_bytes().partition(b"\n")
    path.write_bytes(first + b"\n" + line + b"\n" + rest)
    with pytest.raises(DataError, match=r"runs\.jsonl: line 2 is not the record"):
        study(write_plan(copied.parent, ground), copied)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("score", "0.5"),
        ("score", True),
        ("score", math.nan),
        ("steps", 4.5),
        ("seeds", {"head": "0", "data": 0, "masks": 0}),
        ("metrics", {"accuracy": [0.5]}),
        ("commands", "mixout-export"),
        ("curve", [1]),
    ],
)
def test_a_field_of_another_type_is_named(
    copied: Path, ground: TrainingGround, field: str, value: object
) -> None:
    path = copied / "runs.jsonl"
    first, *others = path.read_text().splitlines(keepends=True)
    path.write_text(json.dumps({**json.loads(first), field: value}) + "\n" + "".join(others))
    with pytest.raises(DataError, match=r"runs\.jsonl: line 1 is not the record"):
        study(write_plan(copied.parent, ground), copied)


def test_stopping_saves_the_run_in_progress_which_goes_on_exactly(
    finished: Path, ground: TrainingGround, tmp_path: Path
) -> None:
    class Stopping(InProcess):
        """Asks to stop while the second job runs, after its first step."""

        def submit(self, job: Job) -> None:
            if len(self.jobs) == 1:
                job.stop_file.touch()
            super().submit(job)

    plan, out, engine = write_plan(tmp_path, ground), tmp_path / "out", Stopping()
    asked = lambda: len(engine.jobs) > 1  # noqa: E731
    with pytest.raises(TrainingStoppedError, match="1 of 4 runs"):
        study(plan, out, engine=engine, must_stop=asked)
    assert len(lines(out)) == 1
    partial = next((out / "work").glob("*.partial"))
    assert list(partial.rglob("model.safetensors")), "no checkpoint was saved"
    assert study(plan, out).new == 3
    assert [r["weights_sha256"] for r in lines(out)] == [
        r["weights_sha256"] for r in lines(finished)
    ]
    assert summary(out) == summary(finished)


def test_worker_processes_give_the_same_records_and_one_may_be_killed(
    finished: Path, ground: TrainingGround, tmp_path: Path
) -> None:
    engine = workers(1)
    submitted: list[Job] = []
    submit = engine.submit

    def submit_and_kill(job: Job) -> None:
        submit(job)
        submitted.append(job)
        if len(submitted) == 1:
            worker = next(each for each in engine._running if each.job is job)
            os.kill(worker.process.pid, signal.SIGKILL)

    engine.submit = submit_and_kill  # type: ignore[method-assign]
    study(write_plan(tmp_path, ground), tmp_path / "out", engine=engine)
    records = RunLog(tmp_path / "out" / "runs.jsonl").latest()
    assert lines(tmp_path / "out")[0]["error"] == "the worker process ended by SIGKILL"
    assert {key: r.weights_sha256 for key, r in records.items()} == {
        r["key"]: r["weights_sha256"] for r in lines(finished)
    }
    assert summary(tmp_path / "out") == summary(finished)
    assert dataclasses.asdict(records[submitted[0].run.key])["attempt"] == 2


def test_a_dry_run_lists_the_runs_and_writes_nothing(
    copied: Path, ground: TrainingGround, tmp_path: Path
) -> None:
    plan = write_plan(tmp_path, ground, seeds=3)
    before = content(copied)
    planned = dry_run(plan, copied, workers=2, device="cpu")
    assert content(copied) == before
    assert [(run.arm, run.head, run.done) for run in planned.runs] == [
        *[("plain", 0, True), ("mixout 0.7", 0, True)],
        *[("plain", 1, True), ("mixout 0.7", 1, True)],
        *[("plain", 2, False), ("mixout 0.7", 2, False)],
    ]
    anew = dry_run(plan, copied, workers=2, device="cpu", overwrite=True)
    assert (anew.done, len(anew.runs)) == (0, 6)
    times = [run.seconds for run in planned.runs[4:]]
    assert planned.done == 4
    assert planned.seconds == pytest.approx(sum(filter(None, times)) / 2)
    known = [record["seconds"] for record in lines(copied) if record["arm"] == "plain"]
    assert times[0] == pytest.approx(sum(known) / 2)


def test_a_dry_run_says_whether_the_budget_suffices(copied: Path, ground: TrainingGround) -> None:
    spent = sum(record["training_seconds"] for record in lines(copied))
    needed = spent + 2 * sum(record["seconds"] for record in lines(copied)) / 4
    for budget, exceeds in ((math.ceil(needed + 1), False), (1, True)):
        plan = write_plan(copied.parent, ground, seeds=3, more=f'budget = "{budget}s"')
        assert dry_run(plan, copied, workers=2, device="cpu").exceeds_budget is exceeds
    finished = write_plan(copied.parent, ground, more='budget = "1s"')
    assert not dry_run(finished, copied, workers=2, device="cpu").exceeds_budget


def test_a_dry_run_without_records_tries_the_first_arm(ground, tmp_path: Path) -> None:
    longer = '\n[[arm]]\nname = "longer"\ntrain = { epochs = 1000 }\n'
    plan = write_plan(tmp_path, ground, seeds=1, arms=ARMS + longer)
    planned = dry_run(plan, tmp_path / "out", workers=1, device="cpu")
    assert not (tmp_path / "out").exists()
    plain, mixed, long = (run.seconds for run in planned.runs)
    assert plain is not None
    assert mixed == plain
    assert long is not None
    assert long > 2 * plain
    assert planned.seconds == pytest.approx(plain + plain + long)


def test_the_program_prints_the_recommendation_first(
    copied: Path,
    ground: TrainingGround,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mixout_export_cli.output._program", lambda: ["/my env/mixout-export"])
    program = Program(capfd)
    command = ("study", write_plan(copied.parent, ground), copied, "--device", "cpu")
    printed = program(*command).done().out.splitlines()
    assert printed[0].startswith("Too few runs to compare the arms")
    assert printed[2].startswith("moods: accuracy, 0.")
    assert printed[3].split() == ["arm", "runs", "mean", "95", "%", "interval", "best", "failed"]
    assert printed[-2] == f"{copied}: 4 of 4 runs are done, see {copied}/report.html"
    first = " && ".join(lines(copied)[0]["commands"])  # of the baseline, which is recommended
    here = first.replace(" mixout-export ", " '/my env/mixout-export' ")
    assert printed[-1] == f"next: cd {copied.parent} && {here}"
    values = program(*command, "--json").done().json
    assert (values["runs"], values["done"], values["new"], values["crashed"]) == (4, 4, 0, [])
    assert values["summary"]["recommendation"]["arm"] == "plain"
    planned = program(*command, "--dry-run", "--workers", 3).done().out.splitlines()
    assert len(planned) == 2 + 4 + 1
    assert planned[-1] == "4 runs, 4 done."


def test_the_program_says_which_runs_crashed_and_how_to_try_again(
    ground: TrainingGround, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    wrong = '\n[[arm]]\nname = "wrong"\nprepare = { target-modules = "nonesuch" }\n'
    plan = write_plan(tmp_path, ground, seeds=1, arms=wrong)
    command = ("study", plan, tmp_path / "out", "--device", "cpu", "--quiet")
    run = Program(capfd)(*command)
    assert run.code == 1
    assert run.words.startswith("mixout-export: 1 of 1 run crashed, the first with: ")
    assert "nonesuch" in run.words
    assert run.words.endswith(f"study {plan} {tmp_path}/out --device cpu --quiet\n")
    assert f"{tmp_path}/out: 0 of 1 runs are done" in run.out


def test_a_wrong_column_is_explained_for_the_plan(ground: TrainingGround, tmp_path: Path) -> None:
    wrong = '\n[[arm]]\nname = "wrong"\ntrain = { label-column = "topic" }\n'
    plan = write_plan(tmp_path, ground, seeds=1, arms=wrong)
    hint = "choose one with --label-column; in the plan, write options without the leading hyphens"
    with pytest.raises(DataError) as caught:
        dry_run(plan, tmp_path / "out", device="cpu")
    assert str(caught.value).endswith(hint)
    (crash,) = study(plan, tmp_path / "out").crashed
    assert crash.error.endswith(hint)


def test_what_is_refused_is_not_tried_with_other_seeds(
    ground: TrainingGround, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    wrong = '\n[[arm]]\nname = "wrong"\ntrain = { label-column = "topic" }\n'
    plan = write_plan(tmp_path, ground, seeds=3, arms=ARMS + wrong)
    result = study(plan, tmp_path / "out")
    assert (result.done, result.runs, result.stopped_by_budget) == (6, 9, False)
    assert [record["arm"] for record in lines(tmp_path / "out")].count("wrong") == 1
    run = Program(capfd)("study", plan, tmp_path / "out", "--device", "cpu", "--quiet")
    assert run.code == 1
    assert run.out.count("\ncrashed: moods, wrong, all seeds: ") == 1


def test_a_picture_that_cannot_be_drawn_does_not_end_the_runs(
    ground: TrainingGround,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    calls = []

    def broken(*arguments: Any, **options: Any) -> None:
        calls.append(arguments)
        if len(calls) == 1:
            raise ValueError("no ink")

    monkeypatch.setattr("mixout_export.report.study.page.write_study_report", broken)
    monkeypatch.setattr("mixout_export.stages.study.run._SUMMARY_INTERVAL", 0.0)
    assert study(write_plan(tmp_path, ground, seeds=1), tmp_path / "out").done == 2
    assert "the report so far could not be written: no ink" in caplog.text
    assert len(calls) == 3


def test_the_program_names_what_is_wrong(
    copied: Path, ground: TrainingGround, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    program = Program(capfd)
    plan = write_plan(copied.parent, ground)
    program("study", tmp_path / "nonesuch.toml", copied).failed(1, "cannot be read")
    program("study", plan, copied, "--workers", 0).failed(2, "--workers: got 0")
    program("study", plan, copied, "--workers", -1, "--dry-run").failed(2, "--workers: got -1")
    program("study", plan, copied, "--address", "a:1").failed(2, "--address: has no effect")
    words = ("--engine", "ray", "--device", "cuda:1")
    program("study", plan, copied, *words).failed(2, "--device: got 'cuda:1', but Ray chooses")
    program("study", plan, copied, "--device", "gpu").failed(2, "--device: got 'gpu'")
    for more in ((), ("--dry-run",)):
        program("study", plan, plan, *more).failed(1, "is a file")
        program("study", plan, ground.base(), *more).failed(1, "lies inside the base")
        program("study", plan, ground.root, *more).failed(1, "contains no study")
