"""Plans: what they say, what is wrong with them, and the runs that they make."""

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_cli_help import options_of

from mixout_export.errors import PlanError
from mixout_export.recipes import RECIPES
from mixout_export.stages.study.settings import SCHEMA, check_settings, train_options
from mixout_export.study.options import hyphenated
from mixout_export.study.plan import Plan, read_plan
from mixout_export.study.records import Seeds
from mixout_export.study.runs import Run, _quoted, data_files, expand, settings_of_runs
from mixout_export_cli.commands.prepare import _parse_labels

STUDY = """
[study]
base = "demo-base"
seeds = 2
"""
TASK = """
[[task]]
name = "CoLA"
train-file = "train.tsv"
eval-file = "dev.tsv"
prepare = { task = "text-classification", labels = 2 }
"""
ARM = """
[[arm]]
name = "plain"
prepare = { p = 0 }
"""


def read(folder: Path, text: str) -> Plan:
    (folder / "plan.toml").write_text(text, encoding="utf-8")
    for name in ("train.tsv", "dev.tsv"):
        (folder / name).write_text("sentence\tlabel\na\t0\n", encoding="utf-8")
    return read_plan(folder / "plan.toml", SCHEMA)


def runs_of(plan: Plan, *, base: str = "b", digests: dict[str, str] | None = None) -> list[Run]:
    settings = settings_of_runs(plan)
    check_settings(plan, settings)
    found = {
        file: (digests or {}).get(file.name, file.name) for file in data_files(settings.values())
    }
    return expand(plan, base_sha256=base, digests=found)


def arms(*lines: str) -> str:
    return "".join(f'\n[[arm]]\nname = "arm {n}"\n{line}\n' for n, line in enumerate(lines))


def test_a_recipe_is_replaced_by_its_values(tmp_path: Path) -> None:
    values = ", ".join(f"{hyphenated(k)} = {v}" for k, v in RECIPES["small"].items())
    lines = (
        'train = { recipe = "small" }',
        f"train = {{ {values} }}",
        'train = { recipe = "small", lr = 2e-5 }',  # a given value, though it is the default
    )
    recipe, stated, other = runs_of(read(tmp_path, STUDY + TASK + arms(*lines)))[:3]
    assert recipe.train == stated.train
    assert recipe.key == stated.key
    assert recipe.commands == stated.commands
    assert "lr" not in other.train
    with pytest.raises(PlanError, match="recipe: got 'large', expected one of small, standard"):
        runs_of(read(tmp_path, STUDY + TASK + arms('train = { recipe = "large" }')))


def test_the_shortest_plan(tmp_path: Path) -> None:
    plan = read(tmp_path, STUDY + TASK + ARM)
    assert plan.seeds == (Seeds(0, 0, 0), Seeds(1, 1, 1))
    assert (plan.baseline, plan.budget, plan.threads, plan.keep) == ("plain", None, 1, False)
    first = runs_of(plan)[0]
    assert first.prepare == {"labels": 2, "p": 0.0, "task": "text-classification"}
    assert first.train == {"select": "last"}
    assert first.metric == "accuracy"
    assert first.data == {"eval_file": tmp_path / "dev.tsv", "train_file": tmp_path / "train.tsv"}


def test_the_later_of_study_task_and_arm_wins(tmp_path: Path) -> None:
    study = STUDY + "train = { lr = 1e-5, epochs = 1, batch-size = 8 }\nexamples = 500\n"
    task = TASK + "train = { epochs = 2, batch_size = 4 }\nexamples = 50\n"
    plan = read(tmp_path, study + task + arms("train = { batch-size = 2 }"))
    assert runs_of(plan)[0].train == {
        "batch_size": 2, "epochs": 2.0, "examples": 50, "lr": 1e-5, "select": "last",
    }  # fmt: skip


def test_arms_inherit_the_options_of_another_arm(tmp_path: Path) -> None:
    text = """
[[arm]]
name = "grandchild"
inherit = "child"
train = { lr = 3e-5 }
[[arm]]
name = "child"
inherit = "parent"
prepare = { p = 0.5 }
[[arm]]
name = "parent"
prepare = { p = 0.9, dropout = 0.1 }
train = { lr = 1e-5, epochs = 9 }
"""
    first = runs_of(read(tmp_path, STUDY + TASK + text))[0]
    assert (first.prepare["p"], first.prepare["dropout"]) == (0.5, 0.1)
    assert (first.train["lr"], first.train["epochs"]) == (3e-5, 9.0)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("3", [(0, 0, 0), (1, 1, 1), (2, 2, 2)]),
        ("[7, 4]", [(7, 7, 7), (4, 4, 4)]),
        ("{ head = [1, 2], data = 5, masks = [3, 4] }", [(1, 5, 3), (2, 5, 4)]),
        ("{ head = 1, data = 2, masks = 3 }", [(1, 2, 3)]),
    ],
)
def test_seeds(tmp_path: Path, given: str, expected: list[tuple[int, int, int]]) -> None:
    plan = read(tmp_path, STUDY.replace("seeds = 2", f"seeds = {given}") + TASK + ARM)
    assert plan.seeds == tuple(Seeds(*each) for each in expected)
    run = runs_of(plan)[-1]
    _, options = train_options(run, device=None)
    assert (options.seed, options.data_seed) == (run.seeds.masks, run.seeds.data)


def test_runs_go_by_seed_then_task_then_arm_and_share_prepared_checkpoints(tmp_path: Path) -> None:
    text = STUDY + TASK + TASK.replace("CoLA", "again").replace("labels = 2", "labels = 3")
    made = arms("prepare = { p = 0 }", "", "prepare = { p = 0 }\ntrain = { lr = 1 }")
    runs = runs_of(read(tmp_path, text + made))
    order = [(run.seeds.head, run.task, run.arm[-1]) for run in runs]
    assert order == [(s, t, a) for s in (0, 1) for t in ("CoLA", "again") for a in ("0", "2", "1")]
    assert [r.prepared_key for r in runs[:3]].count(runs[0].prepared_key) == 2
    assert len({run.prepared_key for run in runs}) == 8


def key(folder: Path, text: str, **more: Any) -> str:
    return runs_of(read(folder, text), **more)[0].key


def test_names_paths_and_stated_defaults_do_not_change_a_key(tmp_path: Path) -> None:
    first = key(tmp_path, STUDY + TASK + ARM)
    renamed = (STUDY + TASK + ARM).replace("CoLA", "other").replace('"plain"', '"bare"')
    (tmp_path / "deep").mkdir()
    for folder, text in (
        (tmp_path / "deep", STUDY + TASK + ARM),
        (tmp_path, renamed),
        (tmp_path, STUDY + "threads = 2\n" + TASK + ARM),
        (tmp_path, STUDY + 'metric = "accuracy"\n' + TASK + ARM),
        (tmp_path, STUDY + "train = { lr = 2e-5, batch-size = 32 }\n" + TASK + ARM),
        (tmp_path, STUDY + TASK + ARM.replace("p = 0", "p = 0.0, granularity = 'neuron'")),
    ):
        assert key(folder, text) == first


def test_whatever_changes_a_result_changes_a_key(tmp_path: Path) -> None:
    text = STUDY + TASK + ARM
    keys = [
        key(tmp_path, text),
        key(tmp_path, text, base="other"),
        key(tmp_path, text, digests={"train.tsv": "x"}),
        key(tmp_path, text, digests={"dev.tsv": "x"}),
        key(tmp_path, text.replace("seeds = 2", "seeds = [1]")),
        key(tmp_path, text.replace("seeds = 2", "seeds = { head = 0, data = 0, masks = 1 }")),
        key(tmp_path, text.replace("p = 0", "p = 0.1")),
        key(tmp_path, text.replace("seeds = 2", "seeds = 2\nexamples = 5")),
        key(tmp_path, text.replace("seeds = 2", "seeds = 2\nmetric = 'f1'")),
        key(tmp_path, text.replace("seeds = 2", "seeds = 2\ntrain = { lr = 1e-3 }")),
        key(tmp_path, text.replace("seeds = 2", "seeds = 2\ntrain = { select = 'best' }")),
    ]
    assert len(set(keys)) == len(keys)


def test_a_key_stays_the_same_from_version_to_version(tmp_path: Path) -> None:
    """If this fails, records of earlier studies are not recognized any more."""
    text = STUDY + TASK + ARM.replace("p = 0", 'p = 0, labels = ["no", "yes"]')
    found = runs_of(read(tmp_path, text.replace("seeds = 2", "seeds = [3]\nexamples = 10")))[0]
    assert found.key == "de0a0809d6badec597ccd487f79c504b00394b7106f57c00b8d8f66633255be9"


def test_paths_are_relative_to_the_plan_and_variables_are_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATA", str(tmp_path))
    plan = read(tmp_path, STUDY + TASK.replace("train.tsv", "$DATA/train.tsv") + ARM)
    run = runs_of(plan)[0]
    assert run.data["train_file"] == tmp_path / "train.tsv"
    assert '--train-file "$DATA/train.tsv"' in run.commands[1]  # no path of this machine
    assert "--eval-file dev.tsv" in run.commands[1]
    monkeypatch.delenv("DATA")
    with pytest.raises(PlanError, match="'CoLA': the environment variable DATA is not set"):
        read_plan(plan.file, SCHEMA)


@pytest.mark.parametrize("given", ["""'"yes, sir",no'""", '["yes, sir", "no"]'])
def test_a_label_may_contain_a_comma(tmp_path: Path, given: str) -> None:
    run = runs_of(read(tmp_path, STUDY + TASK.replace("= 2 }", f"= {given} }}") + ARM))[0]
    assert run.prepare["labels"] == ("yes, sir", "no")
    words = shlex.split(run.commands[0])
    assert _parse_labels((words[words.index("--labels") + 1],)) == ["yes, sir", "no"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell")
@pytest.mark.parametrize(
    ("path", "meant"),
    [("a b", "a b"), ("$X/a b", "/x/a b"), ("~/$X/y", "/h//x/y"), ('$X/"`id`\\', '/x/"`id`\\')],
)
def test_a_shell_reads_the_path_that_the_plan_means(path: str, meant: str) -> None:
    command = ["sh", "-c", f"printf %s {_quoted(path)}"]
    said = subprocess.run(command, env={"X": "/x", "HOME": "/h"}, stdout=subprocess.PIPE, text=True)
    assert said.stdout == meant


def test_a_budget_is_a_duration(tmp_path: Path) -> None:
    for text, seconds in (("4h", 14400), ("90m", 5400), ("1h 30m", 5400), ("45 s", 45)):
        assert read(tmp_path, f'{STUDY}budget = "{text}"\n{TASK}{ARM}').budget == seconds


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[study\n", ["is not valid TOML", "line 1"]),
        (TASK + ARM, ["[study]", "base is missing"]),
        ('[study]\nbase = "b"\n' + TASK + ARM, ["[study]: seeds: is missing"]),
        ("seeds = " + "1" * 5000, ["an integer in it is too long"]),
        ("seeds = " + "[" * 5000, ["a list or table in it is too long"]),
        (STUDY + ARM, ["has no task", "[[task]]"]),
        (STUDY + TASK.replace("[[task]]", "[task]") + ARM, ["write [[task]] with double"]),
        (STUDY + TASK, ["has no arm", "[[arm]]"]),
        (STUDY + TASK + ARM + "[[arms]]\n", ["unknown table 'arms'", "'arm'"]),
        (STUDY + "seed = 3\n" + TASK + ARM, ["[study]", "unknown key 'seed'", "'seeds'"]),
        (STUDY + TASK + "trainfile = 'x'\n" + ARM, ["'CoLA'", "'trainfile'", "'train-file'"]),
        (STUDY + TASK + ARM + ARM, ["two arms have this name", "'plain'"]),
        (STUDY + TASK + ARM.replace('"plain"', "3"), ["[[arm]] number 1", "name is 3"]),
        (STUDY + TASK + ARM.replace('"plain"', '"a\\nb"'), ["'a\\nb'", "one line of text"]),
        (STUDY + TASK + ARM.replace('"plain"', '" "'), ["expected one line of text"]),
        ("task = [3]\n" + STUDY + ARM, ["[[task]] number 1", "got 3", "a table"]),
        (STUDY + TASK + arms("prepare = { P = 0.5 }"), ["'arm 0': prepare", "'P'", "'p'"]),
        (
            STUDY + TASK + arms("train = { learning-rate = 1 }"),
            ["option of train", "? mixout-export train --help"],
        ),
        (STUDY + TASK + arms("prepare = { labels-from = 'a' }"), ["labels-from cannot be set"]),
        (STUDY + TASK + arms("train = { lr = 'high' }"), ["train: lr: got 'high'", "a number"]),
        (STUDY + TASK + arms(f"train = {{ lr = 1{'0' * 400} }}"), ["lr: got 10", "a number"]),
        (STUDY + TASK + arms("train = { max-steps = 1.5 }"), ["got 1.5", "an integer"]),
        (STUDY + TASK + arms("train = { early-stopping = 1 }"), ["true or false"]),
        (STUDY + TASK + arms("prepare = { labels = '@names' }"), ["labels: got '@names'", "write"]),
        (STUDY + TASK + arms("train = { lr = -1.0 }"), ["task 'CoLA' with arm", "lr: got -1.0"]),
        (STUDY + TASK + arms("prepare = { p = 1 }"), ["p: got 1"]),
        (STUDY + TASK + arms("train = { max-steps = 1, max_steps = 2 }"), ["given twice", "- and"]),
        (STUDY + TASK + arms("train = { seed = 1 }"), ["seed cannot be set here", "[study]"]),
        (STUDY + TASK + arms("train = { device = 'cpu' }"), ["--device"]),
        (STUDY + TASK + arms("inherit = 'arm 1'"), ["no arm 'arm 1'", "'arm 0'"]),
        (STUDY + TASK + arms("inherit = 'arm 1'", "inherit = 'arm 0'"), ["inherits from itself"]),
        (STUDY + "baseline = 'plane'\n" + TASK + ARM, ["no arm 'plane'", "'plain'"]),
        (STUDY + "budget = '4 days'\n" + TASK + ARM, ["budget: got '4 days'", '"4h"']),
        (STUDY + "budget = '0h'\n" + TASK + ARM, ["budget: got '0h'", "more than 0"]),
        (STUDY + "threads = 0\n" + TASK + ARM, ["threads: got 0"]),
        (STUDY + "threads = 99999999999\n" + TASK + ARM, ["threads: got 99999999999", "to 4096"]),
        (STUDY + "keep = 1\n" + TASK + ARM, ["keep: got 1", "true or false"]),
        (STUDY + "metric = 'rouge'\n" + TASK + ARM, ["metric: got 'rouge'", "accuracy"]),
        (
            STUDY + TASK + arms("", "train = { metric = 'f1' }"),
            ["task 'CoLA' with arm 'arm 1'", "by f1, but arm 'arm 0' by accuracy", "one metric"],
        ),
        (STUDY + "metric = 'f1'\ntrain = { metric = 'f1' }\n" + TASK + ARM, ["given twice"]),
        (STUDY + TASK.replace("dev.tsv", "deev.tsv") + ARM, ["deev.tsv: no such file"]),
        (STUDY + TASK.replace("train.tsv", "") + ARM, ["train-file: got ''", "a path"]),
        (
            STUDY + TASK + arms("", "train = { eval-file = 'train.tsv' }"),
            ["'arm 1': is evaluated on", "train.tsv, but arm 'arm 0' on", "dev.tsv", "same rows"],
        ),
        (STUDY + TASK.replace("eval-file", "label-column") + ARM, ["eval-file is missing"]),
        (STUDY + TASK.replace("train-file", "label-column") + ARM, ["either train-file or"]),
        (STUDY.replace("2", "0") + TASK + ARM, ["seeds: got 0"]),
        (STUDY.replace("2", "[]") + TASK + ARM, ["seeds: is an empty list"]),
        (STUDY.replace("2", "[1, 1]") + TASK + ARM, ["the same seeds"]),
        (STUDY.replace("2", "[1, -1]") + TASK + ARM, ["got -1"]),
        (STUDY.replace("2", "{ head = 1, masks = 1 }") + TASK + ARM, ["data is missing"]),
        (
            STUDY.replace("2", "{ head = [1], data = 0, masks = [1, 2] }") + TASK + ARM,
            ["head has 1, masks has 2"],
        ),
    ],
)
def test_an_error_names_the_place_and_what_to_do(
    tmp_path: Path, text: str, parts: list[str]
) -> None:
    with pytest.raises(PlanError) as error:
        runs_of(read(tmp_path, text))
    assert str(error.value).startswith(str(tmp_path / "plan.toml"))
    for part in parts:
        assert part in str(error.value)


def test_a_long_line_of_heirs(tmp_path: Path) -> None:
    lines = ["prepare = { p = 0.5 }", *(f"inherit = 'arm {n}'" for n in range(1500))]
    assert read(tmp_path, STUDY + TASK + arms(*lines)).arms[-1].settings["prepare"] == {"p": 0.5}


def test_a_plan_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    assert read(tmp_path, "\ufeff" + STUDY + TASK + ARM).text == STUDY + TASK + ARM


def test_a_plan_knows_the_options_of_the_command_line() -> None:
    """All but those that the study sets, so that the commands of a record can be typed.

    A plan writes the labels down instead of reading them from a file.
    """
    shared = {"json", "quiet", "overwrite", "seed"}
    from_file = {"labels-from", "label-column", "delimiter", "quoting"}
    prepare = {*options_of("prepare")} - shared - from_file
    train = {*options_of("train")} - shared - {"data-seed", "device", "resume"}
    assert {hyphenated(name) for name in SCHEMA["prepare"]} == prepare
    assert {hyphenated(name) for name in SCHEMA["train"]} == train


def test_a_plan_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="cannot be read"):
        read_plan(tmp_path / "nonesuch.toml", SCHEMA)
