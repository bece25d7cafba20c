import errno
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from contextlib import suppress
from pathlib import Path

import pytest
from filelock import FileLock

from mixout_export.errors import ArgumentError, OutputError
from mixout_export.files import output
from mixout_export.files.output import check_destination, output_folder, partial_path, replaced_file

MARK = ".mixout-export.lock"


def names(path: Path) -> set[str]:
    return {child.name for child in path.iterdir()}


def fill(path: Path, text: str = "old") -> Path:
    path.mkdir(parents=True)
    (path / "file").write_text(text)
    return path


def write(
    out: Path, text: str = "new", *, error: BaseException | None = None, **options: object
) -> None:
    with output_folder(out, **options) as folder:
        (folder.partial / "file").write_text(text)
        if error is not None:
            raise error


def test_the_folder_appears_when_the_block_ends(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b" / "out"
    with output_folder(out) as folder:
        (folder.partial / "file").write_text("new")
        assert folder.partial == partial_path(out) == out.with_name("out.partial")
        assert not out.exists()
    assert names(out.parent) == {"out"}
    assert names(out) == {"file"}


def test_an_empty_folder_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write(tmp_path / "out")
    assert (tmp_path / "out" / "file").read_text() == "new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_nothing(error: type[BaseException], tmp_path: Path) -> None:
    with pytest.raises(error):
        write(tmp_path / "out", error=error())
    assert names(tmp_path) == set()


def test_a_full_folder_is_refused(tmp_path: Path) -> None:
    out = fill(tmp_path / "out")
    with pytest.raises(OutputError, match="out: is not empty; give --overwrite"):
        write(out)
    assert (out / "file").read_text() == "old"
    assert names(tmp_path) == {"out"}


def test_overwriting_keeps_the_old_folder_until_the_new_one_is_whole(tmp_path: Path) -> None:
    out = fill(tmp_path / "out")
    (out / "leftover").write_text("old")
    with output_folder(out, overwrite=True) as folder:
        (folder.partial / "file").write_text("new")
        assert (out / "file").read_text() == "old"
    assert (out / "file").read_text() == "new"
    assert names(out) == {"file"}
    assert names(tmp_path) == {"out"}


def test_an_error_while_overwriting_leaves_the_old_folder(tmp_path: Path) -> None:
    out = fill(tmp_path / "out")
    with pytest.raises(ValueError, match="stop"):
        write(out, error=ValueError("stop"), overwrite=True)
    assert (out / "file").read_text() == "old"
    assert names(out) == {"file"}
    assert names(tmp_path) == {"out"}


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="out: is a file"):
            write(tmp_path / "out", overwrite=overwrite)
    with pytest.raises(OutputError, match="out is a file, expected a folder"):
        write(tmp_path / "out" / "inner")
    assert (tmp_path / "out").read_text() == "precious"
    assert names(tmp_path) == {"out"}


def test_a_link_in_the_way_is_refused(tmp_path: Path) -> None:
    target = fill(tmp_path / "target")
    (tmp_path / "out").symlink_to(target)
    with pytest.raises(OutputError, match=r"is a symbolic link; give the path .*target"):
        write(tmp_path / "out", overwrite=True)
    assert (target / "file").read_text() == "old"


@pytest.mark.parametrize("out", [".", "..", "/"])
def test_a_destination_without_a_name_is_refused(
    out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArgumentError, match="has no name of its own"):
        write(Path(out))


def test_a_source_is_never_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = fill(tmp_path / "runs" / "source")
    (tmp_path / "link").symlink_to(source)
    monkeypatch.chdir(tmp_path)
    for out, message in (
        (source, "is the source itself"),
        (Path("runs/source"), "is the source itself"),
        (source / "inner" / "out", "lies inside the source"),
        (tmp_path / "link" / "out", "lies inside the source"),
        (tmp_path / "runs", "contains the source"),
    ):
        for origin in (source, Path("runs/source")):
            with pytest.raises(ArgumentError, match=message):
                write(out, sources=[origin], overwrite=True)
    assert names(source) == {"file"}
    write(tmp_path / "runs" / "source2", sources=[source])


def test_a_source_file_may_lie_beside_but_not_inside(tmp_path: Path) -> None:
    data = tmp_path / "out" / "train.csv"
    data.parent.mkdir()
    data.write_text("x")
    with pytest.raises(ArgumentError, match="contains the source"):
        check_destination(tmp_path / "out", [data], overwrite=True)


def test_a_killed_runs_leftovers_are_taken_over_and_cleared(tmp_path: Path) -> None:
    partial = fill(tmp_path / "out.partial")
    (partial / MARK).touch()
    (partial / "inner").mkdir()
    with output_folder(tmp_path / "out") as folder:
        assert names(folder.partial) == {MARK}
    assert names(tmp_path) == {"out"}
    assert names(tmp_path / "out") == set()


def test_a_killed_runs_leftovers_can_be_resumed(tmp_path: Path) -> None:
    partial = fill(tmp_path / "out.partial")
    (partial / MARK).touch()
    with output_folder(tmp_path / "out", resume=True) as folder:
        assert (folder.partial / "file").read_text() == "old"
    with output_folder(tmp_path / "fresh", resume=True) as folder:
        assert names(folder.partial) == {MARK}


def test_an_interrupted_run_can_keep_its_work(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stop"):
        write(tmp_path / "out", "half", error=ValueError("stop"), keep_partial=True)
    with output_folder(tmp_path / "out", resume=True, keep_partial=True) as folder:
        assert (folder.partial / "file").read_text() == "half"


def test_somebody_elses_partial_folder_is_refused(tmp_path: Path) -> None:
    fill(tmp_path / "out.partial", "precious")
    for resume in (False, True):
        with pytest.raises(OutputError, match="was not made by this tool"):
            write(tmp_path / "out", resume=resume)
    assert (tmp_path / "out.partial" / "file").read_text() == "precious"
    assert not (tmp_path / "out").exists()


def test_two_processes_do_not_write_the_same_folder(tmp_path: Path) -> None:
    script = textwrap.dedent(f"""
        from pathlib import Path
        from mixout_export.files.output import output_folder
        from mixout_export.errors import OutputError
        try:
            with output_folder(Path({str(tmp_path / "out")!r})):
                print("wrote")
        except OutputError as error:
            print(error)
    """)
    with output_folder(tmp_path / "out") as folder:
        (folder.partial / "file").write_text("mine")
        other = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        )
        assert "another process is writing it" in other.stdout
        assert (folder.partial / "file").read_text() == "mine"
    assert (tmp_path / "out" / "file").read_text() == "mine"


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    script = textwrap.dedent(f"""
        import os, signal
        from pathlib import Path
        from mixout_export.files.output import output_folder
        with output_folder(Path({str(tmp_path / "out")!r})) as folder:
            (folder.partial / "file").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    """)
    killed = subprocess.run([sys.executable, "-c", script])
    assert killed.returncode == -signal.SIGKILL
    assert names(tmp_path / "out.partial") == {MARK, "file"}
    write(tmp_path / "out")
    assert names(tmp_path) == {"out"}
    assert names(tmp_path / "out") == {"file"}


def test_a_killed_process_leaves_no_half_written_file(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    path.write_text("old")
    script = textwrap.dedent(f"""
        import os, signal
        from pathlib import Path
        from mixout_export.files.output import replaced_file
        with replaced_file(Path({str(path)!r})) as file:
            file.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    """)
    killed = subprocess.run([sys.executable, "-c", script])
    assert killed.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    with replaced_file(path) as file:
        file.write_text("new")
    assert (path.read_text(), names(tmp_path)) == ("new", {"out.csv"})


def test_a_users_own_file_called_partial_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out.csv.partial").write_text("precious")
    with (
        pytest.raises(OutputError, match=r"partial: is in the way and was not made by this tool"),
        replaced_file(tmp_path / "out.csv"),
    ):
        pass
    assert (tmp_path / "out.csv.partial").read_text() == "precious"


def test_one_process_does_not_write_the_same_folder_twice(tmp_path: Path) -> None:
    with (
        output_folder(tmp_path / "out"),
        pytest.raises(OutputError, match=r"out\.partial: another process is writing it; wait"),
    ):
        write(tmp_path / "out")
    assert names(tmp_path) == {"out"}


@pytest.mark.parametrize("error", [None, ValueError("stop")])
def test_no_file_is_open_in_a_folder_that_windows_renames_or_removes(
    error: ValueError | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "_WINDOWS", True)
    moved = []

    def unlocked(function):
        def call(path, *arguments, **options):
            if Path(path).name == "out.partial":
                with FileLock(Path(path) / MARK, blocking=False):
                    moved.append(function.__name__)
            return function(path, *arguments, **options)

        return call

    monkeypatch.setattr(os, "rename", unlocked(os.rename))
    monkeypatch.setattr(shutil, "rmtree", unlocked(shutil.rmtree))
    (tmp_path / "out").mkdir()
    with suppress(ValueError):
        write(tmp_path / "out", error=error)
    assert moved == (["rename"] if error is None else ["rmtree"])
    assert names(tmp_path / "out") == ({"file"} if error is None else set())


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_is_one_sentence_and_leaves_the_old_folder(code: int, tmp_path: Path) -> None:
    out = fill(tmp_path / "out")
    error = OSError(code, os.strerror(code))
    with pytest.raises(OutputError, match=rf"out\.partial: .*{os.strerror(code)}"):
        write(out, error=error, overwrite=True)
    assert (out / "file").read_text() == "old"
    assert names(tmp_path) == {"out"}


def test_a_folder_without_permission_is_one_sentence(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="Permission denied"):
        write(tmp_path / "out")


# A kill at any moment of the renames --------------------------------------------------------------


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the process runs after it."""


@pytest.mark.parametrize("step", range(5))
def test_a_kill_while_replacing_loses_neither_folder(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call that changes the disk while publishing is a moment to be killed at."""
    out = fill(tmp_path / "out")
    calls = iter(range(100))

    def dying(function):
        def call(*args, **kwargs):
            if next(calls) == step:
                raise Killed
            return function(*args, **kwargs)

        return call

    def publish() -> None:
        with output_folder(out, overwrite=True, keep_partial=True) as folder:
            (folder.partial / "file").write_text("new")
            with monkeypatch.context() as patch:
                patch.setattr(os, "rename", dying(os.rename))
                patch.setattr(shutil, "rmtree", dying(shutil.rmtree))
                patch.setattr(Path, "touch", dying(Path.touch))
                patch.setattr(Path, "unlink", dying(Path.unlink))
                folder.publish()

    with pytest.raises(Killed):
        publish()
    texts = {child.name: (child / "file").read_text() for child in tmp_path.iterdir()}
    assert set(texts.values()) == {"old", "new"}
    write(out, "third", overwrite=True)
    assert (out / "file").read_text() == "third"
    assert names(out) == {"file"}
    assert names(tmp_path) == {"out"}


def test_a_folder_lost_between_the_renames_is_put_back(tmp_path: Path) -> None:
    (fill(tmp_path / "out.previous") / MARK).touch()
    with pytest.raises(OutputError, match="is not empty"):
        write(tmp_path / "out")
    assert (tmp_path / "out" / "file").read_text() == "old"
    assert names(tmp_path / "out") == {"file"}


def test_a_users_own_folder_called_previous_is_left_alone(tmp_path: Path) -> None:
    previous = fill(tmp_path / "out.previous", "precious")
    write(tmp_path / "out")
    with pytest.raises(OutputError, match=r"out\.previous: is in the way"):
        write(tmp_path / "out", "newer", overwrite=True)
    assert (previous / "file").read_text() == "precious"
    assert (tmp_path / "out" / "file").read_text() == "new"
