"""The folder of a study. It is written in place, because a study can be resumed at any point."""

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mixout_export.errors import OutputError
from mixout_export.files.layout import LAYOUT
from mixout_export.files.output import LOCK, acquire_lock, partial_path
from mixout_export.stages.study.engine import PREPARED, STOP
from mixout_export.study.run_log import RunLog


@dataclass(frozen=True)
class StudyFolder:
    """The paths in the folder of a study.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def log(self) -> RunLog:
        """The records of the runs."""
        return RunLog(self.path / LAYOUT.runs)

    @property
    def work(self) -> Path:
        """Where runs in progress lie. It is removed when the study is complete."""
        return self.path / LAYOUT.work

    def begin(self) -> None:
        """Make the folder ready for runs."""
        self.work.mkdir(exist_ok=True)
        (self.work / STOP).unlink(missing_ok=True)
        pictures = self.path / LAYOUT.pictures
        unfinished = pictures.glob(f"*{LAYOUT.partial_suffix}")  # if the last study was killed
        for path in (partial_path(self.path / LAYOUT.report), *unfinished):
            path.unlink(missing_ok=True)

    def ask_to_stop(self) -> None:
        """Ask all runs in progress to save a checkpoint and stop."""
        (self.work / STOP).touch()

    def end(self) -> None:
        """Remove what only runs need."""
        shutil.rmtree(self.work, ignore_errors=True)

    def remove_prepared(self, needed: Iterable[Path]) -> None:
        """Remove the prepared checkpoints that are not needed, whole or not, with their locks."""
        stems = {path.name for path in needed}
        for path in self.work.glob(f"{PREPARED}*"):
            if path.name.split(".")[0] in stems:
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def write_plan(self, text: str) -> None:
        """Replace the plan, which may be the very file that was read."""
        self._replace(self.path / LAYOUT.plan, text)

    def write_summary(self, text: str) -> None:
        """Replace the summary."""
        self._replace(self.path / LAYOUT.summary, text)

    def _replace(self, path: Path, text: str) -> None:
        """Replace a file. A reader never finds half of it, even if the study is killed."""
        temporary = path.with_name(f"{path.name}.tmp")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)

    def clean(self, key: str) -> None:
        """Remove what a run has left in `work`."""
        for folder in (self.work / key, partial_path(self.work / key)):
            shutil.rmtree(folder, ignore_errors=True)

    def has_kept(self, key: str) -> bool:
        """Return whether the trained checkpoint of a run is kept."""
        return self._kept(key).exists()

    def keep(self, key: str) -> None:
        """Move the trained checkpoint of a run out of `work`, to stay."""
        trained, kept = self.work / key, self._kept(key)
        if trained.exists() and not kept.exists():
            kept.parent.mkdir(exist_ok=True)
            trained.rename(kept)

    def _kept(self, key: str) -> Path:
        return self.path / LAYOUT.checkpoints / key


def _is_empty(path: Path) -> bool:
    return not path.exists() or all(entry.name == LOCK for entry in path.iterdir())


def check_folder(out: Path) -> None:
    """Check that a path is the folder of a study, or can become one.

    Raises:
        OutputError: It holds something else.
    """
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out}: is a file, expected a folder or nothing; choose another OUT")
    if not _is_empty(out) and not (out / LAYOUT.runs).is_file():
        raise OutputError(
            f"{out}: is not empty and contains no study (no {LAYOUT.runs}); choose another OUT"
        )


@contextmanager
def study_folder(out: Path, *, overwrite: bool) -> Iterator[StudyFolder]:
    """Yield the folder of a study, which no other process writes meanwhile.

    Args:
        out: A new folder, or that of the study to go on with.
        overwrite: Whether to remove the records that are there.

    Raises:
        OutputError: The folder holds something else, another process writes it, or it cannot be
            written.
    """
    check_folder(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with acquire_lock(out):
            if overwrite:
                _clear(out)
            folder = StudyFolder(out)
            folder.log.repair()
            yield folder
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror or error})") from error


def _clear(out: Path) -> None:
    """Remove everything that a study writes."""
    for name in (LAYOUT.work, LAYOUT.checkpoints, LAYOUT.pictures):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in (LAYOUT.plan, LAYOUT.summary, LAYOUT.report, LAYOUT.runs):
        (out / name).unlink(missing_ok=True)
