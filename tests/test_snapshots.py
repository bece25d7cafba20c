import errno
import io
import os
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from mixout_export.training import snapshots as module
from mixout_export.training.snapshots import Snapshots, replace_folder, restore_rng, rng_state


def writer(text: str) -> Any:
    return lambda path: (path / "model").write_text(text)


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


def test_only_the_newest_checkpoints_stay(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path, 2)
    for step in (5, 10, 100):
        snapshots.write(step, writer(str(step)), {"step": step})
    assert [path.name for path in snapshots.paths()] == ["step-00000010", "step-00000100"]
    assert names(snapshots.folder) == ["step-00000010", "step-00000100"]


def test_the_newest_checkpoint_comes_back_with_its_state(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path, 2)
    assert snapshots.latest() is None
    for step in (9, 10):
        snapshots.write(step, writer(str(step)), {"step": step, "tensor": torch.full((2,), step)})
    found = snapshots.latest()
    assert found is not None
    path, state = found
    assert (path / "model").read_text() == "10"
    assert state["step"] == 10
    assert torch.equal(state["tensor"], torch.full((2,), 10))


def test_a_checkpoint_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path, 2)
    snapshots.write(1, writer("one"), {"step": 1})

    def interrupted(path: Path) -> None:
        (path / "model").write_text("tw")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        snapshots.write(2, interrupted, {"step": 2})
    assert [path.name for path in snapshots.paths()] == ["step-00000001"]
    snapshots.write(2, writer("two"), {"step": 2})  # what was left behind is no obstacle
    assert names(snapshots.folder) == ["step-00000001", "step-00000002"]


def test_replacing_keeps_the_old_until_the_new_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "best"
    replace_folder(path, writer("old"))

    def interrupted(fresh: Path) -> None:
        (fresh / "model").write_text("ne")
        assert (path / "model").read_text() == "old"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace_folder(path, interrupted)
    assert (path / "model").read_text() == "old"
    replace_folder(path, writer("new"))
    assert (path / "model").read_text() == "new"
    assert names(tmp_path) == ["best"]


def test_a_best_model_survives_a_kill_between_the_two_renames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshots = Snapshots(tmp_path, 2)
    snapshots.write_best(writer("old"))
    rename = os.rename

    def only_once(source: Path, destination: Path) -> None:
        monkeypatch.setattr(module.os, "rename", killed)
        rename(source, destination)

    def killed(source: Path, destination: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module.os, "rename", only_once)
    with pytest.raises(KeyboardInterrupt):
        snapshots.write_best(writer("new"))
    monkeypatch.undo()
    snapshots.recover()
    assert (snapshots.best / "model").read_text() == "old"


def test_the_chosen_model_is_linked_into_the_run_without_the_trainers_state(
    tmp_path: Path,
) -> None:
    snapshots = Snapshots(tmp_path, 2)
    (tmp_path / "model").write_text("of an earlier attempt")
    path = snapshots.write(3, writer("three"), {"step": 3})
    snapshots.write_best(writer("best"))
    inode = (path / "model").stat().st_ino
    snapshots.promote(path)
    assert names(tmp_path) == ["best", "checkpoints", "model"]
    assert (tmp_path / "model").stat().st_ino == inode
    snapshots.clear()
    assert names(tmp_path) == ["model"]
    assert (tmp_path / "model").read_text() == "three"


def test_generators_go_on_where_they_were() -> None:
    torch.manual_seed(3)
    torch.rand(5)
    state = rng_state(torch.device("cpu"))
    first = torch.rand(7)
    torch.rand(100)
    restore_rng(state, torch.device("cpu"))
    assert torch.equal(torch.rand(7), first)


@pytest.mark.parametrize("name", ["cuda:1", "mps"])
def test_the_devices_own_generator_goes_on_where_it_was(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a device that is not here, a generator of the same interface stands for the real one."""
    device, generator = torch.device(name), torch.Generator().manual_seed(5)
    asked = []

    def get(*which: torch.device) -> torch.Tensor:
        asked.append(which)
        return generator.get_state()

    def put(state: torch.Tensor, *which: torch.device) -> None:
        asked.append(which)
        generator.set_state(state)

    module = getattr(torch, device.type)
    monkeypatch.setattr(module, "get_rng_state", get)
    monkeypatch.setattr(module, "set_rng_state", put)
    state = rng_state(device)
    first = torch.rand(7, generator=generator)
    restore_rng(state, device)
    assert torch.equal(torch.rand(7, generator=generator), first)
    assert asked == [(device,)] * 2 if device.type == "cuda" else [()] * 2


def test_a_full_disk_is_an_oserror(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path, 2)
    snapshots.write(1, writer("one"), {"step": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            snapshots.write(2, writer("two"), {"tensor": torch.zeros(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in snapshots.paths()] == ["step-00000001"]


class InterruptedStream(io.BytesIO):
    """A file during whose second write the user presses Ctrl-C."""

    writes = 0

    def write(self, data: Any) -> int:
        self.writes += 1
        if self.writes == 2:
            raise KeyboardInterrupt
        return super().write(data)


def test_ctrl_c_while_a_checkpoint_is_written_is_heard_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "open", lambda *_: InterruptedStream())
    with pytest.raises(KeyboardInterrupt):
        Snapshots(tmp_path, 2).write(1, lambda path: None, {"tensor": torch.zeros(1000)})
