"""Complete a machine without a network from the kit's wheels, before anything else is imported."""

import os
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def _is_installed(wheel: Path) -> bool:
    try:
        metadata.version(wheel.name.split("-")[0].replace("_", "-"))
    except metadata.PackageNotFoundError:
        return False
    return True


def complete(wheels: Path, site: Path) -> list[str]:
    """Install the wheels of packages that are missing, and make the command line importable.

    Args:
        wheels: The kit's folder of wheels; nothing is installed where it is not there.
        site: Where to install. Python's environment itself is left as it is.

    Returns:
        The packages that were installed.
    """
    site.mkdir(parents=True, exist_ok=True)
    link = site / "mixout_export_cli"  # what an install of the project would call this folder
    if not link.is_symlink():
        link.symlink_to(ROOT / "cli", target_is_directory=True)
    paths = [str(ROOT), str(site)]
    sys.path[:0] = [path for path in paths if path not in sys.path]
    os.environ["PYTHONPATH"] = os.pathsep.join(
        dict.fromkeys([*paths, *filter(None, [os.environ.get("PYTHONPATH")])])
    )
    missing = [wheel for wheel in sorted(wheels.glob("*.whl")) if not _is_installed(wheel)]
    if missing:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
        command += ["--no-compile", "--target", str(site)]
        subprocess.run([*command, *map(str, missing)], check=True)
    return [wheel.name.split("-")[0] for wheel in missing]


def _lacking(texts: list[str]) -> list[str]:
    from packaging.requirements import Requirement  # may have come from a wheel just now

    found = []
    for text in texts:
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            found.append(f"{text}, which is not installed")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            found.append(f"{text}, found {version}")
    return found


def unmet() -> list[str]:
    """Return which of the project's requirements are missing here: `onnx>=1.19, found 1.17`."""
    with (ROOT / "pyproject.toml").open("rb") as stream:
        return _lacking(tomllib.load(stream)["project"]["dependencies"])


def unmet_by(packages: list[str]) -> list[str]:
    """Return which requirements of installed packages are missing, as `unmet` does."""
    return [
        f"{package} wants {text}"
        for package in packages
        for text in _lacking(metadata.requires(package) or [])
    ]
