"""What goes from one card's header to the next one's, and what a step adds."""

from collections.abc import Mapping
from typing import Any

from mixout_export.checkpoint.mixout_metadata import Base

#: What a model has from the one it was made from.
_INHERITED = ("license", "license_name", "license_link", "language")

#: What is said of the training data and of the results on them.
RESULTS = ("metrics", "model-index")


def hub_id(base: Base) -> str | None:
    """Return the base's name on the hub; None for a folder, whose name means nothing there."""
    return base.name if base.revision is not None else None


def _languages(value: Any) -> Any:
    """Return languages as text: YAML takes Norwegian's code, "no", for False."""
    if isinstance(value, list):
        return [_languages(each) for each in value]
    return "no" if value is False else value


def inherited(header: Mapping[str, Any], base: Base | None = None) -> dict[str, Any]:
    """Return what a model made from another has from its card: license and language.

    A license may be a file beside the other model. The link to it is kept if the base lies on the
    hub, and left out otherwise.
    """
    kept = {key: header[key] for key in _INHERITED if header.get(key) is not None}
    if "language" in kept:
        kept["language"] = _languages(kept["language"])
    link = str(kept.get("license_link", "https://"))
    if not link.startswith(("http://", "https://")):
        if base is None or hub_id(base) is None:
            del kept["license_link"]
        else:
            home = f"https://huggingface.co/{base.name}/blob/{base.revision}"
            kept["license_link"] = f"{home}/{link}"
    return kept


#: The hub's names of the libraries that bundles are for.
_LIBRARIES = {"transformers-js": "transformers.js", "optimum": "optimum"}


def bundled_header(header: Mapping[str, Any], server: str) -> dict[str, Any]:
    """Return the header of a bundle's page: its graph's, with the library that reads the bundle."""
    if not header:
        return {}
    library = _LIBRARIES.get(server, header.get("library_name"))
    return {**header, "library_name": library}


def tags(header: Mapping[str, Any], *added: str) -> list[str]:
    """Return a header's tags with others added, each once."""
    found = header.get("tags")
    return list(dict.fromkeys([*(map(str, found) if isinstance(found, list) else ()), *added]))
