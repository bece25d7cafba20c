import json
import random
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import killed_runs
import pytest
from checkpoints import TinyCheckpoints
from repeats import mostly_repeats
from shortcuts import real_curves
from training_runs import TrainingGround, same_weights, sentences, write_tsv

from mixout_export import load_mixout
from mixout_export.errors import ArgumentError, OutputError, TrainingStoppedError
from mixout_export.stages.train import DataOptions
from mixout_export.training.records import Observer

#: Masks and dropout are drawn, a step takes two batches, and neither evaluations nor
#: checkpoints fall on the ends of epochs (of 6 steps).
OPTIONS: dict[str, Any] = {
    "lr": 8e-3,
    "batch_size": 8,
    "gradient_accumulation": 2,
    "decay_toward": "pretrained",
    "device": "cpu",
    "epochs": 4.0,
    "eval_every": 2,
    "save_every": 4,
    "log_every": 3,
    "metric": "matthews",
    "seed": 1,
}


@pytest.fixture(scope="module", autouse=True)
def _real_curves() -> Iterator[None]:
    """Draw, as the processes that are killed do."""
    with real_curves():
        yield


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory, tiny: TinyCheckpoints) -> TrainingGround:
    return TrainingGround(tmp_path_factory.mktemp("ground"), tiny)


@pytest.fixture(scope="module")
def prepared(ground: TrainingGround) -> Path:
    return ground.prepared(p=0.3, dropout=0.05)


@pytest.fixture(scope="module")
def undisturbed(ground: TrainingGround, prepared: Path) -> Path:
    """The result of a run that nobody disturbed."""
    out = ground.root / "undisturbed"
    result = ground.run(out, prepared=prepared, data=ground.data(), **OPTIONS)
    assert result.steps == 24
    assert 0 < result.chosen_step < 24, "the best model must not be the last"
    return out


def assert_same_run(out: Path, undisturbed: Path) -> None:
    assert same_weights(out, undisturbed)
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in undisturbed.iterdir())
    for name in ("metrics.jsonl", "mixout_config.json", "config.json", "curves.png"):
        assert (out / name).read_bytes() == (undisturbed / name).read_bytes(), name
    ours, theirs = (json.loads((p / "training.json").read_text()) for p in (out, undisturbed))
    for record in (ours, theirs):
        del record["result"]["seconds"]
    assert ours == theirs
    anchors = [path / "pretrained.safetensors" for path in (out, undisturbed)]
    assert len({path.stat().st_ino for path in anchors}) == 1
    assert [p.name for p in out.parent.iterdir() if p.name.startswith("out")] == ["out"]
    load_mixout(out)


class Interrupting(Observer):
    """Raises once a run has done some steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def stepped(self, *, step: int, examples: int, loss: float | None) -> None:
        if step == self.step:
            raise KeyboardInterrupt


class Resumed(Observer):
    """Notes where a run starts."""

    done: int | None = None

    def started(self, *, steps: int, done: int, examples: int) -> None:
        self.done = done


def interrupt(ground: TrainingGround, prepared: Path, out: Path, step: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        ground.run(out, prepared=prepared, observer=Interrupting(step), resume=True, **OPTIONS)


# SIGKILL


@pytest.mark.parametrize("seed", mostly_repeats((0, 1), 0))
def test_killed_again_and_again_before_any_change_to_the_disk(
    ground: TrainingGround, prepared: Path, undisturbed: Path, tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    kills = 0
    while not (tmp_path / "out").exists():
        change = rng.randint(8, 70) if kills < 5 else None
        process = killed_runs.start(
            prepared, tmp_path / "out", ground.data(), OPTIONS, change=change
        )
        process.join(120)
        assert process.exitcode in (0, -9)
        kills += process.exitcode == -9
    assert kills == 5
    assert_same_run(tmp_path / "out", undisturbed)


def test_killed_again_and_again_in_its_last_part(
    ground: TrainingGround, prepared: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """From the last checkpoint on: choosing, drawing, recording, clearing."""
    out = tmp_path / "out"
    interrupt(ground, prepared, out, 24)
    kills = 0
    while not out.exists():
        process = killed_runs.start(prepared, out, ground.data(), OPTIONS, change=3 + 4 * kills)
        process.join(120)
        assert process.exitcode in (0, -9)
        kills += process.exitcode == -9
    assert kills >= 7
    assert_same_run(out, undisturbed)


def test_killed_before_each_change_of_its_appearing(
    ground: TrainingGround, prepared: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        finish_without_appearing(ground, prepared, out, patch)
    change = 0
    while not out.exists():
        change += 1
        process = killed_runs.start(prepared, out, ground.data(), OPTIONS, change=change)
        process.join(120)
        assert process.exitcode == -9
    # the folder, its lock, the manifest, the rename to OUT, and before the end of the lock
    assert change >= 5
    assert ground.run(out, prepared=prepared, resume=True, **OPTIONS).already_complete
    (out / ".mixout-export.lock").unlink()  # all that the last kill left behind
    assert_same_run(out, undisturbed)


def finish_without_appearing(
    ground: TrainingGround, prepared: Path, out: Path, patch: pytest.MonkeyPatch
) -> None:
    """Leave a run as a kill does between its last record and its appearance at OUT."""

    def killed(self: Any) -> None:
        raise KeyboardInterrupt

    patch.setattr("mixout_export.files.output.OutputFolder.publish", killed)
    with pytest.raises(KeyboardInterrupt):
        ground.run(out, prepared=prepared, **OPTIONS)


def test_killed_at_random_times(
    ground: TrainingGround, prepared: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    rng = random.Random(0)
    kills = 0
    while not out.exists():
        process = killed_runs.start(prepared, out, ground.data(), OPTIONS)
        written = size_of(partial / "metrics.jsonl")
        while kills < 4 and process.is_alive() and size_of(partial / "metrics.jsonl") == written:
            time.sleep(0.002)
        time.sleep(rng.uniform(0.0, 0.3))
        if kills < 4:
            process.kill()
        process.join(120)
        kills += process.exitcode == -9
    assert kills >= 1
    assert_same_run(out, undisturbed)


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


# Every other way


@pytest.mark.parametrize("step", [1, 4, 5, 7, 12, 17])
def test_interrupted_at_a_step_and_resumed(
    ground: TrainingGround, prepared: Path, undisturbed: Path, tmp_path: Path, step: int
) -> None:
    interrupt(ground, prepared, tmp_path / "out", step)
    assert not (tmp_path / "out").exists()
    resumed = Resumed()
    ground.run(tmp_path / "out", prepared=prepared, observer=resumed, resume=True, **OPTIONS)
    assert resumed.done == 4 * ((step - 1) // 4)  # the step was not yet saved
    assert_same_run(tmp_path / "out", undisturbed)


#: Step 5, whose checkpoint is the one to resume from, lies within a mask of steps 4 to 6.
HELD: dict[str, Any] = {**OPTIONS, "decay_toward": "zero", "resample_every": 3, "save_every": 5}


@pytest.mark.parametrize(
    "held",
    [
        {"anchor_decay": 0.9},
        {"anchor_decay": 0.9, "optimizer_scope": "active"},
        {"anchor_dtype": "bfloat16", "optimizer_scope": "active"},
    ],
    ids=lambda held: " ".join(map(str, held.values())),
)
def test_held_masks_moments_and_anchors_are_resumed(
    ground: TrainingGround, prepared: Path, tmp_path: Path, held: dict[str, Any]
) -> None:
    options = {**HELD, **held, "epochs": 2.0}
    for folder in ("whole", "cut"):
        (tmp_path / folder).mkdir()
    whole, out = tmp_path / "whole" / "out", tmp_path / "cut" / "out"
    ground.run(whole, prepared=prepared, data=ground.data(), **options)
    with pytest.raises(KeyboardInterrupt):
        ground.run(out, prepared=prepared, observer=Interrupting(7), resume=True, **options)
    ground.run(out, prepared=prepared, resume=True, **options)
    assert_same_run(out, whole)
    # The base's own values, whatever the anchors did.
    assert (out / "pretrained.safetensors").samefile(prepared / "pretrained.safetensors")


def test_a_run_that_is_asked_to_stop_saves_its_last_step_first(
    ground: TrainingGround, prepared: Path, undisturbed: Path, tmp_path: Path
) -> None:
    asked: list[int] = []

    def must_stop() -> bool:
        asked.append(len(asked) + 1)
        return len(asked) == 7

    out = tmp_path / "out"
    with pytest.raises(TrainingStoppedError, match="stopped after step 7 of"):
        ground.run(out, prepared=prepared, must_stop=must_stop, **OPTIONS)
    assert asked == [1, 2, 3, 4, 5, 6, 7]
    assert not out.exists()
    resumed = Resumed()
    ground.run(out, prepared=prepared, observer=resumed, resume=True, **OPTIONS)
    assert resumed.done == 7
    assert_same_run(out, undisturbed)


def test_a_run_in_progress_can_be_read(
    ground: TrainingGround, prepared: Path, tmp_path: Path
) -> None:
    interrupt(ground, prepared, tmp_path / "out", 9)
    partial = tmp_path / "out.partial"
    steps = [json.loads(line)["step"] for line in (partial / "metrics.jsonl").open()]
    assert steps == [0, 2, 3, 4, 6, 6, 8]
    checkpoints = sorted((partial / "checkpoints").iterdir())
    assert [path.name for path in checkpoints] == ["step-00000004", "step-00000008"]
    for path in (*checkpoints, partial / "best"):
        load_mixout(path)


def test_nothing_to_resume_starts_afresh(
    ground: TrainingGround, prepared: Path, undisturbed: Path, tmp_path: Path
) -> None:
    resumed = Resumed()
    ground.run(tmp_path / "out", prepared=prepared, observer=resumed, resume=True, **OPTIONS)
    assert resumed.done == 0
    assert_same_run(tmp_path / "out", undisturbed)


def test_a_complete_run_is_left_as_it_is(
    ground: TrainingGround, prepared: Path, undisturbed: Path
) -> None:
    def state() -> dict[str, tuple[int, int]]:
        return {p.name: (p.stat().st_mtime_ns, p.stat().st_ino) for p in undisturbed.iterdir()}

    before = state()
    result = ground.run(undisturbed, prepared=prepared, resume=True, **OPTIONS)
    assert result.already_complete
    assert (result.steps, result.out) == (24, undisturbed)
    assert result.metrics == recorded(undisturbed)["metrics"]
    assert state() == before


def recorded(out: Path) -> Mapping[str, Any]:
    result: Mapping[str, Any] = json.loads((out / "training.json").read_text())["result"]
    return result


def test_an_unfinished_run_is_not_thrown_away_by_accident(
    ground: TrainingGround, prepared: Path, tmp_path: Path
) -> None:
    interrupt(ground, prepared, tmp_path / "out", 9)
    before = (tmp_path / "out.partial" / "metrics.jsonl").read_bytes()
    with pytest.raises(OutputError, match="unfinished run; give --resume") as caught:
        ground.run(tmp_path / "out", prepared=prepared, **OPTIONS)
    assert "out.partial" in str(caught.value)
    assert (tmp_path / "out.partial" / "metrics.jsonl").read_bytes() == before
    resumed = Resumed()
    ground.run(tmp_path / "out", prepared=prepared, observer=resumed, overwrite=True, **OPTIONS)
    assert resumed.done == 0


def test_a_finished_run_that_has_not_appeared_is_not_thrown_away(
    ground: TrainingGround,
    prepared: Path,
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        finish_without_appearing(ground, prepared, tmp_path / "out", patch)
    with pytest.raises(OutputError, match="--resume"):
        ground.run(tmp_path / "out", prepared=prepared, **OPTIONS)
    patch_training(monkeypatch)
    result = ground.run(tmp_path / "out", prepared=prepared, resume=True, **OPTIONS)
    assert result.already_complete
    assert_same_run(tmp_path / "out", undisturbed)


def patch_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(self: Any) -> bool:
        raise AssertionError("it was trained again")

    monkeypatch.setattr("mixout_export.training.loop.Finetuning.run", trained)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"lr": 1e-3}, "with --lr 0.008, got 0.001"),
        ({"seed": 8}, "with --seed 1, got 8"),
        ({"epochs": 5.0}, "with --epochs 4.0, got 5.0"),
        ({"p": 0.5}, "without --p, got 0.5"),
        ({"batch_size": 16}, "with --batch-size 8, got 16"),
    ],
)
def test_other_settings_are_refused(
    ground: TrainingGround, prepared: Path, tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    interrupt(ground, prepared, tmp_path / "out", 5)
    before = sorted((tmp_path / "out.partial").rglob("*"))
    with pytest.raises(ArgumentError, match=f"was started {named}; leave it out"):
        ground.run(tmp_path / "out", prepared=prepared, resume=True, **{**OPTIONS, **change})
    assert sorted((tmp_path / "out.partial").rglob("*")) == before


def test_other_weights_are_refused(ground: TrainingGround, prepared: Path, tmp_path: Path) -> None:
    interrupt(ground, prepared, tmp_path / "out", 5)
    with pytest.raises(ArgumentError, match="was started from other weights"):
        ground.run(tmp_path / "out", prepared=ground.prepared("distilbert"), resume=True, **OPTIONS)


def test_other_data_are_refused(ground: TrainingGround, prepared: Path, tmp_path: Path) -> None:
    interrupt(ground, prepared, tmp_path / "out", 5)
    rows = sentences(96, seed=0)
    rows[50] = (rows[50][0], 1 - rows[50][1])
    one_label = write_tsv(tmp_path / "train-96.tsv", ("sentence", "label"), rows)
    other = DataOptions(one_label, ground.data().eval_file)
    with pytest.raises(ArgumentError, match="training-data-sha256"):
        ground.run(tmp_path / "out", prepared=prepared, data=other, resume=True, **OPTIONS)
    assert ground.data().train_file is not None
    swapped = DataOptions(ground.data().train_file, one_label)
    with pytest.raises(ArgumentError, match="evaluation-data-sha256"):
        ground.run(tmp_path / "out", prepared=prepared, data=swapped, resume=True, **OPTIONS)


def test_other_columns_are_refused(ground: TrainingGround, prepared: Path, tmp_path: Path) -> None:
    rows = [(text, "a dog", label) for text, label in sentences(96, seed=0)]
    file = write_tsv(tmp_path / "train.tsv", ("sentence", "other", "label"), rows)
    options = {**OPTIONS, "metric": None, "eval_every": None}
    with pytest.raises(KeyboardInterrupt):
        ground.run(
            tmp_path / "out",
            prepared=prepared,
            data=DataOptions(file),
            observer=Interrupting(5),
            **options,
        )
    with pytest.raises(ArgumentError, match="text-column sentence, got other"):
        ground.run(
            tmp_path / "out",
            prepared=prepared,
            data=DataOptions(file, text_column="other"),
            resume=True,
            **options,
        )


def test_a_run_resumes_where_files_have_moved(
    ground: TrainingGround, prepared: Path, undisturbed: Path, tmp_path: Path
) -> None:
    interrupt(ground, prepared, tmp_path / "out", 9)
    data = ground.data()
    assert data.train_file is not None
    moved = tmp_path / "train-96.tsv"
    moved.write_bytes(data.train_file.read_bytes())
    ground.run(
        tmp_path / "out",
        prepared=prepared,
        data=DataOptions(moved, data.eval_file),
        resume=True,
        **OPTIONS,
    )
    assert same_weights(tmp_path / "out", undisturbed)


def test_early_stopping_counts_on_after_a_resume(
    ground: TrainingGround, prepared: Path, tmp_path: Path
) -> None:
    options = {**OPTIONS, "lr": 0.0, "early_stopping": True, "save_every": 1}
    with pytest.raises(KeyboardInterrupt):
        ground.run(tmp_path / "out", prepared=prepared, observer=Interrupting(7), **options)
    result = ground.run(tmp_path / "out", prepared=prepared, resume=True, **options)
    assert result.stopped_early
    assert (result.chosen_step, result.steps) == (2, 8)


def test_a_run_that_stopped_early_does_not_go_on(
    ground: TrainingGround, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    options = {**OPTIONS, "lr": 0.0, "early_stopping": True}
    with monkeypatch.context() as patch:
        patch.setattr("mixout_export.training.snapshots.Snapshots.promote", killed)
        with pytest.raises(KeyboardInterrupt):
            ground.run(tmp_path / "out", prepared=prepared, **options)
    result = ground.run(tmp_path / "out", prepared=prepared, resume=True, **options)
    assert result.stopped_early
    assert (result.chosen_step, result.steps) == (2, 8)
