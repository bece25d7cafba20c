"""An image classifier goes the whole way: nothing in the core is about text alone."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from matrix.tiny import write_checkpoint
from mixout_export import MixoutLinear, inject_mixout, load_mixout, save_mixout
from mixout_export.checkpoint.folder import open_checkpoint
from mixout_export.checkpoint.interface import IMAGE_INPUT, ModelInterface, describe_interface
from mixout_export.checkpoint.loading import load_plain
from mixout_export.errors import DataError
from mixout_export.parity.battery import build_battery, measure_coverage
from mixout_export.quiet import quiet_libraries
from mixout_export.runners.onnx_runner import OnnxRunner
from mixout_export.stages.collapse import collapse_checkpoint
from mixout_export.stages.inspection import inspect_path
from mixout_export.stages.onnx_export import export_onnx
from mixout_export.stages.prepare import prepare_checkpoint
from mixout_export.stages.verify import verify_checkpoints
from mixout_export.surgery.injection import mixout_layers
from mixout_export.tasks import TASKS

SHAPE = (3, 16, 24)
LABELS = ("cat", "dog", "horse")
IMAGES = ModelInterface((IMAGE_INPUT,), ("logits",), vocabulary_size=0, image=SHAPE)


def vit() -> PreTrainedModel:
    """Build a tiny ViT for images that are not square, in which no parameter has its default."""
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        image_size=list(SHAPE[1:]),
        patch_size=8,
        id2label=dict(enumerate(LABELS)),
        label2id={name: index for index, name in enumerate(LABELS)},
    )
    with quiet_libraries():
        model = ViTForImageClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vision") / "vit"
    vit().save_pretrained(path)
    processor = {"image_processor_type": "ViTImageProcessor", "size": SHAPE[1:]}
    (path / "preprocessor_config.json").write_text(json.dumps(processor))
    return path


@pytest.fixture(scope="module")
def prepared(base: Path) -> Path:
    prepare_checkpoint(str(base), base.parent / "prepared")
    return base.parent / "prepared"


@pytest.fixture(scope="module")
def exported(base: Path) -> Path:
    export_onnx(base, base.parent / "onnx")
    return base.parent / "onnx"


def test_prepare_step_collapse_onnx_verify(base: Path, prepared: Path, tmp_path: Path) -> None:
    model = load_mixout(prepared)
    mixed = [module for module in model.modules() if type(module) is MixoutLinear]
    assert len(mixed) == 12
    assert type(model.classifier) is torch.nn.Linear
    images, labels = torch.randn(4, *SHAPE), torch.tensor([0, 1, 2, 0])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    loss = model.train()(pixel_values=images, labels=labels).loss
    loss.backward()
    optimizer.step()
    assert all((layer.weight != layer.pretrained_weight).any() for layer in mixed)
    save_mixout(model, tmp_path / "trained")

    collapse_checkpoint(tmp_path / "trained", tmp_path / "collapsed")
    plain = load_plain(open_checkpoint(tmp_path / "collapsed"))
    with torch.no_grad():
        assert torch.equal(plain(images).logits, model.eval()(images).logits)
    result = export_onnx(tmp_path / "collapsed", tmp_path / "onnx")
    assert result.parity is not None
    for reference in ("trained", "collapsed"):
        parity = verify_checkpoints(tmp_path / reference, tmp_path / "onnx")
        assert parity.holds, parity.reasons()
        (logits,) = parity.outputs
        assert logits.decisions == parity.coverage.examples > 10
    assert not verify_checkpoints(base, tmp_path / "onnx").holds
    assert (tmp_path / "onnx" / "preprocessor_config.json").is_file()


def test_prepare_keeps_the_head_and_its_labels(prepared: Path) -> None:
    inspection = inspect_path(prepared)
    assert (inspection.task, inspection.labels) == ("image-classification", LABELS)
    assert json.loads((prepared / "mixout_config.json").read_text())["head"]["keys"] == []


def test_the_graph_takes_any_batch_of_one_size_of_image(base: Path, exported: Path) -> None:
    parity = verify_checkpoints(base, exported)
    assert parity.outputs[0].by_batch.keys() >= {"images", "shades", "extremes"}
    graph = OnnxRunner(exported / "model.onnx")
    assert graph.input_shapes == {IMAGE_INPUT: ("batch", *SHAPE)}
    model = load_plain(open_checkpoint(base))
    for rows in (1, 3):
        images = np.random.default_rng(rows).standard_normal((rows, *SHAPE)).astype(np.float32)
        with torch.no_grad():
            expected = model(torch.from_numpy(images)).logits.numpy()
        np.testing.assert_allclose(
            graph.run({IMAGE_INPUT: images})["logits"], expected, rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize(
    "key",
    [
        "vit.embeddings.position_embeddings",
        "vit.embeddings.cls_token",
        "vit.embeddings.patch_embeddings.projection.weight",
        "classifier.bias",
    ],
)
def test_outputs_show_each_fault(base: Path, exported: Path, tmp_path: Path, key: str) -> None:
    """One row, channel or label is zeroed; the audit would find it, and so do the outputs."""
    for file in base.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(base / "model.safetensors")
    value = weights[key]
    (value[0, -1] if value.dim() > 1 else value[-1:]).zero_()
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    parity = verify_checkpoints(tmp_path, exported)
    assert not parity.holds
    assert parity.outputs[0].exceeding > 0


def test_inputs_are_saved_and_replayed(base: Path, exported: Path, tmp_path: Path) -> None:
    saved = tmp_path / "inputs.npz"
    first = verify_checkpoints(base, exported, save_inputs_to=saved)
    again = verify_checkpoints(base, exported, inputs=saved)
    assert again.holds
    assert again.outputs[0].max_abs == first.outputs[0].max_abs
    np.savez(tmp_path / "small.npz", pixel_values=np.zeros((1, 3, 8, 8), dtype=np.float32))
    with pytest.raises(DataError, match=r"shape \(1, 3, 8, 8\), expected \(batch, 3, 16, 24\)"):
        verify_checkpoints(base, exported, inputs=tmp_path / "small.npz")


def test_two_graphs_without_a_checkpoint(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes((exported / "model.onnx").read_bytes())
    assert verify_checkpoints(exported, tmp_path / "model.onnx").holds


# Interface and battery ----------------------------------------------------------------------------


def test_the_size_of_images_is_the_configurations_or_the_usual_one() -> None:
    assert describe_interface(vit(), TASKS["image-classification"]) == IMAGES
    small = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], num_channels=1)
    found = describe_interface(ResNetForImageClassification(small), TASKS["image-classification"])
    assert found.image == (1, 224, 224)


def test_the_interface_survives_json() -> None:
    plain = json.loads(json.dumps(IMAGES.to_dict()))
    assert ModelInterface.from_dict(plain) == IMAGES
    assert "image" not in ModelInterface(("input_ids",), ("logits",), 5).to_dict()


def test_the_battery_is_of_images_and_reproducible() -> None:
    one, two = (build_battery(IMAGES, seed=3) for _ in range(2))
    for left, right in zip(one.batches, two.batches, strict=True):
        images = left.inputs[IMAGE_INPUT]
        assert images.dtype == np.float32
        assert images.shape[1:] == SHAPE
        assert np.array_equal(images, right.inputs[IMAGE_INPUT])
    assert {1, 2, 3, 5} <= {batch.shape[0] for batch in one.batches}
    assert one.coverage == measure_coverage(one.batches, IMAGES)
    assert (one.coverage.vocabulary_size, one.coverage.positions) == (0, 0)
    other = build_battery(IMAGES, seed=4).batches[0].inputs[IMAGE_INPUT]
    assert not np.array_equal(one.batches[0].inputs[IMAGE_INPUT], other)


# Names on disk ------------------------------------------------------------------------------------


def test_layers_are_found_under_the_names_that_transformers_stores_them_by(prepared: Path) -> None:
    modules = json.loads((prepared / "mixout_config.json").read_text())["modules"]
    first = modules[0]
    assert first["name"] == "vit.layers.0.attention.q_proj"
    assert first["weight_key"] == "vit.encoder.layer.0.attention.attention.query.weight"
    anchors = load_file(prepared / "pretrained.safetensors")
    weights = load_file(prepared / "model.safetensors")
    assert {module["pretrained_key"] for module in modules} <= anchors.keys()
    assert {module["weight_key"] for module in modules} <= weights.keys()


def test_a_folder_that_another_trainer_saved(base: Path, tmp_path: Path) -> None:
    model = vit()
    inject_mixout(model)
    with quiet_libraries():
        model.save_pretrained(tmp_path / "theirs")
    collapse_checkpoint(tmp_path / "theirs", tmp_path / "plain")
    assert verify_checkpoints(base, tmp_path / "plain").holds
    assert len(mixout_layers(load_mixout(tmp_path / "theirs"))) == 12


def test_the_audit_misses_a_weight_that_has_another_name_on_disk(
    base: Path, exported: Path
) -> None:
    checkpoint = open_checkpoint(base)
    assert checkpoint.tensors.keys() == checkpoint.parameter_keys
    assert verify_checkpoints(base, exported).weights.ignored == {}


def test_a_graph_may_compute_the_scale_of_a_normalization(tmp_path: Path) -> None:
    write_checkpoint("bit", tmp_path / "bit", "image-classification")
    result = export_onnx(tmp_path / "bit", tmp_path / "onnx")
    assert result.parity is not None
    assert result.parity.holds
