"""`push`: upload a folder to the hub, exactly the files that were shown before."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils._paths import filter_repo_objects
from huggingface_hub.utils._validators import validate_repo_id

from mixout_export.artifacts.opening import open_artifact
from mixout_export.errors import ArgumentError, CheckpointError, HubError, ParityError
from mixout_export.files.input_files import InputFiles
from mixout_export.files.layout import LAYOUT
from mixout_export.files.output import LOCK
from mixout_export.printable import first_line
from mixout_export.provenance.manifest import check_manifest
from mixout_export.version import __version__

#: Hidden files (".git", ".env") belong to this machine and never to a model.
_HIDDEN = (".*", "*/.*")

_REFUSALS = {
    401: "log in with `hf auth login`, or set HF_TOKEN",
    403: "you have no permission to write there; check the name, and the rights of your token",
    404: "the repository or branch does not exist, or you may not see it",
    409: "something else is changing the repository; try again",
    413: "a file is too large for the hub",
    429: "the hub received too many requests; wait a while",
}


@dataclass(frozen=True)
class PushFile:
    """A file to upload.

    Attributes:
        path: Its path in the folder and in the repository.
        bytes: Its size.
        listed: Whether the folder's manifest lists it.
    """

    path: str
    bytes: int
    listed: bool


@dataclass(frozen=True)
class PushPlan:
    """What to upload, and where to.

    Attributes:
        folder: The folder.
        kind: Its kind: "huggingface" (plain), "mixout", "onnx" or "bundle".
        repo: The repository's name on the hub.
        endpoint: The hub's address.
        revision: The branch; None means the main branch.
        private: Whether the repository must be private. Otherwise the account's default applies to
            a new repository.
        files: The files.
        has_manifest: Whether the folder has a manifest, which then matches.
    """

    folder: Path
    kind: str
    repo: str
    endpoint: str
    revision: str | None
    private: bool
    files: tuple[PushFile, ...]
    has_manifest: bool

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(file.bytes for file in self.files)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return {**asdict(self), "folder": str(self.folder), "bytes": self.bytes}


@dataclass(frozen=True)
class PushResult:
    """The result of an upload.

    Attributes:
        repo: The repository.
        url: Its address.
        commit: The commit with the files.
        files: Number of files.
        bytes: Their total size.
    """

    repo: str
    url: str
    commit: str
    files: int
    bytes: int


def _check_repo(repo: str) -> None:
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ArgumentError(
            f"repo: got {repo!r}, expected NAME or OWNER/NAME of at most 96 letters, digits, "
            "'-', '_' and '.'"
        ) from error


def _refuse_unfinished(folder: Path) -> None:
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; check the path")
    suffix = LAYOUT.partial_suffix
    unfinished = [folder] if folder.resolve().name.endswith(suffix) else []
    unfinished += [p for p in folder.rglob("*") if p.name == LOCK or p.name.endswith(suffix)]
    if unfinished:
        raise CheckpointError(
            f"{unfinished[0]}: is not complete; wait until the command that writes it has ended"
        )


def _files(folder: Path, unlisted: set[str]) -> tuple[PushFile, ...]:
    paths = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    wanted = list(filter_repo_objects(sorted(paths), ignore_patterns=list(_HIDDEN)))
    for name in wanted:
        if not paths[name].resolve().is_relative_to(folder.resolve()):
            raise CheckpointError(
                f"{paths[name]}: is a link to {paths[name].resolve()}, outside the folder; replace "
                "the link with the file, or remove it"
            )
    return tuple(PushFile(p, paths[p].stat().st_size, p not in unlisted) for p in wanted)


def plan_push(
    folder: Path, repo: str, *, revision: str | None = None, private: bool = False
) -> PushPlan:
    """Check a folder and return what to upload, without network access.

    Args:
        folder: A collapsed, ONNX or mixout folder, or a bundle.
        repo: NAME or OWNER/NAME on the hub.
        revision: Branch to upload to, which is created if missing; None means the main branch.
        private: Whether the repository must be private.

    Raises:
        ArgumentError: `repo` is not a valid name of a repository.
        CheckpointError: The folder has no kind that `push` knows, or is not complete.
        ParityError: The folder does not match its manifest.
    """
    _check_repo(repo)
    _refuse_unfinished(folder)
    files = InputFiles(folder)
    check = check_manifest(files)
    if check.problems:
        raise ParityError(f"{check.problems[0]}; nothing was uploaded")
    has_manifest = check.manifest is not None
    return PushPlan(
        folder=folder,
        kind=open_artifact(files).kind,
        repo=repo,
        endpoint=constants.ENDPOINT,
        revision=revision,
        private=private,
        files=_files(folder, set(check.unlisted) if has_manifest else set()),
        has_manifest=has_manifest,
    )


@contextmanager
def _one_sentence(plan: PushPlan) -> Iterator[None]:
    """Turn any error of the hub's client into a `HubError` of one sentence."""
    where = f"{plan.repo} at {plan.endpoint}"
    try:
        yield
    except HubError:
        raise
    except OfflineModeIsEnabled as error:
        raise HubError(f"{where}: HF_HUB_OFFLINE forbids uploads; unset it") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        said = (error.server_message or first_line(error)).rstrip(".")
        reason = _REFUSALS.get(status, "try again later")
        raise HubError(f"{where}: the hub answered {status} ({said}); {reason}") from error
    except Exception as error:  # the hub client's errors share no base class with the network's
        raise HubError(
            f"{where}: cannot be reached ({first_line(error)}); check the network"
        ) from error


def _refuse_public(api: HfApi, plan: PushPlan) -> None:
    """Refuse `--private` for a public repository, because `create_repo` would not change it."""
    if plan.private and not api.repo_info(plan.repo).private:
        raise HubError(
            f"{plan.repo} at {plan.endpoint}: exists and is public, but --private was given; "
            "choose another name, or make it private on the hub"
        )


def push_folder(plan: PushPlan, *, message: str | None = None) -> PushResult:
    """Upload the files of a plan.

    Args:
        plan: The plan.
        message: The commit message; None gives one that describes the folder.

    Raises:
        HubError: The hub cannot be reached, or refuses the upload.
    """
    api = HfApi(library_name="mixout-export", library_version=__version__)
    with _one_sentence(plan):
        url = api.create_repo(plan.repo, private=plan.private or None, exist_ok=True)
        repo = url.repo_id
        _refuse_public(api, plan)
        if plan.revision is not None:
            api.create_branch(repo, branch=plan.revision, exist_ok=True)
        commit = api.create_commit(
            repo,
            [CommitOperationAdd(file.path, plan.folder / file.path) for file in plan.files],
            revision=plan.revision,
            commit_message=message or f"Upload {plan.kind} folder with mixout-export {__version__}",
        )
    return PushResult(repo, str(url), commit.oid, len(plan.files), plan.bytes)
