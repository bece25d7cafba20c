"""Every folder says what it holds and where that comes from, and shows when that is not so."""

import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from checkpoints import TinyCheckpoints
from cli_runs import Program
from safetensors.torch import load_file, save_file

from mixout_export.errors import CheckpointError
from mixout_export.files.input_files import InputFiles
from mixout_export.files.streams import file_digest
from mixout_export.provenance.links import Link, broken_links, plain_options
from mixout_export.provenance.manifest import check_manifest, read_manifest, write_manifest
from mixout_export.stages.collapse import collapse_checkpoint
from mixout_export.stages.onnx_export import export_onnx
from mixout_export.stages.prepare import prepare_checkpoint
from mixout_export.stages.train.data import DataOptions
from mixout_export.stages.train.run import train_checkpoint
from mixout_export.training.options import TrainOptions

STEPS = ("prepared", "trained", "collapsed", "graph")


@pytest.fixture(scope="module")
def way(tiny: TinyCheckpoints, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One checkpoint's way, each step in a folder of its own."""
    root = tmp_path_factory.mktemp("way")
    base = shutil.copytree(tiny.classifier("bert"), root / "base")
    (root / "secret folder").mkdir()
    table = root / "secret folder" / "train.tsv"
    table.write_text("sentence\tlabel\n" + "a b\t0\nb c\t1\n" * 8)
    prepare_checkpoint(str(base), root / "prepared")
    train_checkpoint(
        root / "prepared", root / "trained", DataOptions(table), TrainOptions(max_steps=1)
    )
    collapse_checkpoint(root / "trained", root / "collapsed")
    export_onnx(root / "collapsed", root / "graph", verify=False)
    return root


@pytest.fixture
def program(capfd: pytest.CaptureFixture[str]) -> Program:
    return Program(capfd)


@pytest.fixture
def copy(way: Path, tmp_path: Path) -> Path:
    return shutil.copytree(way, tmp_path / "way")


def test_the_chain_leads_from_the_base_to_the_graph(way: Path) -> None:
    manifest = read_manifest(InputFiles(way / "graph"))
    chain = manifest.whole_chain
    assert [link.step for link in chain] == ["base", "prepare", "train", "collapse", "onnx"]
    assert chain[0].name == "base"
    assert chain[0].weights_sha256 == file_digest(way / "base" / "model.safetensors")
    for link, folder in zip(chain[1:], STEPS, strict=True):
        file = "model.onnx" if folder == "graph" else "model.safetensors"
        assert link.weights_sha256 == file_digest(way / folder / file)
        assert link.versions["mixout-export"]
    for before, link in pairwise(chain):
        assert link.input_sha256 == before.weights_sha256
    for link, folder in zip(chain[1:-1], STEPS, strict=False):
        assert link.manifest_sha256 == file_digest(way / folder / "manifest.json")
    train = chain[2]
    assert train.options["max_steps"] == 1
    assert [(data.role, data.name, data.rows) for data in train.data] == [
        ("train", "train.tsv", 16)
    ]
    assert train.data[0].sha256 == file_digest(way / "secret folder" / "train.tsv")


@pytest.mark.parametrize("folder", STEPS)
def test_every_file_is_listed_and_no_path_of_the_machine(folder: str, way: Path) -> None:
    found = check_manifest(InputFiles(way / folder))
    assert not found.problems
    assert found.unlisted == ()
    assert found.manifest is not None
    there = {path.name for path in (way / folder).iterdir()}
    assert there == found.manifest.files.keys() | {"manifest.json"}
    text = (way / folder / "manifest.json").read_text()
    assert "secret folder" not in text
    assert str(way) not in text


@pytest.mark.parametrize("folder", STEPS)
def test_one_flipped_byte_of_any_file_is_found(folder: str, copy: Path) -> None:
    for path in sorted((copy / folder).iterdir()):
        path.chmod(0o644)
        whole = path.read_bytes()
        for place in {0, len(whole) // 2, len(whole) - 1}:
            changed = bytearray(whole)
            changed[place] ^= 1
            path.write_bytes(changed)
            found = check_manifest(InputFiles(copy / folder))
            if path.name == "README.md":  # a card is there to be written on
                assert (found.problems, found.unlisted) == ((), ("README.md",))
                continue
            problems = found.problems
            assert problems, f"{path} at {place}"
            assert any(path.name in problem for problem in problems)
        path.write_bytes(whole)
    assert not check_manifest(InputFiles(copy / folder)).problems


def test_every_byte_of_the_manifest_itself_counts(copy: Path) -> None:
    path = copy / "collapsed" / "manifest.json"
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        changed = bytearray(whole)
        changed[place] ^= 1
        path.write_bytes(changed)
        assert check_manifest(InputFiles(copy / "collapsed")).problems, f"byte {place}"


def test_a_missing_and_an_added_file(copy: Path) -> None:
    (copy / "graph" / "config.json").unlink()
    (copy / "graph" / "notes.txt").write_text("mine")
    found = check_manifest(InputFiles(copy / "graph"))
    (problem,) = found.problems
    assert problem.endswith("is missing, but onnx wrote it")
    assert found.unlisted == ("notes.txt",)


def test_a_step_that_read_other_weights_breaks_the_chain(copy: Path) -> None:
    path = copy / "trained" / "model.safetensors"
    tensors = load_file(path)
    tensors["classifier.bias"] += 1
    save_file(tensors, path, metadata={"format": "pt"})
    shutil.rmtree(copy / "collapsed")
    collapse_checkpoint(copy / "trained", copy / "collapsed")
    problems = check_manifest(InputFiles(copy / "collapsed")).problems
    assert len(problems) == 1
    assert "the chain is broken between train and collapse" in problems[0]


def test_a_step_that_reads_changed_weights_says_so(
    copy: Path, tmp_path: Path, program: Program
) -> None:
    path = copy / "collapsed" / "model.safetensors"
    tensors = load_file(path)
    tensors["classifier.bias"] += 1.0
    save_file(tensors, path, metadata={"format": "pt"})
    run = program("onnx", copy / "collapsed", tmp_path / "changed", "--no-verify")
    assert run.code == 0
    assert "warning: " in run.err
    assert "the chain is broken between collapse and onnx" in run.err


def test_changes_to_other_files_break_the_chain_for_good(
    copy: Path, tmp_path: Path, program: Program
) -> None:
    """Labels that are exchanged between two steps are exchanged in all that follows."""
    config = copy / "trained" / "config.json"
    config.write_text(config.read_text().replace("LABEL_0", "LABEL_X"))
    run = program("collapse", copy / "trained", tmp_path / "collapsed")
    assert run.code == 0
    assert "config.json changed in between" in run.err
    export_onnx(tmp_path / "collapsed", tmp_path / "graph", verify=False)
    problems = check_manifest(InputFiles(tmp_path / "graph")).problems
    assert len(problems) == 1
    assert "broken between train and collapse: config.json changed in between" in problems[0]


def test_a_card_that_somebody_wrote_on_breaks_nothing(copy: Path, tmp_path: Path) -> None:
    card = copy / "trained" / "README.md"
    card.write_text(card.read_text() + "\n## Mine\n\nWords.\n")
    collapse_checkpoint(copy / "trained", tmp_path / "collapsed")
    assert not check_manifest(InputFiles(tmp_path / "collapsed")).problems


@pytest.mark.parametrize(
    "forge",
    [
        lambda m: m.update(chain=[]),
        lambda m: m.update(chain=m["chain"][1:]),
        lambda m: m.pop("input_sha256"),
    ],
)
def test_a_chain_that_lacks_a_link_is_no_chain(
    forge: Callable[[dict[str, Any]], object], copy: Path
) -> None:
    path = copy / "graph" / "manifest.json"
    content = json.loads(path.read_text())
    content.pop("manifest_guard")
    forge(content)
    path.write_text(json.dumps(content))
    path.write_text(read_manifest(InputFiles(copy / "graph")).to_text())  # with a guard that fits
    problems = check_manifest(InputFiles(copy / "graph")).problems
    assert len(problems) == 1
    assert "chain" in problems[0]


@pytest.mark.parametrize("command", ["inspect", "verify"])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_damage_that_keeps_a_folder_from_opening_is_told_by_the_manifest(
    name: str, command: str, copy: Path, program: Program
) -> None:
    path = copy / "collapsed" / name
    path.write_bytes(b"\xff" + path.read_bytes()[1:])
    sides = [copy / "collapsed"] if command == "inspect" else [copy / "trained", copy / "collapsed"]
    program(command, *sides).failed(3, f"{name}: was changed after collapse wrote it")
    path.unlink()
    program(command, *sides).failed(3, f"{name}: is missing, but collapse wrote it")


def test_data_are_hashed_as_they_were_read(
    way: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "train.tsv"
    table.write_text("sentence\tlabel\n" + "a b\t0\nb c\t1\n" * 8)
    before = file_digest(table)

    class Late:
        """Writes to the table as soon as the training begins."""

        def __getattr__(self, _: str) -> Callable[..., None]:
            table.write_text("sentence\tlabel\nother\t0\n")
            return lambda *_, **__: None

    options = TrainOptions(max_steps=1)
    train_checkpoint(
        way / "prepared", tmp_path / "out", DataOptions(table), options, observer=Late()
    )
    assert file_digest(table) != before
    assert read_manifest(InputFiles(tmp_path / "out")).link.data[0].sha256 == before


def test_a_folder_without_a_manifest_starts_the_chain(copy: Path, tmp_path: Path) -> None:
    assert check_manifest(InputFiles(copy / "base")).manifest is None
    export_onnx(copy / "base", tmp_path / "graph", verify=False)
    chain = read_manifest(InputFiles(tmp_path / "graph")).whole_chain
    assert [(link.step, link.name) for link in chain] == [("source", "base"), ("onnx", "")]


def test_what_is_no_manifest_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    for text, said in (("{", "cannot be read"), ("[]", "list"), ('{"format": 9}', "format 9")):
        path.write_text(text)
        with pytest.raises(CheckpointError, match=said):
            read_manifest(InputFiles(tmp_path))
        assert check_manifest(InputFiles(tmp_path)).problems


FORGED: dict[str, Callable[[dict[str, Any]], object]] = {
    "outside": lambda m: m["files"].update({"../config.json": {"sha256": "0" * 64, "bytes": 1}}),
    "elsewhere": lambda m: m["files"].update({"/etc/hostname": {"sha256": "0" * 64, "bytes": 1}}),
    "no path": lambda m: m["files"].update({"a\0b": {"sha256": "0" * 64, "bytes": 1}}),
    "no hash": lambda m: m["files"]["config.json"].update(sha256=5),
    "no text": lambda m: m["files"]["config.json"].update(sha256="\ud800"),
    "no step": lambda m: m.update(step="\x1b[31mtrain\n"),
    "no weights": lambda m: m.update(weights_sha256=5),
    "no options": lambda m: m.update(options=[1]),
    "no versions": lambda m: m["chain"][0].update(versions=5),
    "no data": lambda m: m.update(data=[{"role": "train", "name": 5, "sha256": "", "rows": 1}]),
    "no rows": lambda m: m.update(data=[{"role": "a", "name": "b", "sha256": "", "rows": "x"}]),
}


@pytest.mark.parametrize("forged", FORGED)
def test_a_forged_manifest_is_a_problem_and_nothing_worse(
    forged: str, copy: Path, program: Program
) -> None:
    folder = copy / "collapsed"
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    FORGED[forged](content)
    path.write_text(json.dumps(content))
    assert (
        "is not a manifest" in check_manifest(InputFiles(folder)).problems[0] or forged == "no text"
    )
    run = program("inspect", str(folder))
    assert run.code == 3
    assert "\x1b" not in run.out + run.err


def test_a_manifest_without_an_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_manifest(InputFiles(tmp_path))


def test_a_manifest_of_another_tool_is_none(way: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(way / "base", tmp_path / "base"))
    (base / "manifest.json").write_text('{"name": "a page", "icons": []}')
    prepare_checkpoint(str(base), tmp_path / "prepared")
    assert check_manifest(InputFiles(base)).manifest is None
    assert read_manifest(InputFiles(tmp_path / "prepared")).chain[0].step == "base"


def test_known_hashes_are_taken_and_folders_are_walked(tmp_path: Path) -> None:
    (tmp_path / "out" / "1").mkdir(parents=True)
    (tmp_path / "out" / "1" / "model.onnx").write_bytes(b"graph")
    manifest = write_manifest(
        tmp_path / "out",
        step="bundle",
        source=InputFiles(tmp_path),
        input_sha256="0" * 64,
        weights=["1/model.onnx"],
        options={"server": "triton", "name": None, "data": tmp_path / "a.tsv"},
        known={"1/model.onnx": "f" * 64},
    )
    assert manifest.link.weights_sha256 == "f" * 64
    assert manifest.link.options == {"server": "triton", "data": "a.tsv"}
    assert read_manifest(InputFiles(tmp_path / "out")) == manifest
    assert "was changed" in check_manifest(InputFiles(tmp_path / "out")).problems[0]


def test_options_are_plain_values() -> None:
    given = {"a": Path("/home/me/x.tsv"), "b": (1, 2.5), "c": None, "d": {"e": Path("f")}}
    assert plain_options(given) == {"a": "x.tsv", "b": [1, 2.5], "d": {"e": "f"}}


def test_links_that_fit_are_whole() -> None:
    chain = [Link("base", "1"), Link("prepare", "2", input_sha256="1")]
    assert list(broken_links(chain)) == []
    assert len(list(broken_links([*chain, Link("train", "3", input_sha256="1")]))) == 1


def test_inspect_shows_the_chain_and_what_is_broken(copy: Path, program: Program) -> None:
    run = program("inspect", copy / "graph").done()
    for step in ("base", "prepare", "train", "collapse", "onnx"):
        assert f"\n{step} " in run.out
    assert "train train.tsv" in run.out
    (copy / "graph" / "config.json").write_text("{}")
    run = program("inspect", copy / "graph")
    assert run.code == 3
    assert "config.json: was changed after onnx wrote it" in run.err
    run = program("inspect", copy / "graph", "--json")
    assert run.code == 3
    assert len(json.loads(run.out)["broken"]) == 1
