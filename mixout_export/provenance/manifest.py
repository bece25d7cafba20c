"""Write and check `manifest.json`: the hash of each file in a folder, and the steps that led to it.

The manifest also protects itself. It holds the SHA-256 of its own text without that line, and the
same content always has the same text. So a change of any byte is found.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Any

from mixout_export.errors import CheckpointError, ParityError
from mixout_export.files.input_files import InputFiles
from mixout_export.files.json_files import json_text
from mixout_export.files.layout import LAYOUT
from mixout_export.files.output import LOCK
from mixout_export.files.streams import file_digest
from mixout_export.files.tensors import joint_digest
from mixout_export.provenance.links import DataFile, Link, broken_links, plain_options
from mixout_export.version import __version__

logger = logging.getLogger(__name__)

FORMAT = 1

#: Libraries whose versions may influence what a step writes.
_LIBRARIES = ("torch", "transformers", "safetensors", "onnx", "onnxscript", "onnxruntime")

#: Keys of our manifests. A `manifest.json` with none of them belongs to another tool.
_OUR_KEYS = {"format", "chain", "files", "weights_sha256", "manifest_guard"}

#: Suffixes of files that hold weights.
_WEIGHTS = (".safetensors", ".onnx", ".data", ".bin")

#: Files that a manifest does not list: itself, the signature of the folder, and the lock file.
_UNLISTED = (LAYOUT.manifest, LAYOUT.signature, LOCK)


@dataclass(frozen=True)
class ListedFile:
    """A manifest's entry for one file: its SHA-256 and its size in bytes."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """The content of a manifest.

    Attributes:
        link: The step that wrote the folder.
        chain: The earlier steps, the base first.
        files: Path in the folder, with slashes → entry of the file.
    """

    link: Link
    chain: tuple[Link, ...]
    files: Mapping[str, ListedFile]

    @property
    def whole_chain(self) -> tuple[Link, ...]:
        """All steps, including the last one."""
        return (*self.chain, self.link)

    def _content(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "tool": f"mixout-export {self.link.versions.get('mixout-export', '')}".strip(),
            **self.link.to_dict(),
            "chain": [link.to_dict() for link in self.chain],
            "files": {name: vars(file) for name, file in sorted(self.files.items())},
        }

    def to_text(self) -> str:
        """Return the manifest's text. The same content always gives the same text."""
        content = self._content()
        guard = hashlib.sha256(json_text(content).encode()).hexdigest()
        return json_text({**content, "manifest_guard": guard})


@dataclass(frozen=True)
class ManifestCheck:
    """The result of comparing a folder with its manifest.

    Attributes:
        manifest: The manifest; None if the folder has none or it cannot be read.
        problems: What does not match, as sentences; empty if everything matches.
        unlisted: Files that were added, and a model card that was edited. Neither is a problem.
    """

    manifest: Manifest | None
    problems: tuple[str, ...] = ()
    unlisted: tuple[str, ...] = ()


def _files_of(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.relative_to(folder).as_posix() not in _UNLISTED:
            yield path


def versions_used() -> dict[str, str]:
    """Return library → version for this tool and the installed libraries."""
    found = {"mixout-export": __version__}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _links_before(
    source: InputFiles, input_sha256: str, base: Link | None
) -> tuple[tuple[Link, ...], tuple[str, ...]]:
    """Return the steps that led to a source, and its files that have changed since."""
    manifest = find_manifest(source)
    if manifest is None:
        return (base or Link("source", input_sha256, source.folder.resolve().name),), ()
    last = replace(manifest.link, manifest_sha256=source.digest(source.folder / LAYOUT.manifest))
    return (*manifest.chain, last), tuple(_changed_since(source, manifest))


def _changed_since(source: InputFiles, manifest: Manifest) -> Iterator[str]:
    """Yield the files that changed before a step read them, except weights and the model card.

    Weights are large and are hashed while they are read; see `Link.input_sha256`.
    """
    for name, file in manifest.files.items():
        path = source.folder / name
        if path.suffix in _WEIGHTS or _is_model_card(name, manifest):
            continue
        if not path.is_file() or source.digest(path) != file.sha256:
            yield name
    if _was_edited(source, manifest):
        yield LAYOUT.manifest


def _was_edited(files: InputFiles, manifest: Manifest) -> bool:
    """Return whether the manifest's text differs from the text that its content must have."""
    return files.read(LAYOUT.manifest) != manifest.to_text().encode()


def write_manifest(
    folder: Path,
    *,
    step: str,
    source: InputFiles,
    input_sha256: str,
    weights: Sequence[str],
    options: Mapping[str, Any],
    data: Sequence[DataFile] = (),
    base: Link | None = None,
    known: Mapping[str, str] | None = None,
) -> Manifest:
    """Write a folder's manifest, after all of its other files.

    Args:
        folder: The folder. It may still have its temporary name.
        step: The step that wrote the folder, for example "collapse".
        source: The files of the folder that was read. Its manifest gives the earlier steps.
        input_sha256: Joint hash of the weights that were read.
        weights: Paths in the folder of the files that hold weights.
        options: Options of the step. Paths are reduced to their last names.
        data: The tables that were read.
        base: The first link for a source without a manifest; None makes a link for the source.
        known: Path in the folder → SHA-256, for files that were hashed while they were written.
    """
    known = dict(known or {})
    chain, changed = _links_before(source, input_sha256, base)
    present = {path.relative_to(folder).as_posix(): path for path in _files_of(folder)}
    fresh = _digests(
        InputFiles(folder), (path for key, path in present.items() if key not in known)
    )
    hashes = {key: known.get(key) or fresh[path] for key, path in present.items()}
    manifest = Manifest(
        link=Link(
            step=step,
            weights_sha256=joint_digest({key: hashes[key] for key in weights}),
            input_sha256=input_sha256,
            options=plain_options(options),
            versions=versions_used(),
            data=tuple(data),
            source_changed=changed,
        ),
        chain=chain,
        files={key: ListedFile(hashes[key], path.stat().st_size) for key, path in present.items()},
    )
    (folder / LAYOUT.manifest).write_text(manifest.to_text(), encoding="utf-8", newline="\n")
    for problem in broken_links(manifest.whole_chain):
        logger.warning("%s: %s; inspect will report this from now on", source.folder, problem)
    return manifest


def read_manifest(files: InputFiles) -> Manifest:
    """Return a folder's manifest. A missing or damaged one raises `CheckpointError`."""
    manifest = find_manifest(files)
    if manifest is None:
        raise CheckpointError(f"{files.folder / LAYOUT.manifest}: is not a manifest of this tool")
    return manifest


def find_manifest(files: InputFiles) -> Manifest | None:
    """Return a folder's manifest; None if it has none or another tool wrote it.

    A damaged manifest, or one of an unknown format, raises a `CheckpointError`.
    """
    path = files.folder / LAYOUT.manifest
    if not path.exists():
        return None
    try:
        content = json.loads(files.read(LAYOUT.manifest))
        if isinstance(content, dict) and _OUR_KEYS.isdisjoint(content):
            return None
        json_text(content).encode()  # JSON may contain half a surrogate pair, which is not text
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(
            f"{path}: the manifest has format {found!r}, expected {FORMAT}; it may be from a newer "
            "mixout-export, so update this one"
        )
    own = {"format", "tool", "chain", "files", "manifest_guard"}
    try:
        return Manifest(
            link=Link.from_dict({k: v for k, v in content.items() if k not in own}),
            chain=tuple(Link.from_dict(link) for link in content["chain"]),
            files={name: _listed(name, file) for name, file in content["files"].items()},
        )
    except (AttributeError, KeyError, TypeError, CheckpointError) as error:
        raise CheckpointError(f"{path}: is not a manifest of this tool ({error})") from error


def _listed(name: str, fields: Mapping[str, Any]) -> ListedFile:
    """Read a file's entry, which must be a hash and a size of a file inside the folder."""
    file = ListedFile(**fields)
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise CheckpointError(f"the file {name!r:.60} is outside the folder")
    if not isinstance(file.sha256, str) or not isinstance(file.bytes, int):
        raise CheckpointError(f"the entry of {name!r:.60} is not a SHA-256 and a size")
    return file


def _is_model_card(name: str, manifest: Manifest) -> bool:
    """Return whether a file is a model card, which users may edit. A bundle's page is not one."""
    return name == LAYOUT.card and manifest.link.step != "bundle"


def _digests(files: InputFiles, paths: Iterable[Path]) -> dict[Path, str]:
    """Hash several files in two threads. Hashing releases the interpreter's lock."""
    paths = list(paths)
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(paths, pool.map(files.digest, paths), strict=True))


def _changed_files(files: InputFiles, manifest: Manifest) -> Iterator[str]:
    folder, step = files.folder, manifest.link.step
    there = {name: folder / name for name in manifest.files if (folder / name).is_file()}
    digests = _digests(files, there.values())
    for name, file in manifest.files.items():
        path = there.get(name)
        if _is_model_card(name, manifest):
            continue
        if path is None:
            yield f"{folder / name}: is missing, but {step} wrote it"
        elif digests[path] != file.sha256:
            yield (
                f"{path}: was changed after {step} wrote it: its SHA-256 is "
                f"{digests[path][:12]}…, expected {file.sha256[:12]}…"
            )


@contextmanager
def damage_explained(*sources: InputFiles) -> Iterator[None]:
    """Raise `ParityError` if a folder cannot be opened and does not match its manifest."""
    try:
        yield
    except CheckpointError as error:
        for files in sources:
            problems = check_manifest(files).problems if files.folder.is_dir() else ()
            if problems:
                raise ParityError(f"{problems[0]}; it cannot be opened: {error}") from error
        raise


def check_manifest(files: InputFiles) -> ManifestCheck:
    """Compare a folder with its manifest. A folder without a manifest has no problems."""
    folder = files.folder
    try:
        manifest = find_manifest(files)
    except CheckpointError as error:
        return ManifestCheck(None, (str(error),))
    if manifest is None:
        return ManifestCheck(None)
    step = manifest.link.step
    problems = list(_changed_files(files, manifest))
    if _was_edited(files, manifest):
        problems.append(f"{folder / LAYOUT.manifest}: was changed after {step} wrote it")
    problems += [f"{folder}: {problem}" for problem in broken_links(manifest.whole_chain)]
    there = {found.relative_to(folder).as_posix(): found for found in _files_of(folder)}
    unlisted = {
        name
        for name, found in there.items()
        if name not in manifest.files
        or (_is_model_card(name, manifest) and file_digest(found) != manifest.files[name].sha256)
    }
    if step == "bundle":
        problems += [
            f"{folder / name}: was added after bundle wrote the folder; a server may serve it"
            for name in sorted(unlisted)
            if not any(part.startswith((".", "__pycache__")) for part in PurePosixPath(name).parts)
        ]
    return ManifestCheck(manifest, tuple(problems), tuple(sorted(unlisted)))
