"""Sign a folder with a private key, and check the signature with the public key.

The library is the OpenSSF's `model-signing`. It signs the hash of every file, and checks offline.
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

#: The library's message about files that differ → our word for the difference.
_DIFFERENCES = {
    r"Hash mismatch for '([^']+)'": "changed",
    r"Extra files found in model '[^']*': ([^'\"\]]+)": "added",
    r"Missing files in model '[^']*': ([^'\"\]]+)": "missing",
}


def _library(name: str) -> ModuleType:
    """Import a module of the library, which is optional."""
    try:
        return __import__(f"model_signing.{name}", fromlist=[name])
    except ImportError as error:
        raise MixoutError(
            "sign: the library model-signing is not installed; run pip install "
            "'mixout-export[sign]'"
        ) from error


def _hashing() -> Any:
    """Return settings that hash every file except the signature and the lock file."""
    unsigned = [Path(LAYOUT.signature), Path(LOCK)]
    return _library("hashing").Config().set_ignored_paths(paths=unsigned, ignore_git_paths=False)


def _with_key(key: Path, option: str, kind: str) -> Any:
    """Return the library's signer or verifier for a key."""
    module = _library("signing" if kind == "private" else "verifying")
    if not key.is_file():
        raise ArgumentError(f"{key}: no such file; give the {kind} key with --{option}")
    config = module.Config().set_hashing_config(_hashing())
    try:
        if kind == "private":
            return config.use_elliptic_key_signer(private_key=key)
        return config.use_elliptic_key_verifier(public_key=key)
    except Exception as error:  # cryptography's errors have no common base class
        raise ArgumentError(
            f"{key}: is not a usable {kind} key; expected a PEM file without a password, on the "
            "curve P-256, P-384 or P-521"
        ) from error


def check_signing_key(key: Path) -> None:
    """Check that a key can sign a folder, before anything is written."""
    _with_key(key, "sign", "private")


def sign_folder(folder: Path, key: Path) -> Path:
    """Sign all files of a folder and return the signature's file. An old signature is replaced.

    The key is a PEM file with a private key on an elliptic curve.
    """
    path = folder / LAYOUT.signature
    _with_key(key, "sign", "private").sign(folder, path)
    return path


def check_signature(folder: Path, key: Path) -> str:
    """Check a folder's signature with the public key in a PEM file.

    Return what is wrong, as a sentence; "" if the signature is valid.
    """
    check = _with_key(key, "signature", "public")
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: is not a folder; only folders can be signed")
    path = folder / LAYOUT.signature
    if not path.is_file():
        return f"{path}: is missing; sign the folder with bundle --sign"
    if (folder / LOCK).exists():  # a complete folder has no lock file
        return f"{path}: is not valid for the key {key.name} (added: {LOCK})"
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # the library prints warnings
            check.verify(folder, path)
    except Exception as error:  # errors of sigstore and protobuf have no common base class
        return f"{path}: is not valid for the key {key.name} ({_differences(str(error))})"
    return ""


def _differences(message: str) -> str:
    """Return which files differ, from the library's message."""
    # quotes in the message have a backslash if the text contains both kinds of quotes
    message = message.replace("\\'", "'")
    found = [
        f"{name}: {', '.join(files)}"
        for pattern, name in _DIFFERENCES.items()
        if (files := re.findall(pattern, message))
    ]
    link = re.search(r"Cannot use '([^']+)' because it is a symlink", message)
    if link:
        found.append(f"added: the link {Path(link[1]).name}")
    return "; ".join(found) or "it was made with another key or is damaged"
