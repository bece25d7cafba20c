"""Make an output folder appear complete or not at all."""

import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from mixout_export.errors import ArgumentError, OutputError
from mixout_export.files.layout import LAYOUT

#: The lock on a folder in progress. While the file exists, the folder counts as ours.
LOCK = ".mixout-export.lock"
_WINDOWS = os.name == "nt"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _is_empty(path: Path) -> bool:
    return path.is_dir() and next(path.iterdir(), None) is None


def _with_suffix(out: Path, suffix: str) -> Path:
    return out.with_name(out.name + suffix)


def partial_path(out: Path) -> Path:
    """Return where the work in progress of `out` lies."""
    return _with_suffix(out, LAYOUT.partial_suffix)


def acquire_lock(folder: Path) -> BaseFileLock:
    """Lock a folder for this process. The system ends the lock if the process is killed.

    Raises:
        OutputError: Another process holds the lock.
    """
    lock = FileLock(folder / LOCK, blocking=False, thread_local=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise OutputError(
            f"{folder}: another process is writing it; wait for it or choose another OUT"
        ) from error
    return lock


@dataclass
class OutputFolder:
    """A folder being written at `OUT.partial`, to be renamed to `OUT` once it is whole."""

    out: Path
    partial: Path
    _lock: BaseFileLock | None = field(default=None, repr=False)

    def publish(self) -> None:
        """Rename `partial` to `out`; only then remove what was there before.

        Both folders hold the lock's file while they are renamed. After a kill at any moment, the
        next run therefore recognizes them as ours.
        """
        self._unlock_for_windows()
        previous = _with_suffix(self.out, LAYOUT.previous_suffix)
        replace = self.out.exists() and not _is_empty(self.out)
        if replace:
            (self.out / LOCK).touch()
            os.rename(self.out, previous)
        elif self.out.exists():
            self.out.rmdir()  # Windows renames to no path that exists
        os.rename(self.partial, self.out)
        (self.out / LOCK).unlink(missing_ok=True)
        if replace:
            shutil.rmtree(previous)

    def discard(self) -> None:
        """Remove the unfinished folder."""
        self._unlock_for_windows()
        shutil.rmtree(self.partial, ignore_errors=True)

    def lock(self) -> None:
        """Lock `partial` for this process."""
        self._lock = acquire_lock(self.partial)

    def unlock(self) -> None:
        """Release the lock. An unfinished folder keeps the lock's file, which says it is ours."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None
            if self.partial.is_dir():
                (self.partial / LOCK).touch()  # released on Windows, the file is gone

    def _unlock_for_windows(self) -> None:
        """Release the lock on Windows, which cannot rename or remove a folder with an open file."""
        if _WINDOWS:
            self.unlock()


def _check_outside(out: Path, source: Path) -> None:
    """Refuse a path inside a folder that is read."""
    if source.is_dir() and source.resolve() in out.resolve().parents:
        raise ArgumentError(f"{out}: OUT lies inside the source {source}; choose another")


def check_destination(out: Path, sources: Sequence[Path], *, overwrite: bool) -> None:
    """Refuse a destination that would destroy something.

    Args:
        out: The destination folder. It has a name of its own and is not a symbolic link.
        sources: What is being read; `out` may be none of them nor lie inside one, nor contain one.
        overwrite: Whether a non-empty `out` may be replaced.
    """
    if out.name in ("", ".."):
        raise ArgumentError(f"{out}: OUT has no name of its own; give the folder's path")
    if out.is_symlink():
        raise OutputError(f"{out}: is a symbolic link; give the path {out.resolve()} it points to")
    resolved = out.resolve()
    for source in sources:
        origin = source.resolve()
        if resolved == origin:
            raise ArgumentError(f"{out}: OUT is the source itself; choose another")
        _check_outside(out, source)
        if resolved in origin.parents and out.exists() and not _is_empty(out):
            raise ArgumentError(f"{out}: OUT contains the source {source}; choose another")
    above = next(parent for parent in resolved.parents if parent.exists())
    if not above.is_dir():
        raise OutputError(f"{out}: {above.name} is a file, expected a folder; choose another OUT")
    if not out.exists():
        return
    if not out.is_dir():
        raise OutputError(f"{out}: is a file, expected a folder or nothing; choose another OUT")
    if not _is_empty(out) and not overwrite:
        raise OutputError(
            f"{out}: is not empty; give --overwrite to replace it, or choose another OUT"
        )


def _recover(out: Path) -> None:
    """Finish what a run that was killed while it replaced `out` had begun."""
    previous = _with_suffix(out, LAYOUT.previous_suffix)
    if not os.path.lexists(previous):
        return
    if not (previous / LOCK).exists():
        if out.exists() and not _is_empty(out):
            raise OutputError(f"{previous}: is in the way; move it elsewhere")
        return
    if out.exists() and not _is_empty(out):  # died before it removed the old folder
        shutil.rmtree(previous)
    else:  # died between its two renames
        os.rename(previous, out)
        (out / LOCK).unlink()


def _prepare_partial(partial: Path) -> None:
    """Create `partial`, or take over that of an unfinished run."""
    if partial.exists():
        ours = partial.is_dir() and ((partial / LOCK).exists() or _is_empty(partial))
        if not ours:
            raise OutputError(
                f"{partial}: is in the way and was not made by this tool; move it elsewhere"
            )
    partial.mkdir(parents=True, exist_ok=True)


def _clear(partial: Path) -> None:
    for path in partial.iterdir():
        if path.name == LOCK:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _disk_message(error: OSError, partial: Path) -> str:
    """Say what an error while `partial` was written means."""
    reason = error.strerror or str(error)
    if error.errno in _FULL:  # a copy names its source, which is not what is full
        return f"{partial}: cannot be written ({reason}); make room there, or choose another OUT"
    named = Path(error.filename) if isinstance(error.filename, str | os.PathLike) else partial
    verb = "written" if named == partial or partial in named.parents else "read"
    return f"{named}: cannot be {verb} ({reason})"


@contextmanager
def output_folder(
    out: Path,
    sources: Sequence[Path] = (),
    *,
    overwrite: bool = False,
    resume: bool = False,
    keep_partial: bool = False,
) -> Iterator[OutputFolder]:
    """Yield a folder to write into that becomes `out` when the block ends without an error.

    The old `out` stays until the new one is whole. After an error, and after Ctrl-C, the
    unfinished folder is removed, unless `keep_partial` says that it can be resumed.

    Args:
        out: The destination; its parents are created.
        sources: Paths that are read, which `out` must not touch.
        overwrite: Whether a non-empty `out` may be replaced.
        resume: Keep what an earlier, unfinished run left in `OUT.partial`.
        keep_partial: Leave `OUT.partial` after an error.
    """
    check_destination(out, sources, overwrite=overwrite)
    partial = partial_path(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _recover(out)
        check_destination(out, sources, overwrite=overwrite)
        _prepare_partial(partial)
        folder = OutputFolder(out=out, partial=partial)
        folder.lock()
    except OSError as error:
        raise OutputError(
            f"{out}: cannot be written ({error.strerror}); choose another place"
        ) from error
    try:
        if not resume:
            _clear(partial)
        yield folder
        folder.publish()
    except BaseException as error:
        if not keep_partial:
            folder.discard()
        if isinstance(error, OSError):
            raise OutputError(_disk_message(error, partial)) from error
        raise
    finally:
        folder.unlock()


def check_file(path: Path, sources: Sequence[Path] = ()) -> None:
    """Refuse a path where no file can be written or replaced, or that lies inside a source."""
    for source in sources:
        _check_outside(path, source)
    if not path.parent.is_dir():
        raise OutputError(f"{path}: the folder {path.parent} does not exist; create it")
    if path.is_dir():
        raise OutputError(f"{path}: is a folder, expected a file's name")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"{path}: the folder {path.parent} is read-only; choose another place")


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to that becomes `path` when the block ends without an error.

    A file that is at `path` stays until the new one is whole, and after an error. The new one is
    written into a folder beside it, which is taken over if an earlier run was killed.
    """
    check_file(path)
    folder = OutputFolder(out=path, partial=partial_path(path))
    try:
        _prepare_partial(folder.partial)
        folder.lock()
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written ({error.strerror}); choose another place"
        ) from error
    try:
        _clear(folder.partial)
        yield folder.partial / path.name
        os.replace(folder.partial / path.name, path)
    except OSError as error:
        raise OutputError(_disk_message(error, folder.partial)) from error
    finally:
        folder.discard()
        folder.unlock()
