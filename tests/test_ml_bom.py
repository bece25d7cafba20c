"""The bill of materials is valid CycloneDX and names what the model is made of."""

import json
from pathlib import Path

from checkpoints import TinyCheckpoints
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from mixout_export.bundling.plan import BundleOptions
from mixout_export.files.input_files import InputFiles
from mixout_export.files.streams import file_digest
from mixout_export.provenance.links import DataFile, Link
from mixout_export.provenance.manifest import check_manifest
from mixout_export.provenance.ml_bom import write_bom
from mixout_export.stages.bundle import bundle_onnx
from mixout_export.stages.onnx_export import export_onnx


def problems(path: Path) -> object:
    return JsonStrictValidator(SchemaVersion.V1_6).validate_str(path.read_text())


def test_a_bundles_bill_of_materials(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    graph = export_onnx(tiny.classifier("bert"), tmp_path / "graph", verify=False).path
    out = bundle_onnx(graph, tmp_path / "out", BundleOptions("triton", "tiny"), bom=True).out
    path = out / "bom.cdx.json"
    assert problems(path) is None
    content = json.loads(path.read_text())
    assert "timestamp" not in content["metadata"]
    model = content["metadata"]["component"]
    assert (model["type"], model["name"]) == ("machine-learning-model", "tiny")
    file = model["components"][0]
    assert file["name"] == "tiny/1/model.onnx"
    assert file["hashes"] == [{"alg": "SHA-256", "content": file_digest(graph / "model.onnx")}]
    assert [step["description"] for step in model["pedigree"]["ancestors"]] == ["source", "onnx"]
    assert {"torch", "onnx"} <= {part["name"] for part in content["components"]}
    found = check_manifest(InputFiles(out))
    assert not found.problems
    assert found.manifest is not None
    assert "bom.cdx.json" in found.manifest.files


def test_data_sets_and_the_licence_are_named(tmp_path: Path) -> None:
    chain = [
        Link("base", "a" * 64, "org/base"),
        Link("train", "b" * 64, data=(DataFile("train", "train.tsv", "c" * 64, 7),)),
    ]
    path = write_bom(
        tmp_path,
        name="m",
        graphs={"model.onnx": "d" * 64},
        chain=chain,
        task="text-classification",
        license="apache-2.0",
    )
    assert problems(path) is None
    content = json.loads(path.read_text())
    data = [part for part in content["components"] if part["type"] == "data"]
    assert [(part["name"], part["hashes"][0]["content"]) for part in data] == [
        ("train.tsv", "c" * 64)
    ]
    assert content["metadata"]["component"]["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    card = content["metadata"]["component"]["modelCard"]["modelParameters"]
    assert card == {"task": "text-classification", "datasets": [{"ref": data[0]["bom-ref"]}]}
    ancestors = content["metadata"]["component"]["pedigree"]["ancestors"]
    assert [ancestor["description"] for ancestor in ancestors] == ["base", "train"]
