import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from mixout_export.parity.compare import TOLERANCES
from mixout_export.tasks import TASKS
from mixout_export.training.options import SCHEDULERS, TrainOptions
from mixout_export.version import __version__
from mixout_export_cli.main import cli, main

COMMANDS = (
    *("prepare", "train", "collapse", "onnx", "bundle"),
    *("verify", "predict", "inspect", "study", "push", "demo"),
)

#: The contract's options with their defaults; None where the default is not a value.
EVERYWHERE = {"json": False, "quiet": False}
WRITES = {**EVERYWHERE, "overwrite": False}
OPTIONS = {
    "prepare": {
        **WRITES,
        "task": None,
        "labels": (),
        "labels-from": (),
        "label-column": None,
        "delimiter": None,
        "quoting": None,
        "p": 0.7,
        "granularity": "neuron",
        "target-modules": "all-linear",
        "exclude-modules": None,
        "dropout": 0.0,
        "head": "dropout",
        "head-dropout": 0.1,
        "revision": None,
        "allow-pickle": False,
        "merge-adapter": False,
        "resize-embeddings": False,
        "trust-remote-code": False,
        "seed": 0,
    },
    "train": {
        **WRITES,
        "train-file": None,
        "eval-file": None,
        "dataset": None,
        "text-column": None,
        "text-pair-column": None,
        "label-column": None,
        "choices-column": None,
        "delimiter": None,
        "quoting": None,
        "skip-bad-rows": 0,
        "metric": None,
        "recipe": None,
        "epochs": 3.0,
        "max-steps": None,
        "batch-size": 32,
        "lr": 2e-5,
        "layer-lr-decay": None,
        "warmup-ratio": 0.1,
        "scheduler": "linear",
        "weight-decay": 0.01,
        "decay-toward": "zero",
        "head-weight-decay": None,
        "reinit-layers": None,
        "freeze": None,
        "label-smoothing": 0.0,
        "class-weights": None,
        "max-length": None,
        "doc-stride": None,
        "pack-sequences": False,
        "max-grad-norm": 1.0,
        "gradient-accumulation": 1,
        "gradient-checkpointing": False,
        "precision": "fp32",
        "device": None,
        "anchor-dtype": None,
        "augment": None,
        "image-column": None,
        "resample-every": None,
        "anchor-decay": 1.0,
        "optimizer-scope": "all",
        "seed": 0,
        "data-seed": None,
        "examples": None,
        "examples-seed": 0,
        "eval-every": None,
        "save-every": None,
        "keep": 2,
        "early-stopping": False,
        "patience": 3,
        "select": None,
        "resume": False,
        "tracker": None,
        "p": None,
    },
    "collapse": {**WRITES, "interpolate": 1.0, "dtype": None},
    "onnx": {
        **WRITES,
        "precision": "fp32",
        "optimize": False,
        "opset": 20,
        "no-cache": False,
        "calibration-data": None,
        "calibration-examples": None,
        "reduce-range": False,
        "data": None,
        "max-examples": None,
        "max-length": None,
        "text-column": None,
        "text-pair-column": None,
        "image-column": None,
        "delimiter": None,
        "quoting": None,
        "min-agreement": None,
        "no-verify": False,
    },
    "bundle": {
        **WRITES,
        "server": "triton",  # has no default, and has to be given
        "name": None,
        "add-precision": (),
        "model-version": 1,
        "max-batch-size": 64,
        "bom": False,
        "sign": None,
    },
    "verify": {
        **EVERYWHERE,
        "data": None,
        "text-column": None,
        "text-pair-column": None,
        "label-column": None,
        "choices-column": None,
        "image-column": None,
        "delimiter": None,
        "quoting": None,
        "max-examples": None,
        "max-length": None,
        "atol": None,
        "rtol": None,
        "provider": "CPUExecutionProvider",
        "inputs": None,
        "save-inputs": None,
        "self-test": False,
        "report": None,
        "seed": 0,
        "min-agreement": None,
        "drift": False,
        "signature": None,
        "timeout": None,
        "concurrency": None,
        "requests": None,
        "protocol": None,
    },
    "predict": {
        **WRITES,
        "text-column": None,
        "text-pair-column": None,
        "label-column": None,
        "choices-column": None,
        "image-column": None,
        "delimiter": None,
        "quoting": None,
        "skip-bad-rows": 0,
        "no-labels": False,
        "batch-size": 32,
        "max-length": None,
        "max-new-tokens": 20,
        "report": None,
        "reference": None,
        "provider": "CPUExecutionProvider",
    },
    "inspect": {
        **EVERYWHERE,
        "plot": None,
        "model": None,
        "max-length": None,
        "text-column": None,
        "text-pair-column": None,
        "label-column": None,
        "delimiter": None,
        "quoting": None,
    },
    "study": {
        **WRITES,
        "engine": "local",
        "address": None,
        "workers": None,
        "device": None,
        "dry-run": False,
    },
    "push": {
        **EVERYWHERE,
        "private": False,
        "revision": None,
        "message": None,
        "dry-run": False,
        "yes": False,
    },
    "demo": WRITES,
}
ARGUMENTS = {
    "prepare": ["BASE", "OUT"],
    "train": ["PREPARED", "OUT"],
    "collapse": ["TRAINED", "OUT"],
    "onnx": ["SOURCE", "OUT"],
    "bundle": ["ONNX", "OUT"],
    "verify": ["REFERENCE", "CANDIDATE"],
    "predict": ["MODEL", "FILE", "OUT"],
    "inspect": ["PATH"],
    "study": ["PLAN", "OUT"],
    "push": ["FOLDER", "REPO"],
    "demo": ["[OUT]"],
}


def options_of(name: str) -> dict[str, click.Option]:
    options = [p for p in cli.commands[name].params if isinstance(p, click.Option)]
    return {option.opts[0].removeprefix("--"): option for option in options}


def defaults_of(name: str) -> dict[str, object]:
    given = ["x"] * len(ARGUMENTS[name]) + (["--server", "triton"] if name == "bundle" else [])
    values = cli.commands[name].make_context(name, given).params
    return {option: values[parameter.name] for option, parameter in options_of(name).items()}


def show_help(*arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ending:
        main([*arguments, "--help"])
    out, err = capsys.readouterr()
    assert (ending.value.code, err) == (0, "")
    return out


def test_the_commands_are_those_of_the_contract_in_a_checkpoints_order() -> None:
    assert tuple(cli.list_commands(click.Context(cli))) == COMMANDS


@pytest.mark.parametrize("name", COMMANDS)
def test_options_and_defaults_are_those_of_the_contract(name: str) -> None:
    assert defaults_of(name) == OPTIONS[name]


@pytest.mark.parametrize("name", COMMANDS)
def test_arguments_are_those_of_the_contract(name: str, capsys) -> None:
    usage = show_help(name, capsys=capsys).splitlines()[0]
    expected = " ".join(ARGUMENTS[name])
    assert usage == f"Usage: mixout-export {name} [OPTIONS] {expected}"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_help_that_shows_its_default(name: str) -> None:
    context = click.Context(cli.commands[name])
    for option in options_of(name).values():
        record = option.get_help_record(context)
        assert record is not None
        text = record[1]
        assert text[0].isalpha()
        if not option.is_flag:
            assert re.search(r"\[(default: \S.*|required( for .+)?|optional)\]$", text), option.opts
            no_value = re.search(r"\[default: (none|no|nothing|not?|do not)\b", text)
            assert no_value is None, option.opts


@pytest.mark.parametrize("columns", [80, 50])
@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_fits_the_terminal_and_leaves_names_whole(
    name: str, columns: int, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = show_help(*([name] if name else []), capsys=capsys)
    assert max(len(line) for line in text.splitlines()) <= columns
    assert "..." not in text.replace("[ARGS]...", "")
    assert not re.search(r"\w-$", text, re.MULTILINE)
    assert "\\b" not in text
    for option in options_of(name) if name else ():
        assert re.search(rf"^  --{option}\b", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("command", "new", "old", "given", "expected"),
    [
        ("bundle", "--add-precision", "--also", ("fp16",), (Path("fp16"),)),
        ("train", "--pack-sequences", "--blocks", (), True),
    ],
)
def test_a_former_option_name_still_works_and_is_not_shown(
    command: str, new: str, old: str, given: tuple[str, ...], expected: object, capsys
) -> None:
    rest = ["--server", "triton"] if command == "bundle" else []
    for name in (new, old):
        context = cli.commands[command].make_context(command, ["a", "b", *rest, name, *given])
        assert expected in context.params.values(), name
    assert f"  {new}" in (text := show_help(command, capsys=capsys))
    assert old not in text


def test_help_in_a_narrow_terminal_gives_most_of_it_to_the_text(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    lines = show_help("train", capsys=capsys).splitlines()
    descriptions = [line for line in lines[10:] if line.startswith(" " * 8)]
    assert all(len(line) - len(line.lstrip()) <= 20 for line in descriptions)


@pytest.mark.parametrize(
    ("command", "option", "field"),
    [("verify", "atol", "atol"), ("verify", "rtol", "rtol")],
)
def test_the_tolerances_in_the_help_are_the_ones_in_use(command, option, field) -> None:
    text = options_of(command)[option].help
    shown = {name: float(value) for name, value in re.findall(r"(\w+16|fp32) (\d+e-\d+)", text)}
    assert shown == {name: getattr(tolerance, field) for name, tolerance in TOLERANCES.items()}


def test_the_choices_in_the_help_are_all_there_are() -> None:
    tasks, schedulers = options_of("prepare")["task"], options_of("train")["scheduler"]
    assert isinstance(tasks.type, click.Choice)
    assert isinstance(schedulers.type, click.Choice)
    assert tuple(tasks.type.choices) == tuple(TASKS)
    assert tuple(schedulers.type.choices) == tuple(SCHEDULERS)
    for option, names in ((tasks, TASKS), (schedulers, SCHEDULERS)):
        assert all(name in option.help for name in names)


def test_the_librarys_defaults_are_the_programs() -> None:
    defaults = defaults_of("train")
    for field, value in vars(TrainOptions()).items():
        if field != "log_every":
            assert defaults[field.replace("_", "-")] == value


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    script = """
import sys
from mixout_export_cli.main import cli, main
heavy = ("torch transformers onnx onnxruntime onnxscript numpy scipy sklearn pyarrow matplotlib "
         "datasets accelerate safetensors huggingface_hub rich").split()
for arguments in ([], *([name] for name in cli.commands), ["--version"]):
    try:
        main(arguments if arguments == ["--version"] else [*arguments, "--help"])
    except SystemExit as ending:
        assert ending.code == 0
    print("heavy:", *arguments, [name for name in heavy if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    found = [line for line in done.stdout.splitlines() if line.startswith("heavy:")]
    assert len(found) == len(COMMANDS) + 2
    assert all(line.endswith("[]") for line in found)


def test_the_module_and_the_script_are_the_same_program(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("mixout-export")
    programs = ([str(script)], [sys.executable, "-m", "mixout_export_cli"])
    for arguments in (["--version"], ["collapse", "--help"], ["collapse"]):
        runs = [
            subprocess.run([*p, *arguments], cwd=tmp_path, capture_output=True, text=True)
            for p in programs
        ]
        assert len({(run.returncode, run.stdout, run.stderr) for run in runs}) == 1
        if arguments == ["--version"]:
            assert runs[0].stdout == f"mixout-export, version {__version__}\n"
    (entry,) = importlib.metadata.entry_points(group="console_scripts", name="mixout-export")
    assert entry.load() is main


def test_no_package_called_cli_is_installed(tmp_path: Path) -> None:
    script = "import importlib.util as u; print(u.find_spec('cli'), u.find_spec('commands'))"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "None None\n"


def test_without_a_command_it_shows_how_it_is_used(capsys) -> None:
    with pytest.raises(SystemExit) as ending:
        main([])
    out, err = capsys.readouterr()
    assert (ending.value.code, out) == (2, "")
    assert all(f"\n  {name} " in err for name in COMMANDS)
