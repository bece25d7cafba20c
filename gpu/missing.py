"""Install missing packages from gpu-kit/wheels. This runs before all other imports."""

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def _is_good(wheel: Path, wanted: list[str]) -> bool:
    """Tell whether a wheel's package is installed, in a version that the project can use."""
    name = wheel.name.split("-")[0].replace("_", "-").lower()
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    names = [re.split("[^a-z0-9-]", text.lower().replace("_", "-"))[0] for text in wanted]
    own = [text for text, of in zip(wanted, names, strict=True) if of == name]
    return not own or importlib.util.find_spec("packaging") is None or not _lacking(own)


def complete(wheels: Path, site: Path) -> list[str]:
    """Install the wheels of missing packages, and make the command line importable.

    Args:
        wheels: Folder of wheels. Nothing is installed if it does not exist.
        site: Where to install. Python's environment itself is left as it is.

    Returns:
        The packages that were installed.
    """
    site.mkdir(parents=True, exist_ok=True)
    link = site / "mixout_export_cli"  # the name that an installed package has
    if not link.is_symlink():
        link.symlink_to(ROOT / "cli", target_is_directory=True)
    paths = [str(ROOT), str(site)]
    sys.path[:0] = [path for path in paths if path not in sys.path]
    os.environ["PYTHONPATH"] = os.pathsep.join(
        dict.fromkeys([*paths, *filter(None, [os.environ.get("PYTHONPATH")])])
    )
    wanted = _requirements()
    missing = [wheel for wheel in sorted(wheels.glob("*.whl")) if not _is_good(wheel, wanted)]
    return [wheel.name.split("-")[0] for wheel in _installed(missing, site)]


def _installed(wheels: list[Path], site: Path) -> list[Path]:
    """Install wheels and return those that could be: one by one where not all at once."""
    if not wheels:
        return []
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    command += ["--no-compile", "--target", str(site), *map(str, wheels)]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode == 0:
        return wheels
    if len(wheels) == 1:
        print(f"warning: {wheels[0]} cannot be installed: {run.stderr.strip()}", file=sys.stderr)
        return []
    return [wheel for each in wheels for wheel in _installed([each], site)]


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


def _requirements() -> list[str]:
    with (ROOT / "pyproject.toml").open("rb") as stream:
        return list(tomllib.load(stream)["project"]["dependencies"])


def unmet() -> list[str]:
    """Return which of the project's requirements are missing here: `onnx>=1.19, found 1.17`."""
    return _lacking(_requirements())


def unmet_by(packages: list[str]) -> list[str]:
    """Return which requirements of installed packages are missing, as `unmet` does."""
    return [
        f"{package} wants {text}"
        for package in packages
        for text in _lacking(metadata.requires(package) or [])
    ]
