"""The lowest versions that pyproject.toml declares are those that `make test-oldest` installs."""

import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def required(*extras: str) -> Iterator[Requirement]:
    """Yield the requirements of the package and of these extras, including extras of extras."""
    lists = [PROJECT["optional-dependencies"][extra] for extra in extras]
    for text in [*PROJECT["dependencies"], *(text for texts in lists for text in texts)]:
        requirement = Requirement(text)
        if requirement.name == PROJECT["name"]:
            yield from required(*requirement.extras)
        else:
            yield requirement


def pins(name: str) -> dict[str, Version]:
    lines = (ROOT / name).read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(package): Version(version) for package, version in pairs}


def test_the_oldest_versions_are_the_declared_ones() -> None:
    declared = {}
    for requirement in required("demo", "dev", "servers"):
        (bound,) = requirement.specifier
        assert bound.operator in (">=", "=="), requirement
        name, version = canonicalize_name(requirement.name), Version(bound.version)
        assert declared.setdefault(name, version) == version, requirement
    oldest = pins("constraints-oldest.txt")
    assert {name: oldest.get(name) for name in declared} == declared


def test_the_versions_tested_together_are_allowed() -> None:
    newest = pins("constraints.txt")
    for requirement in required("demo", "dev", "servers"):
        assert newest[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_the_oldest_versions_are_of_no_particular_build_of_torch() -> None:
    builds = ("nvidia-", "cuda-", "triton")
    assert [name for name in pins("constraints-oldest.txt") if name.startswith(builds)] == []
