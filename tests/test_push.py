import json
import os
import pty
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
from checkpoints import TinyCheckpoints
from cli_runs import Program, Way, content, make_way
from fake_hub import FakeHub, running_hub
from repeats import mostly_repeats

from mixout_export.stages.push import plan_push


@pytest.fixture(scope="module")
def way(tmp_path_factory: pytest.TempPathFactory, tiny: TinyCheckpoints) -> Way:
    return make_way(tmp_path_factory.mktemp("push"), tiny)


@pytest.fixture
def program(capsys: pytest.CaptureFixture[str]) -> Program:
    return Program(capsys)


@pytest.fixture
def graph(way: Way, tmp_path: Path) -> Path:
    return Path(shutil.copytree(way.graph, tmp_path / "graph"))


def only(hub: FakeHub, *, xet: bool = True) -> dict[str, str]:
    """Return the environment of a process that knows no hub but this one."""
    return {
        **os.environ,
        "HF_ENDPOINT": hub.address,
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": "hf_test",
        "HF_HUB_DISABLE_XET": "0" if xet else "1",
        "NO_PROXY": "127.0.0.1",
    }


def push(
    hub: FakeHub, *arguments: object, xet: bool = True, **options: object
) -> subprocess.CompletedProcess[str]:
    """Run `push` in a process of its own."""
    command = [sys.executable, "-m", "mixout_export_cli", "push", *map(str, arguments)]
    made = {"stdin": subprocess.DEVNULL, **options}
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        command, env=only(hub, xet=xet), text=True, capture_output=True, timeout=120, **made
    )


@pytest.mark.parametrize(
    ("kind", "xet"),
    mostly_repeats(
        product(("graph", "collapsed", "trained"), (True, False)),
        ("graph", True),
        ("trained", False),
    ),
)
def test_the_hub_gets_the_folder_as_it_is(way: Way, kind: str, xet: bool) -> None:
    folder = getattr(way, kind)
    large = () if xet else ("model.safetensors", "pretrained.safetensors", "model.onnx")
    with running_hub(large=large) as hub:
        run = push(hub, folder, "me/model", "--yes", "--json", "--message", "First", xet=xet)
        assert (run.returncode, run.stderr) == (0, "")
        assert hub.files == {"main": content(folder)}
        assert hub.messages == ["First"]
        assert hub.tokens == {"Bearer hf_test"}
        assert hub.private == {"me/model": False}
        said = json.loads(run.stdout)
        assert (said["repo"], said["url"]) == ("me/model", f"{hub.address}/me/model")
        assert said["files"] == len(content(folder))
        assert said["bytes"] == sum(map(len, content(folder).values()))
        assert len(hub.objects) == sum(name in hub.files["main"] for name in large)


def test_a_private_repository_and_a_branch(way: Way) -> None:
    with running_hub() as hub:
        options = ("--private", "--revision", "candidate", "--yes", "--quiet")
        run = push(hub, way.graph, "org/model", *options)
        assert run.returncode == 0, run.stderr
        assert hub.private == {"org/model": True}
        assert hub.branches == ["candidate"]
        assert hub.files.keys() == {"candidate"}


def test_nothing_private_goes_to_a_public_repository(way: Way) -> None:
    with running_hub(private={"me/model": False}) as hub:
        run = push(hub, way.graph, "me/model", "--private", "--yes")
        assert run.returncode == 1
        assert "exists and is public" in run.stderr
        assert hub.files == {}


def test_a_repository_that_exists_gets_another_commit(way: Way) -> None:
    with running_hub(private={"me/model": True}) as hub:
        run = push(hub, way.graph, "me/model", "--private", "--yes")
        assert run.returncode == 0, run.stderr
        assert hub.files == {"main": content(way.graph)}


def test_hidden_files_stay_here(graph: Path) -> None:
    (graph / ".env").write_text("SECRET=1")
    (graph / ".git").mkdir()
    (graph / ".git" / "config").write_text("x")
    (graph / "notes").mkdir()
    (graph / "notes" / ".hidden").write_text("x")
    (graph / "notes" / "seen.txt").write_text("x")
    with running_hub() as hub:
        run = push(hub, graph, "me/model", "--yes")
        assert run.returncode == 0, run.stderr
        plan = plan_push(graph, "me/model")
        assert {file.path for file in plan.files} == hub.files["main"].keys()
        assert {file.path for file in plan.files if not file.listed} == {"notes/seen.txt"}
        assert not any("SECRET" in str(data) for data in hub.files["main"].values())


def test_what_nobody_was_shown_stays_here(graph: Path) -> None:
    script = """
import sys
from pathlib import Path
from mixout_export.stages.push import plan_push, push_folder
folder = Path(sys.argv[1])
plan = plan_push(folder, "me/model")
(folder / "late.txt").write_text("x")
push_folder(plan)
"""
    shown = content(graph)
    with running_hub() as hub:
        subprocess.run([sys.executable, "-c", script, str(graph)], env=only(hub), check=True)
        assert hub.files == {"main": shown}


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "log in"),
        (403, "no permission to write"),
        (404, "does not exist"),
        (400, "not today"),
    ],
)
def test_a_refusal_is_one_sentence(way: Way, status: int, said: str) -> None:
    with running_hub(status=status) as hub:
        run = push(hub, way.graph, "me/model", "--yes")
    assert run.returncode == 1
    assert run.stdout == ""
    assert run.stderr.startswith(f"mixout-export: me/model at {hub.address}: ")
    assert run.stderr.count("\n") == 1
    assert said in run.stderr
    assert str(status) in run.stderr
    assert "hf_test" not in run.stderr


def test_a_hub_that_is_not_there_is_one_sentence(way: Way) -> None:
    with running_hub() as hub:
        pass
    run = push(hub, way.graph, "me/model", "--yes")
    assert run.returncode == 1
    assert run.stderr.count("\n") == 1
    assert "check the network" in run.stderr


def test_without_a_terminal_nothing_is_sent_unasked(way: Way) -> None:
    with running_hub() as hub:
        run = push(hub, way.graph, "me/model")
        assert run.returncode == 2
        assert "give --yes to upload" in run.stderr
        assert hub.requests == []


@pytest.mark.parametrize("answer", ["y", "n"])
def test_at_a_terminal_it_asks(way: Way, answer: str) -> None:
    ours, theirs = pty.openpty()
    os.write(ours, f"{answer}\n".encode())
    with running_hub() as hub:
        run = push(hub, way.graph, "me/model", stdin=theirs)
        assert f"model.onnx  {way.graph.joinpath('model.onnx').stat().st_size / 1000:.1f} kB" in (
            run.stderr
        )
        assert "Upload them?" in run.stderr
        assert run.returncode == (0 if answer == "y" else 1)
        assert bool(hub.files) == (answer == "y")
        assert bool(hub.requests) == (answer == "y")
    os.close(ours)
    os.close(theirs)


def test_a_dry_run_asks_the_network_for_nothing(way: Way) -> None:
    with running_hub() as hub:
        run = push(hub, way.graph, "me/model", "--dry-run", "--json")
        assert run.returncode == 0
        assert hub.requests == []
    said = json.loads(run.stdout)
    assert (said["kind"], said["endpoint"]) == ("onnx", hub.address)
    assert {file["path"] for file in said["files"]} == content(way.graph).keys()


def test_a_changed_folder_is_not_sent(graph: Path, program: Program) -> None:
    path = graph / "config.json"
    path.write_bytes(path.read_bytes() + b" ")
    program("push", graph, "me/model", "--yes").failed(3, "config.json", "nothing was uploaded")


def test_work_in_progress_is_not_sent(graph: Path, program: Program) -> None:
    moved = graph.rename(graph.with_name("graph.partial"))
    program("push", moved, "me/model", "--yes").failed(1, "is not complete")
    (moved / "deep.partial").mkdir()
    back = moved.rename(graph)
    program("push", back, "me/model", "--yes").failed(1, "deep.partial", "is not complete")


@pytest.mark.parametrize("repo", ["", "a/b/c", "me//model", "-x", "a b", "x" * 97, "a..b", "a.git"])
def test_a_name_that_cannot_be_is_said_up_front(way: Way, repo: str, program: Program) -> None:
    program("push", way.graph, "--yes", "--", repo).failed(2, "expected NAME or OWNER/NAME")


def test_what_is_no_folder_of_a_model_is_refused(tmp_path: Path, program: Program) -> None:
    program("push", tmp_path / "none", "me/x", "--yes").failed(1, "no such folder")
    program("push", tmp_path, "me/x", "--yes").failed(1, str(tmp_path))


def test_a_plain_folder_without_a_manifest_says_so(way: Way, program: Program) -> None:
    run = program("push", way.classifier, "me/x", "--dry-run").done()
    assert "not checked, because the folder has no manifest" in run.out
    assert "not in the manifest" not in run.out
