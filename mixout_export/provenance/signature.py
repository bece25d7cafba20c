"""Sign a folder with a private key, and check with the public one that it is still what was signed.

The library is `model-signing` of the OpenSSF: a signature of every file's hash, checked offline.
"""

import contextlib
import io
import re
from pathlib import Path
from types import ModuleType
from typing import Any

from mixout_export.errors import ArgumentError, CheckpointError, MixoutError
from mixout_export.files.layout import LAYOUT
from mixout_export.files.output import LOCK

#: How the library says which files differ, and how that is put here.
_DIFFERENCES = {
    r"Hash mismatch for '([^']+)'": "changed",
    r"Extra files found in model '[^']*': ([^'\"\]]+)": "added",
    r"Missing files in model '[^']*': ([^'\"\]]+)": "missing",
}


def _library(name: str) -> ModuleType:
    """Import a module of the library.

    Raises:
        MixoutError: It is not installed.
    """
    try:
        return __import__(f"model_signing.{name}", fromlist=[name])
    except ImportError as error:
        raise MixoutError(
            "sign: needs the library model-signing; pip install 'mixout-export[sign]'"
        ) from error


def _hashing() -> Any:
    """Return what is hashed: every file but the signature and the mark of work in progress."""
    unsigned = [Path(LAYOUT.signature), Path(LOCK)]
    return _library("hashing").Config().set_ignored_paths(paths=unsigned, ignore_git_paths=False)


def _with_key(key: Path, option: str, kind: str) -> Any:
    """Return the library's signer or verifier for a key.

    Raises:
        ArgumentError: The key cannot be read, or is none.
    """
    module = _library("signing" if kind == "private" else "verifying")
    if not key.is_file():
        raise ArgumentError(f"{key}: no such file; check --{option}")
    config = module.Config().set_hashing_config(_hashing())
    try:
        if kind == "private":
            return config.use_elliptic_key_signer(private_key=key)
        return config.use_elliptic_key_verifier(public_key=key)
    except Exception as error:  # cryptography's errors for what is no key have no common class
        raise ArgumentError(
            f"{key}: is no {kind} key that can be used; expected a PEM file without a password, on "
            "the curve P-256, P-384 or P-521"
        ) from error


def check_signing_key(key: Path) -> None:
    """Check, before anything is written, that a folder can be signed with a key.

    Raises:
        ArgumentError: The key cannot be read, or is none.
        MixoutError: The library is not installed.
    """
    _with_key(key, "sign", "private")


def sign_folder(folder: Path, key: Path) -> Path:
    """Sign all files of a folder.

    Args:
        folder: The folder; a signature that is in it is replaced.
        key: A PEM file with a private key on an elliptic curve; it is read and nothing else.

    Returns:
        The signature's file.

    Raises:
        ArgumentError: The key cannot be read, or is none.
        MixoutError: The library is not installed.
    """
    path = folder / LAYOUT.signature
    _with_key(key, "sign", "private").sign(folder, path)
    return path


def check_signature(folder: Path, key: Path) -> str:
    """Check a folder's signature.

    Args:
        folder: What was signed.
        key: A PEM file with the public key.

    Returns:
        What is wrong, as a sentence; "" if the folder is what the key's owner signed.

    Raises:
        ArgumentError: The key cannot be read, or is none.
        CheckpointError: `folder` is no folder, but a single file, say.
        MixoutError: The library is not installed.
    """
    check = _with_key(key, "signature", "public")
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: is no folder, so it cannot hold a signature of one")
    path = folder / LAYOUT.signature
    if not path.is_file():
        return f"{path}: is missing, so nobody vouches for the folder; sign it with --sign"
    if (folder / LOCK).exists():  # nobody signed it, and only work in progress has one
        return f"{path}: does not hold for {key.name} (added: {LOCK})"
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # where it warns of a missing hint
            check.verify(folder, path)
    except Exception as error:  # sigstore's and protobuf's errors for a bad file have no such class
        return f"{path}: does not hold for {key.name} ({_what_differs(str(error))})"
    return ""


def _what_differs(message: str) -> str:
    # the message shows a list of texts, where quotes have a backslash if a text has both kinds
    message = message.replace("\\'", "'")
    found = [
        f"{name}: {', '.join(files)}"
        for pattern, name in _DIFFERENCES.items()
        if (files := re.findall(pattern, message))
    ]
    link = re.search(r"Cannot use '([^']+)' because it is a symlink", message)
    if link:
        found.append(f"added: the link {Path(link[1]).name}")
    return "; ".join(found) or "it was made with another key, or is damaged"
