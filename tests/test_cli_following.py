"""Each command ends with the command to type next, which can be typed as it is printed."""

import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from checkpoints import TinyCheckpoints
from cli_runs import Program, Run, Way, make_way

from mixout_export_cli.following import beside
from mixout_export_cli.main import cli
from mixout_export_cli.output import _program

SERVERS = ("triton", "mlserver", "openvino", "transformers-js", "optimum")

#: Words that stand for something of the user's.
PLACEHOLDERS = ("TRAIN.csv", "EVAL.csv", "OWNER/NAME")


@pytest.fixture(scope="module")
def way(tmp_path_factory: pytest.TempPathFactory, tiny: TinyCheckpoints) -> Way:
    return make_way(tmp_path_factory.mktemp("it's a way"), tiny)


@pytest.fixture
def program(capfd: pytest.CaptureFixture[str]) -> Program:
    return Program(capfd)


def following(run: Run) -> list[str]:
    """Return the words of the next command, after click has parsed them and its sources exist."""
    last = run.out.splitlines()[-1]
    assert last.startswith("next: "), last
    words = shlex.split(last.removeprefix("next: "))
    start = _program()
    assert words[: len(start)] == start
    name, *arguments = words[len(start) :]
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    with command.make_context(name, list(arguments)) as context:
        given = [*context.params.items()]
    for key, value in given:
        sources = key in ("base", "prepared", "trained", "source", "onnx", "reference", "path")
        if (sources or key.endswith("_file")) and str(value) not in PLACEHOLDERS:
            assert Path(value).exists(), (key, value)
        if key == "out":
            assert not Path(value).exists(), value
    return [name, *arguments]


def test_prepare_is_followed_by_train(way: Way, program: Program, tmp_path: Path) -> None:
    out = tmp_path / "my prepared"
    run = program("prepare", way.base, out, "--task", "text-classification")
    train = following(run)
    assert train[:3] == ["train", str(out), str(tmp_path / "trained")]
    assert following(program("inspect", out))[:2] == ["train", str(out)]


def test_the_demos_base_is_followed_by_training_on_the_demos_data(
    way: Way, program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mixout_export.checkpoint.base.demo_base", lambda: way.base)
    task = ("--task", "text-classification", "--labels", "unacceptable,acceptable")
    words = following(program("prepare", "demo-base", tmp_path / "prepared", *task))
    assert not set(PLACEHOLDERS) & set(words)
    run = program(*words, "--max-steps", 1)
    assert run.code == 0, run.err


def test_from_a_trained_checkpoint_each_next_command_works_as_printed(
    way: Way, program: Program, tmp_path: Path
) -> None:
    trained = tmp_path / "a 'trained' one"
    shutil.copytree(way.trained, trained)
    run = program("inspect", trained)
    for expected in ("collapse", "onnx", "bundle"):
        words = following(run)
        assert words[0] == expected
        run = program(*words)
        assert run.code == 0, run.err
        assert following(program("inspect", words[2]))
    assert following(run)[0] == "verify"  # of a server, once it runs


@pytest.mark.parametrize("server", SERVERS)
def test_bundle_is_followed_by_a_check(
    server: str, way: Way, program: Program, tmp_path: Path
) -> None:
    run = program("bundle", way.graph, tmp_path / server, "--server", server)
    words = following(run)
    readme = (tmp_path / server / "README.md").read_text()
    if words[0] == "verify":
        assert words[1] == str(way.graph)
        assert words[2] in readme
    else:
        assert words == ["inspect", str(tmp_path / server)]
    assert str(tmp_path / server / "README.md") in run.out


def test_an_unverified_graph_is_followed_by_verify(
    way: Way, program: Program, tmp_path: Path
) -> None:
    graph = tmp_path / "graph"
    run = program("onnx", way.collapsed, graph, "--no-verify")
    words = following(run)
    assert words == ["verify", str(way.collapsed), str(graph)]
    assert following(program(*words))[:2] == ["bundle", str(graph)]


@pytest.mark.parametrize(
    ("pair", "expected"),
    [
        (lambda way: (way.trained, way.collapsed), "onnx"),
        (lambda way: (way.collapsed, way.graph), "bundle"),
        (lambda way: (way.collapsed, way.graph / "model.onnx"), "bundle"),
        (lambda way: (way.base, way.prepared), "inspect"),
    ],
)
def test_verify_is_followed_by_what_the_candidate_is_for(
    pair: Callable[[Way], tuple[Path, Path]], expected: str, way: Way, program: Program
) -> None:
    assert following(program("verify", *pair(way)))[0] == expected


def test_a_difference_is_followed_by_a_report_of_it(
    way: Way, program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "report.html").touch()
    run = program("verify", way.classifier, way.collapsed)
    assert run.code == 3
    words = following(run)
    pair = [str(way.classifier), str(way.collapsed)]
    assert words == ["verify", *pair, "--report", "report-2.html"]
    assert following(program(*words)) == ["inspect", str(way.collapsed)]
    assert (tmp_path / "report-2.html").is_file()


def test_inspect_of_a_base_is_followed_by_prepare(way: Way, program: Program) -> None:
    out = way.base.parent / "prepared"
    task = ["--task", "text-classification"]
    assert following(program("inspect", way.base)) == ["prepare", str(way.base), str(out), *task]
    assert following(program("inspect", way.classifier))[0] == "prepare"
    assert following(program("inspect", way.graph / "model.onnx"))[:2] == ["bundle", str(way.graph)]


def test_a_dry_run_of_push_is_followed_by_the_upload(way: Way, program: Program) -> None:
    run = program("push", way.collapsed, "me/model", "--private", "--dry-run")
    assert following(run) == ["push", str(way.collapsed), "me/model", "--private"]


@pytest.mark.parametrize("option", ["--json", "--quiet"])
def test_it_is_absent_where_only_the_result_is_wanted(
    option: str, way: Way, program: Program
) -> None:
    assert "next: " not in program("inspect", way.trained, option).out


def test_the_program_is_named_by_its_path_unless_it_is_on_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "bin" / "mixout-export"
    script.parent.mkdir()
    monkeypatch.setattr(sys, "executable", str(script.with_name("python")))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert _program() == [str(script.with_name("python")), "-m", "mixout_export_cli"]
    script.touch(mode=0o755)
    assert _program() == [str(script)]
    monkeypatch.setenv("PATH", str(script.parent))
    assert _program() == ["mixout-export"]


def test_a_name_that_is_taken_gets_a_number(tmp_path: Path) -> None:
    (tmp_path / "trained").mkdir()
    (tmp_path / "report.html").touch()
    assert beside(tmp_path / "prepared", "trained") == tmp_path / "trained-2"
    assert beside(tmp_path / "prepared", "onnx") == tmp_path / "onnx"
    assert beside(tmp_path / "x", "report.html") == tmp_path / "report-2.html"
