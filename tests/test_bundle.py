"""What `bundle` writes is what each server expects, whole, and provably the model it came from."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from checkpoints import TinyCheckpoints
from cli_runs import Program
from huggingface_hub import ModelCard
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from mixout_export.bundling.plan import SERVERS, BundleOptions
from mixout_export.bundling.source import open_onnx_folder
from mixout_export.bundling.tokenizer_check import check_texts, check_tokenizer
from mixout_export.checkpoint.tokenizer import load_tokenizer
from mixout_export.errors import ArgumentError, CheckpointError, OutputError, ParityError
from mixout_export.export.precision import Conversion
from mixout_export.files.input_files import InputFiles
from mixout_export.files.streams import file_digest
from mixout_export.provenance.manifest import check_manifest, read_manifest
from mixout_export.stages.bundle import bundle_onnx
from mixout_export.stages.onnx_export import export_onnx
from mixout_export.stages.prepare import prepare_checkpoint
from mixout_export.stages.verify import verify_checkpoints

ROOT_FILES = {"README.md", "manifest.json"}


@pytest.fixture(scope="module")
def graphs(tiny: TinyCheckpoints, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A classifier in three precisions, and a causal language model with a cache."""
    root = tmp_path_factory.mktemp("graphs")
    made = {}
    for precision in ("fp32", "fp16", "int8"):
        made[precision] = export_onnx(
            tiny.classifier("bert"),
            root / precision,
            conversion=Conversion(precision),
            verify=False,
        ).path
    return made


def files_of(out: Path) -> set[str]:
    return {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}


def bundle(
    source: Path, out: Path, server: str, *, also: tuple[Path, ...] = (), **options: int
) -> Path:
    return bundle_onnx(source, out, BundleOptions(server, "tiny", **options), also=also).out


TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        ("triton", {"tiny/config.pbtxt", "tiny/labels.txt", "tiny/1/model.onnx"}),
        (
            "mlserver",
            {
                "settings.json",
                "tiny/model-settings.json",
                "tiny/graph_runtime.py",
                "tiny/model.onnx",
            },
        ),
        ("openvino", {"config.json", "tiny/1/model.onnx"}),
        ("transformers-js", {"config.json", "onnx/model.onnx", *TOKENIZER}),
        ("optimum", {"config.json", "model.onnx", *TOKENIZER}),
    ],
)
def test_each_server_gets_its_layout(
    server: str, expected: set[str], graphs: dict[str, Path], tmp_path: Path
) -> None:
    out = bundle(graphs["fp32"], tmp_path / "out", server)
    beside = {f"tiny/tokenizer/{name}" for name in TOKENIZER} if server in SERVERS[:3] else set()
    assert files_of(out) == expected | beside | ROOT_FILES
    graph = next(out.rglob("model.onnx"))
    assert graph.read_bytes() == (graphs["fp32"] / "model.onnx").read_bytes()
    found = check_manifest(InputFiles(out))
    assert not found.problems
    assert found.unlisted == ()
    assert [link.step for link in read_manifest(InputFiles(out)).whole_chain][-2:] == [
        "onnx",
        "bundle",
    ]


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        ("triton", {"tiny/3/model.onnx", "tiny_fp16/3/model.onnx", "tiny_int8/3/model.onnx"}),
        ("mlserver", {"tiny/model.onnx", "tiny_fp16/model.onnx", "tiny_int8/model.onnx"}),
        ("transformers-js", {f"onnx/model{s}.onnx" for s in ("", "_fp16", "_quantized")}),
        ("optimum", {f"model{s}.onnx" for s in ("", "_fp16", "_quantized")}),
    ],
)
def test_precisions_lie_side_by_side(
    server: str, expected: set[str], graphs: dict[str, Path], tmp_path: Path
) -> None:
    also = (graphs["fp16"], graphs["int8"])
    out = bundle(graphs["fp32"], tmp_path / "out", server, also=also, version=3)
    assert {name for name in files_of(out) if name.endswith(".onnx")} == expected


def test_tritons_configuration_says_what_the_graph_takes(
    graphs: dict[str, Path], tmp_path: Path
) -> None:
    out = bundle(graphs["fp32"], tmp_path / "out", "triton", max_batch_size=7)
    config = (out / "tiny" / "config.pbtxt").read_text()
    session = onnxruntime.InferenceSession(graphs["fp32"] / "model.onnx")
    for value in (*session.get_inputs(), *session.get_outputs()):
        assert f'name: "{value.name}"' in config
    assert "max_batch_size: 7" in config
    assert config.count("dims: [ -1 ]") == len(session.get_inputs())  # without the batch
    assert 'label_filename: "labels.txt"' in config
    assert file_digest(graphs["fp32"] / "model.onnx") in config
    labels = (out / "tiny" / "labels.txt").read_text().splitlines()
    assert tuple(labels) == open_onnx_folder(graphs["fp32"]).labels


def test_triton_joins_requests_unless_their_rows_share_a_scale(
    graphs: dict[str, Path], tmp_path: Path
) -> None:
    out = bundle(graphs["fp32"], tmp_path / "out", "triton", also=(graphs["int8"],))
    joins = {
        name: "\ndynamic_batching {" in (out / name / "config.pbtxt").read_text()
        for name in ("tiny", "tiny_int8")
    }
    assert joins == {"tiny": True, "tiny_int8": False}


def test_mlservers_settings_say_what_the_graph_takes(
    graphs: dict[str, Path], tmp_path: Path
) -> None:
    out = bundle(graphs["fp32"], tmp_path / "out", "mlserver")
    settings = json.loads((out / "tiny" / "model-settings.json").read_text())
    assert settings["parameters"]["extra"]["model_sha256"] == file_digest(
        graphs["fp32"] / "model.onnx"
    )
    assert {tensor["shape"][0] for tensor in settings["inputs"]} == {-1}
    assert json.loads((out / "settings.json").read_text())["host"] == "127.0.0.1"
    compile((out / "tiny" / "graph_runtime.py").read_text(), "graph_runtime.py", "exec")


def test_the_page_has_a_request_whose_answer_is_the_graphs(
    graphs: dict[str, Path], tmp_path: Path
) -> None:
    out = bundle(graphs["fp32"], tmp_path / "out", "triton")
    page = (out / "README.md").read_text()
    body = json.loads(page.split("-d '", 1)[1].split("'\n", 1)[0])
    inputs = {
        tensor["name"]: np.array(tensor["data"], np.int64).reshape(tensor["shape"])
        for tensor in body["inputs"]
    }
    session = onnxruntime.InferenceSession(out / "tiny" / "1" / "model.onnx")
    logits = session.run(["logits"], inputs)[0][0]
    assert str([round(float(number), 5) for number in logits]) in page
    assert "verify ONNX_FOLDER http://127.0.0.1:8000/v2/models/tiny" in page


@pytest.mark.parametrize("server", SERVERS)
def test_the_page_explains_how_to_use_and_check_the_bundle(
    server: str, graphs: dict[str, Path], tmp_path: Path
) -> None:
    out = bundle(graphs["fp32"], tmp_path / "out", server, also=(graphs["int8"],))
    page = (out / "README.md").read_text()
    sections = [line for line in page.splitlines() if line.startswith("## ")]
    if server in ("transformers-js", "optimum"):
        assert sections == ["## Use it", "## Inputs and outputs", "## Check"]
        assert "This folder holds several precisions" in page
    else:
        steps = ["## Start the server", "## Send a request"]
        assert sections == [*steps, "## Inputs and outputs", "## Check"]
    assert "LABEL_" in page
    assert page.count("It needs onnxruntime 1.17 or newer, and Triton 24.03 or newer.") == 2
    assert page.count("changes a little with its padding") == 1  # only the int8 graph
    assert "\n\n\n" not in page


def test_one_flipped_byte_of_any_file_is_found(graphs: dict[str, Path], tmp_path: Path) -> None:
    out = bundle(graphs["fp32"], tmp_path / "out", "mlserver")
    for name in files_of(out):
        path = out / name
        whole = path.read_bytes()
        changed = bytearray(whole)
        changed[len(whole) // 2] ^= 1
        path.write_bytes(changed)
        problems = check_manifest(InputFiles(out)).problems
        assert problems, name
        assert Path(name).name in problems[0]
        path.write_bytes(whole)
    assert not check_manifest(InputFiles(out)).problems


def test_a_causal_language_model_is_bundled_with_its_cache(
    tiny: TinyCheckpoints, tmp_path: Path
) -> None:
    source = export_onnx(tiny.folder("gpt2", "LMHeadModel"), tmp_path / "graph", verify=False)
    assert source.cached_graph is not None
    out = bundle(source.path, tmp_path / "js", "transformers-js")
    assert file_digest(out / "onnx" / "model.onnx") == file_digest(source.cached_graph)
    assert json.loads((out / "config.json").read_text())["use_cache"] is True
    out = bundle(source.path, tmp_path / "triton", "triton")
    assert {"tiny/1/model.onnx", "tiny_with_past/1/model.onnx"} <= files_of(out)
    assert 'name: "past_key_values.0.key"' in (out / "tiny_with_past" / "config.pbtxt").read_text()


@pytest.mark.parametrize(
    "name", ["README.md", "config.json", "model.sig", "settings.json", "a.partial"]
)
def test_a_name_of_another_file_is_refused(name: str) -> None:
    with pytest.raises(ArgumentError, match="needs that name for another file"):
        BundleOptions("triton", name)


def test_precisions_that_do_not_say_where_they_come_from_are_refused(
    graphs: dict[str, Path], tmp_path: Path
) -> None:
    nobody = recording(graphs["fp32"], tmp_path / "nobody", source_sha256="")
    with pytest.raises(ArgumentError, match="does not record which weights"):
        bundle(nobody, tmp_path / "out", "triton", also=(graphs["int8"],))


@pytest.mark.parametrize("damage", ["z", ""])
def test_a_bundle_whose_manifest_is_damaged_does_not_hold(
    damage: str, graphs: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = bundle(graphs["fp32"], tmp_path / "out", "triton")
    path = out / "manifest.json"
    path.write_text(damage + path.read_text()[1:])
    Program(capfd)("inspect", out).failed(3, "manifest.json: cannot be read")
    Program(capfd)("verify", graphs["fp32"], out).failed(3, "manifest.json: cannot be read")


def test_a_bundle_of_mlserver_is_verified_and_may_be_served_in_place(
    graphs: dict[str, Path], tmp_path: Path
) -> None:
    """Its graph lies beside a folder that is called tokenizer."""
    out = bundle(graphs["fp32"], tmp_path / "out", "mlserver")
    (out / "tiny" / "__pycache__").mkdir()
    (out / "tiny" / "__pycache__" / "graph_runtime.cpython-311.pyc").touch()
    result = verify_checkpoints(graphs["fp32"], out)
    assert result.passed, result.reasons()


def test_a_version_that_is_added_to_a_bundle_is_a_problem(
    graphs: dict[str, Path], tmp_path: Path
) -> None:
    """Triton would serve it in place of the one that was verified."""
    out = bundle(graphs["fp32"], tmp_path / "out", "triton")
    (out / ".DS_Store").touch()
    assert not check_manifest(InputFiles(out)).problems
    shutil.copytree(out / "tiny" / "1", out / "tiny" / "2")
    assert (
        "tiny/2/model.onnx: was added after bundle" in check_manifest(InputFiles(out)).problems[0]
    )


@pytest.mark.parametrize("name", ["added_tokens.json", "model_with_past.onnx"])
def test_what_was_added_to_a_graphs_folder_is_not_shipped(
    name: str, graphs: dict[str, Path], tmp_path: Path
) -> None:
    source = Path(shutil.copytree(graphs["fp32"], tmp_path / "source"))
    (source / "notes.txt").touch()
    bundle(source, tmp_path / "out", "optimum")
    shutil.copy(source / "model.onnx", source / name)
    with pytest.raises(ParityError, match=f"{name}: was added after onnx"):
        bundle(source, tmp_path / "other", "optimum")


def test_other_precisions_have_their_history_too(graphs: dict[str, Path], tmp_path: Path) -> None:
    out = bundle(graphs["fp32"], tmp_path / "out", "triton", also=(graphs["int8"],))
    (other,) = read_manifest(InputFiles(out)).link.options["also"]
    assert (other["step"], other["options"]["precision"]) == ("onnx", "int8")
    assert other["weights_sha256"] == read_manifest(InputFiles(graphs["int8"])).link.weights_sha256


@pytest.mark.parametrize("graphs_named", [5, ["../fp32/model.onnx"], [["x"]], []])
def test_a_bundle_names_graphs_of_its_own(
    graphs_named: object, graphs: dict[str, Path], tmp_path: Path
) -> None:
    out = bundle(graphs["fp32"], tmp_path / "out", "triton")
    manifest = read_manifest(InputFiles(out))
    options = {**manifest.link.options, "graphs": graphs_named}
    forged = replace(manifest, link=replace(manifest.link, options=options))
    (out / "manifest.json").write_text(forged.to_text())
    with pytest.raises(CheckpointError, match="it is a bundle"):
        verify_checkpoints(graphs["fp32"], out)


@pytest.mark.parametrize("server", SERVERS)
def test_a_bundles_page_has_its_graphs_header(
    server: str, graphs: dict[str, Path], tmp_path: Path
) -> None:
    source = Path(shutil.copytree(graphs["fp32"], tmp_path / "source"))
    card = source / "README.md"
    card.write_text(card.read_text().replace("---\n", "---\nlicense: apache-2.0\n", 1))
    header = ModelCard.load(bundle(source, tmp_path / "out", server) / "README.md").data
    assert header.license == "apache-2.0"
    assert header.pipeline_tag == "text-classification"
    libraries = {"transformers-js": "transformers.js", "optimum": "optimum"}
    assert header.library_name == libraries.get(server, "onnx")


# Folders that somebody else made


def test_a_bundle_is_named_where_a_checkpoint_should_be(
    graphs: dict[str, Path], tmp_path: Path
) -> None:
    out = bundle(graphs["fp32"], tmp_path / "out", "triton")
    with pytest.raises(CheckpointError, match="it is a bundle, so give the folder"):
        bundle(out, tmp_path / "again", "mlserver")
    with pytest.raises(CheckpointError, match="it is an ONNX folder, so give the checkpoint"):
        prepare_checkpoint(str(graphs["fp32"]), tmp_path / "prepared")


def recording(source: Path, out: Path, **metadata: str) -> Path:
    """Copy an ONNX folder, let its graph record something else, and leave the manifest out."""
    shutil.copytree(source, out, ignore=shutil.ignore_patterns("manifest.json"))
    document = onnx.load(out / "model.onnx")
    kept = [entry for entry in document.metadata_props if entry.key not in metadata]
    del document.metadata_props[:]
    document.metadata_props.extend(kept)
    onnx.helper.set_model_props(
        document, {**{entry.key: entry.value for entry in kept}, **metadata}
    )
    onnx.save(document, out / "model.onnx")
    return out


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("precision", "x/../../../escaped", "expected one of fp32, fp16, int8"),
        ("precision", "bf16", "expected one of fp32, fp16, int8"),
        ("labels", "{bad", "labels cannot be read"),
        ("labels", "5", "expected a list of texts"),
        ("labels", "[1, 2]", "expected a list of texts"),
        ("labels", '["a\\nb", "c"]', "has a line break"),
        ("interface", "{bad", "interface cannot be read"),
        ("interface", "[1]", "expected an object"),
    ],
)
def test_what_a_graph_records_is_not_trusted(
    name: str, value: str, said: str, graphs: dict[str, Path], tmp_path: Path
) -> None:
    source = recording(graphs["fp32"], tmp_path / "source", **{name: value})
    with pytest.raises(CheckpointError, match=said):
        bundle(source, tmp_path / "out", "triton")
    assert {path.name for path in tmp_path.iterdir()} == {"source"}


def test_weights_beside_a_graph_come_along(graphs: dict[str, Path], tmp_path: Path) -> None:
    source = recording(graphs["fp32"], tmp_path / "source")
    document = onnx.load(source / "model.onnx")
    onnx.save_model(
        document,
        source / "model.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=1024,
    )
    out = bundle(source, tmp_path / "out", "triton")
    assert (out / "tiny" / "1" / "weights.bin").is_file()
    assert onnxruntime.InferenceSession(out / "tiny" / "1" / "model.onnx").get_inputs()
    before = read_manifest(InputFiles(out)).link
    weights = source / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    after = read_manifest(InputFiles(bundle(source, tmp_path / "other", "triton"))).link
    assert before.input_sha256 != after.input_sha256
    assert before.weights_sha256 != after.weights_sha256


# The tokenizer


def test_a_fixed_padding_is_taken_out(graphs: dict[str, Path], tmp_path: Path) -> None:
    source = shutil.copytree(graphs["fp32"], tmp_path / "source")
    (source / "manifest.json").unlink()
    path = source / "tokenizer.json"
    content = json.loads(path.read_text())
    content["padding"] = {
        "strategy": {"Fixed": 40},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "[PAD]",
    }
    path.write_text(json.dumps(content))
    assert len(Tokenizer.from_file(str(path)).encode("a").ids) == 40
    out = bundle(source, tmp_path / "out", "transformers-js")
    assert len(Tokenizer.from_file(str(out / "tokenizer.json")).encode("a").ids) < 10


def test_texts_are_of_many_kinds() -> None:
    texts = check_texts()
    assert len(texts) > 30
    assert "" in texts
    assert max(map(len, texts)) > 10_000
    assert sum(not text.isascii() for text in texts) > 12


def test_a_tokenizer_that_works_otherwise_is_refused(
    graphs: dict[str, Path], tmp_path: Path
) -> None:
    changed = shutil.copytree(graphs["fp32"], tmp_path / "changed")
    tokenizer = Tokenizer.from_file(str(changed / "tokenizer.json"))
    tokenizer.post_processor = TemplateProcessing(single="$A $A", pair="$A $B")
    tokenizer.save(str(changed / "tokenizer.json"))
    assert check_tokenizer(graphs["fp32"], load_tokenizer(graphs["fp32"])) > 30
    with pytest.raises(ParityError, match=r"gives input_ids .* for the text 'The film was"):
        check_tokenizer(changed, load_tokenizer(graphs["fp32"]))


# What is refused


def test_precisions_of_other_weights_are_refused(
    tiny: TinyCheckpoints, graphs: dict[str, Path], tmp_path: Path
) -> None:
    plain = shutil.copytree(tiny.classifier("roberta"), tmp_path / "plain")
    other = export_onnx(plain, tmp_path / "other", conversion=Conversion("fp16"), verify=False)
    with pytest.raises(ArgumentError, match="was exported from other weights"):
        bundle(graphs["fp32"], tmp_path / "out", "optimum", also=(other.path,))
    with pytest.raises(ArgumentError, match="give each precision once"):
        bundle(graphs["fp32"], tmp_path / "out", "optimum", also=(graphs["fp32"],))
    assert not (tmp_path / "out").exists()


def test_what_was_changed_after_it_was_verified_is_not_shipped(
    graphs: dict[str, Path], tmp_path: Path
) -> None:
    source = shutil.copytree(graphs["fp32"], tmp_path / "source")
    (source / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ParityError, match="was changed after onnx wrote it"):
        bundle(source, tmp_path / "out", "triton")
    assert not (tmp_path / "out").exists()


def test_what_is_no_onnx_folder_is_refused(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not an ONNX folder; make one with"):
        bundle(tiny.classifier("bert"), tmp_path / "out", "triton")


def test_out_is_kept_unless_overwritten(graphs: dict[str, Path], tmp_path: Path) -> None:
    out = bundle(graphs["fp32"], tmp_path / "out", "triton")
    with pytest.raises(OutputError, match="is not empty"):
        bundle(graphs["fp32"], out, "mlserver")
    assert (out / "tiny" / "config.pbtxt").is_file()
    options = BundleOptions("mlserver", "tiny")
    bundle_onnx(graphs["fp32"], out, options, overwrite=True)
    assert not (out / "tiny" / "config.pbtxt").exists()


def test_bundling_twice_gives_the_same_bytes(graphs: dict[str, Path], tmp_path: Path) -> None:
    one, two = (bundle(graphs["fp32"], tmp_path / name, "triton") for name in "12")
    assert {name: (one / name).read_bytes() for name in files_of(one)} == {
        name: (two / name).read_bytes() for name in files_of(two)
    }


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"server": "tomcat"}, "server: got 'tomcat', expected one of triton"),
        ({"name": "a b"}, "name: got 'a b'"),
        ({"version": 0}, "model-version: got 0"),
        ({"max_batch_size": 0}, "max-batch-size: got 0"),
    ],
)
def test_options_outside_their_domain(options: dict[str, object], said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        BundleOptions(**{"server": "triton", "name": "a", **options})
