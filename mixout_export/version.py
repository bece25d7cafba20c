"""Read the version of the installed package."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("mixout-export")
except PackageNotFoundError:  # the source tree is used without an installation
    __version__ = "0.0.0"
