"""`train --recipe`, and the advice after a run that has learned nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
from checkpoints import TinyCheckpoints
from cli_runs import Program
from training_runs import TrainingGround, sentences, write_tsv

from mixout_export.recipes import RECIPES, recipe_values, with_recipe
from mixout_export.stages.train import advice_for
from mixout_export.training.options import TrainOptions


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory, tiny: TinyCheckpoints) -> TrainingGround:
    return TrainingGround(tmp_path_factory.mktemp("ground"), tiny)


@pytest.fixture
def program(capsys: pytest.CaptureFixture[str]) -> Program:
    return Program(capsys)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_gives_what_is_not_given(name: str) -> None:
    values = RECIPES[name]
    made = TrainOptions.given(recipe=name, seed=3)
    assert {option: getattr(made, option) for option in values} == values
    assert (made.recipe, made.seed, made.batch_size) == (name, 3, TrainOptions.batch_size)
    # A given value takes precedence, although it is the usual default.
    assert TrainOptions.given(recipe=name, lr=TrainOptions.lr).lr == TrainOptions.lr
    assert with_recipe({"lr": 0.5}) == {"lr": 0.5}


def test_the_values_of_a_recipe_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        RECIPES, "small", {"lr": 3e-4, "decay_toward": "pretrained", "epochs": 10.0}
    )
    options = {"lr": 3e-4, "decay_toward": "pretrained", "epochs": 2.0}
    assert recipe_values("small", options) == "lr 0.0003, decay-toward pretrained"
    assert recipe_values("standard", {"lr": 1.0}) == "no values, because all were given"


def train(program: Program, ground: TrainingGround, out: Path, *options: Any) -> Any:
    data = ground.data()
    files = ("--train-file", data.train_file, "--eval-file", data.eval_file)
    return program("train", ground.prepared(), out, *files, "--device", "cpu", *options).done()


def recorded(out: Path) -> dict[str, Any]:
    options: dict[str, Any] = json.loads((out / "training.json").read_text())["settings"]["options"]
    return options


def test_a_recipe_is_printed_recorded_and_shown_in_the_card(
    program: Program, ground: TrainingGround, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run = train(program, ground, out, "--recipe", "small", "--epochs", "1")
    lr, values = RECIPES["small"]["lr"], {**RECIPES["small"], "epochs": 1.0}
    said = recipe_values("small", values)
    assert said.startswith(f"lr {lr:g}")
    assert f"\nrecipe small: {said}\n" in run.out
    options = recorded(out)
    assert (options["recipe"], options["lr"], options["epochs"]) == ("small", lr, 1.0)
    card = (out / "README.md").read_text("utf-8")
    assert f"| recipe | small ({said}) |" in card
    assert f"| peak learning rate | {lr:g} |" in card


def test_a_resumed_run_keeps_its_values_even_if_the_recipe_changes(
    program: Program, ground: TrainingGround, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    data, options = ground.data(), TrainOptions.given(recipe="small", epochs=1, device="cpu")
    stop = {"must_stop": lambda: True, "prepared": ground.prepared(), "data": data}
    with pytest.raises(Exception, match="stopped after step 1"):
        ground.run(out, **stop, **{**vars(options), "batch_size": 16})
    monkeypatch.setitem(RECIPES, "small", {"lr": 0.5})
    program("train", ground.prepared(), out, "--resume", "--recipe", "standard").failed(
        2, "with --recipe small, got standard"
    )
    program("train", ground.prepared(), out, "--resume", "--recipe", "small").done()
    assert recorded(out)["lr"] == options.lr


def test_a_run_that_learned_nothing_is_told_what_to_try(
    program: Program, ground: TrainingGround, tmp_path: Path
) -> None:
    rows = [
        (text.rsplit(" ", 1)[0], int(n % 4 == 0))
        for n, (text, _) in enumerate(sentences(40, seed=0))
    ]
    file = write_tsv(tmp_path / "same.tsv", ("sentence", "label"), rows)
    run = program(
        *("train", ground.prepared(), tmp_path / "out", "--train-file", file, "--eval-file", file),
        *("--device", "cpu", "--max-steps", 2),
    )
    assert run.code == 0, run.err
    said = "no better than always giving the most frequent answer (accuracy 0.7500)"
    assert f"note: the model ended {said}; try --recipe small\n" in run.out
    assert run.out.rstrip().splitlines()[-1].startswith("next: ")


def test_advice_follows_the_metric_and_the_loss(ground: TrainingGround, tmp_path: Path) -> None:
    common: dict[str, Any] = {"prepared": ground.plain(), "log_every": 1, "select": "last"}
    still = ground.run(tmp_path / "still", max_steps=4, lr=0.0, **common)
    still = type(still)(**{**vars(still), "chance": {"accuracy": 0.0}})
    found = advice_for(still, TrainOptions())
    assert found is not None
    assert found.startswith("the training loss hardly fell, from 0.")
    assert found.endswith("try --recipe small")
    again = advice_for(still, TrainOptions(recipe="small"))
    assert again is not None
    assert "--recipe" not in again
    learned = ground.run(tmp_path / "learned", epochs=8, **common)
    assert advice_for(learned, TrainOptions()) is None
    alone = ground.run(tmp_path / "alone", data=ground.alone(), max_steps=2, lr=0.0)
    assert advice_for(alone, TrainOptions()) is None
