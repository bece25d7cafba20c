"""`train PREPARED OUT --resume` takes its options from the record of the unfinished run."""

import json
from pathlib import Path
from typing import Any

import pytest
from checkpoints import TinyCheckpoints
from cli_runs import Program, Run, Way, content, make_way
from training_runs import sentences, write_tsv

from mixout_export_cli.output import next_command


@pytest.fixture(scope="module")
def way(tmp_path_factory: pytest.TempPathFactory, tiny: TinyCheckpoints) -> Way:
    return make_way(tmp_path_factory.mktemp("way"), tiny)


@pytest.fixture
def program(capfd: pytest.CaptureFixture[str]) -> Program:
    return Program(capfd)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lay the data into a folder, whose files the runs are given by relative paths."""
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path / "data")
    for name, count, seed in (("train.tsv", 48, 0), ("dev.tsv", 16, 1)):
        rows = [(text, label) for text, label in sentences(count, seed=seed)]
        write_tsv(Path(name), ("body", "verdict"), rows)


#: All of them differ from their defaults, and masks are drawn.
OPTIONS = (
    *("--train-file", "train.tsv", "--eval-file", "dev.tsv"),
    *("--text-column", "body", "--label-column", "verdict"),
    *("--max-steps", 8, "--batch-size", 4, "--gradient-accumulation", 2, "--lr", 8e-3),
    *("--eval-every", 2, "--save-every", 2, "--metric", "f1", "--decay-toward", "pretrained"),
    *("--seed", 3, "--max-length", 12, "--early-stopping", "--patience", 7, "--device", "cpu"),
)


def interrupt(program: Program, way: Way, out: Path, step: int = 5) -> Run:
    """Start a run and interrupt it as Ctrl-C does after so many steps."""
    asked: list[None] = []

    def is_asked(_: Any) -> bool:
        asked.append(None)
        return len(asked) == step

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mixout_export_cli.stopping.StopRequest.__call__", is_asked)
        run = program("train", way.prepared, out, *OPTIONS)
    assert run.code == 130
    assert not out.exists()
    return run


def record_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "training.json").read_text())


def change(folder: Path, **entries: Any) -> None:
    """Change entries of a record; None removes one."""
    record = {**record_of(folder), **entries}
    record = {name: value for name, value in record.items() if value is not None}
    (folder / "training.json").write_text(json.dumps(record))


@pytest.fixture(scope="module")
def whole() -> dict[str, dict[str, bytes]]:
    """Keeps the files of the undisturbed run."""
    return {}


def undisturbed(
    program: Program, way: Way, tmp_path: Path, whole: dict[str, dict[str, bytes]]
) -> dict[str, bytes]:
    """Return the files of the same run if nobody interrupts it."""
    if not whole:
        program("train", way.prepared, tmp_path / "whole", *OPTIONS).done()
        whole["files"] = content(tmp_path / "whole")
    return whole["files"]


def assert_same(out: Path, expected: dict[str, bytes]) -> None:
    found = content(out)
    assert found.keys() == expected.keys()
    timed = {"training.json", "manifest.json"}  # one holds the seconds, the other its hash
    assert {n: b for n, b in found.items() if n not in timed} == {
        n: b for n, b in expected.items() if n not in timed
    }
    ours, theirs = (json.loads(files["training.json"]) for files in (found, expected))
    for record in (ours, theirs):
        del record["result"]["seconds"]
    assert ours == theirs
    ours, theirs = (json.loads(files["manifest.json"]) for files in (found, expected))
    assert (ours["options"], ours["data"]) == (theirs["options"], theirs["data"])


def test_resume_needs_no_other_option(
    way: Way,
    program: Program,
    tmp_path: Path,
    whole: dict[str, dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = undisturbed(program, way, tmp_path, whole)
    out = tmp_path / "out"
    run = interrupt(program, way, out)
    resume = next_command("train", way.prepared, out, "--resume")
    best, collapsed = tmp_path / "out.partial" / "best", tmp_path / "out-collapsed"
    collapse = next_command("collapse", best, collapsed)
    program("collapse", best, collapsed).done()
    assert run.err.endswith(
        f"mixout-export: stopped after step 5 of 8; the checkpoint is in {out}.partial, and {out} "
        f"was not written; to use the best model so far: {collapse}; to continue: {resume}\n"
    )
    monkeypatch.chdir(tmp_path)  # the relative paths of the first command lead nowhere here
    run = program("train", way.prepared, out, "--resume").done()
    assert "step 5/8: resumed\n" in run.err
    assert_same(out, expected)
    assert str(tmp_path) not in (out / "training.json").read_text()


def test_equal_options_and_moved_files_are_no_contradiction(
    way: Way, program: Program, tmp_path: Path, whole: dict[str, dict[str, bytes]]
) -> None:
    expected = undisturbed(program, way, tmp_path, whole)
    out = tmp_path / "out"
    interrupt(program, way, out)
    Path("elsewhere").mkdir()
    Path("train.tsv").rename("elsewhere/train.tsv")
    moved = ("--train-file", "elsewhere/train.tsv", "--lr", 8e-3, "--text-column", "body")
    program("train", way.prepared, out, "--resume", *moved).done()
    assert_same(out, expected)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (("--lr", 2e-5), "with --lr 0.008, got 2e-05"),  # though this is its default
        (("--max-length", 9), "with --max-length 12, got 9"),
        (("--p", 0.5), "without --p, got 0.5"),
        (("--data-seed", 4), "without --data-seed, got 4"),
        (("--examples", 7), "without --examples, got 7"),
        (("--pack-sequences",), "pack-sequences: has no effect for text-classification"),
        (("--train-file", "dev.tsv"), "training-data-sha256"),
        (("--label-column", "body"), "'body'"),
    ],
    ids=lambda value: str(value[0]) if isinstance(value, tuple) else "",
)
def test_a_contradiction_names_both_values(
    way: Way, program: Program, tmp_path: Path, option: tuple[object, ...], said: str
) -> None:
    out = tmp_path / "out"
    interrupt(program, way, out)
    before = content(tmp_path / "out.partial")
    run = program("train", way.prepared, out, "--resume", *option)
    assert run.code in (1, 2)
    assert said in run.words
    assert content(tmp_path / "out.partial") == before


def test_a_record_of_an_earlier_version_needs_the_files(
    way: Way, program: Program, tmp_path: Path, whole: dict[str, dict[str, bytes]]
) -> None:
    expected = undisturbed(program, way, tmp_path, whole)
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    interrupt(program, way, out)
    settings = record_of(partial)["settings"]
    settings["options"]["blocks"] = settings["options"].pop("pack_sequences")
    for name in ("data_seed", "examples", "examples_seed"):  # an earlier version had none
        del settings["options"][name]
    change(partial, settings=settings, sources=None, columns=None, data_files=None)
    said = program("train", way.prepared, out, "--resume").failed(2, "training.json")
    assert "give --train-file, --eval-file and the columns" in said
    program("train", way.prepared, out, "--resume", *OPTIONS[:8]).done()
    assert_same(out, expected)


def test_a_record_of_a_later_version_names_that_version(
    way: Way, program: Program, tmp_path: Path
) -> None:
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    interrupt(program, way, out)
    settings = record_of(partial)["settings"]
    settings["options"]["momentum"] = 0.9
    change(partial, settings=settings, tool_version="9.1")
    program("train", way.prepared, out, "--resume").failed(2, "'momentum'", "mixout-export 9.1")


def test_a_run_that_was_killed_after_its_end_needs_no_data(
    way: Way, program: Program, tmp_path: Path, whole: dict[str, dict[str, bytes]]
) -> None:
    expected = undisturbed(program, way, tmp_path, whole)
    out = tmp_path / "out"

    def killed(_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mixout_export.files.output.OutputFolder.publish", killed)
        assert program("train", way.prepared, out, *OPTIONS).code == 130
    Path("train.tsv").unlink()
    run = program("train", way.prepared, out, "--resume").done()
    assert run.out.startswith(f"{out}: 8 steps already complete")
    assert_same(out, expected)


def test_nothing_to_resume_needs_the_data(way: Way, program: Program, tmp_path: Path) -> None:
    program("train", way.prepared, tmp_path / "out", "--resume").failed(2, "--train-file")
    program("train", way.prepared, tmp_path / "out", "--resume", *OPTIONS).done()
    program("train", way.prepared, tmp_path / "out", "--resume").done()  # it is complete
