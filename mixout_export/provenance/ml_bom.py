"""Write a CycloneDX bill of materials: a model's files, its data, its libraries and its origin."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from mixout_export.errors import MixoutError
from mixout_export.files.json_files import json_text
from mixout_export.files.layout import LAYOUT
from mixout_export.provenance.links import Link
from mixout_export.version import __version__

_SHA256 = 64


def check_bom_library() -> None:
    """Check that the library for bills of materials is installed, before anything is written."""
    try:
        import cyclonedx.output.json  # noqa: F401
    except ImportError as error:
        raise MixoutError(
            "bom: the library cyclonedx-python-lib is not installed; run pip install "
            "'mixout-export[bom]'"
        ) from error


def _component(kind: str, name: str, sha256: str = "", **options: Any) -> Any:
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.component import Component, ComponentType

    hashes = [HashType(alg=HashAlgorithm.SHA_256, content=sha256)] if sha256 else []
    return Component(type=ComponentType(kind), name=name, hashes=hashes, **options)


def _ancestors(chain: Sequence[Link]) -> list[Any]:
    """Return a component for the model of each earlier step, with the options of the step."""
    from cyclonedx.model import Property

    return [
        _component(
            "machine-learning-model",
            link.name or link.step,
            link.weights_sha256,
            description=link.step,
            properties=[
                Property(name=f"mixout-export:{name}", value=str(value))
                for name, value in link.options.items()
            ],
        )
        for link in chain
        if len(link.weights_sha256) == _SHA256
    ]


def _materials(chain: Sequence[Link]) -> list[Any]:
    """Return components for the data sets of all steps and the libraries of the last step."""
    data = dict.fromkeys(entry for link in chain for entry in link.data)
    versions = chain[-1].versions if chain else {}
    return [
        *(
            _component(
                "data", entry.name, entry.sha256, bom_ref=f"data-{at}", description=entry.role
            )
            for at, entry in enumerate(data)
        ),
        *(
            _component("library", name, version=version, bom_ref=f"library-{name}")
            for name, version in versions.items()
            if name != "mixout-export"
        ),
    ]


def _complete(text: str, chain: Sequence[Link], task: str) -> str:
    """Add the model card, which the library does not support, and make the text reproducible."""
    content = json.loads(text)
    content["metadata"].pop("timestamp", None)
    model = content["metadata"]["component"]
    ancestors = model.get("pedigree", {}).get("ancestors", [])
    order = [link.weights_sha256 for link in chain]
    ancestors.sort(key=lambda ancestor: order.index(ancestor["hashes"][0]["content"]))
    data = [c["bom-ref"] for c in content.get("components", []) if c["type"] == "data"]
    model["modelCard"] = {
        "modelParameters": {
            **({"task": task} if task else {}),
            **({"datasets": [{"ref": ref} for ref in data]} if data else {}),
        }
    }
    return json_text(content)


def write_bom(
    folder: Path,
    *,
    name: str,
    graphs: Mapping[str, str],
    chain: Sequence[Link],
    task: str = "",
    license: str = "",
) -> Path:
    """Write the bill of materials of a bundle, CycloneDX 1.6 in JSON; return its path.

    The model is a component of type `machine-learning-model`. Its pedigree names the earlier steps,
    the base first, and its graphs are files inside it. It depends on the data sets and on the
    libraries of the last step. The same bundle gives the same bytes.

    Args:
        folder: Folder to write to.
        name: The model's name.
        graphs: Path in the folder → SHA-256 of the graph.
        chain: The steps that led to the graphs, the base first.
        task: The model's task; "" if unknown.
        license: The model's license, an SPDX identifier or a name; "" if unknown.
    """
    check_bom_library()
    from cyclonedx.factory.license import LicenseFactory
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Pedigree
    from cyclonedx.output.json import JsonV1Dot6

    ancestors, materials = _ancestors(chain), _materials(chain)
    model = _component(
        "machine-learning-model",
        name,
        bom_ref="model",
        licenses=[LicenseFactory().make_from_string(license)] if license else [],
        pedigree=Pedigree(ancestors=ancestors) if ancestors else None,
        components=[
            _component("file", path, digest, bom_ref=f"file-{path}")
            for path, digest in graphs.items()
        ],
    )
    bom = Bom(
        serial_number=uuid5(NAMESPACE_URL, "".join([name, *map("".join, graphs.items())])),
        components=materials,
    )
    bom.metadata.component = model
    bom.metadata.tools.components.add(
        _component("application", "mixout-export", version=__version__)
    )
    bom.register_dependency(model, materials)
    path = folder / LAYOUT.bom
    text = _complete(JsonV1Dot6(bom).output_as_string(), chain, task)
    path.write_text(text, encoding="utf-8", newline="\n")
    return path
