import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from checkpoints import ARCHITECTURES, TinyCheckpoints, make_model, save_checkpoint
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from mixout_export import inject_mixout, load_mixout, save_mixout
from mixout_export.checkpoint import saving
from mixout_export.checkpoint.base import BaseOptions
from mixout_export.checkpoint.folder import open_checkpoint
from mixout_export.checkpoint.keys import anchor_key
from mixout_export.checkpoint.loading import load_plain
from mixout_export.errors import ArgumentError, CheckpointError, OutputError
from mixout_export.files.streams import quick_digest
from mixout_export.files.tensors import digest_files
from mixout_export.quiet import quiet_libraries
from mixout_export.stages.collapse import collapse_checkpoint
from mixout_export.stages.prepare import PrepareOptions, prepare_checkpoint

IDS = torch.tensor([[2, 9, 30, 77, 3], [2, 100, 4, 3, 0]])


def prepare(base: Path, out: Path, *, labels: Any = ("no", "yes"), **options: Any) -> Path:
    options = {"base": BaseOptions("text-classification", labels), **options}
    prepare_checkpoint(str(base), out, PrepareOptions(**options))
    return out


def train(prepared: Path, out: Path) -> Path:
    """Move every parameter, and save as a training run does."""
    model = load_mixout(prepared)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.empty(parameter.shape).normal_(0.0, 0.1, generator=generator)
            parameter.add_(noise.to(parameter.dtype))
    save_mixout(model, out)
    return out


@pytest.fixture
def trained(tiny: TinyCheckpoints, tmp_path: Path) -> Path:
    return train(prepare(tiny.base(), tmp_path / "prepared"), tmp_path / "trained")


def weights(path: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for file in path.glob("model*.safetensors"):
        tensors |= load_file(file)
    return tensors


def anchors(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / "pretrained.safetensors")


def as_bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def same_bits(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(
        (one[k].dtype, one[k].shape) == (two[k].dtype, two[k].shape)
        and as_bits(one[k]) == as_bits(two[k])
        for k in one
    )


# The plain checkpoint -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_weights_and_logits_are_bit_identical(
    kind: str, tiny: TinyCheckpoints, tmp_path: Path
) -> None:
    trained = train(prepare(tiny.base(kind), tmp_path / "prepared"), tmp_path / "trained")
    out = tmp_path / "out"
    result = collapse_checkpoint(trained, out)
    assert same_bits(weights(out), weights(trained))
    plain, mixed = load_plain(open_checkpoint(out)), load_mixout(trained)
    assert torch.equal(plain(IDS).logits, mixed(IDS).logits)
    assert torch.equal(load_plain(open_checkpoint(trained))(IDS).logits, plain(IDS).logits)
    assert result.tensors == len(weights(out))
    assert result.bytes == sum(t.nbytes for t in weights(out).values())
    assert result.sha256 == {"model.safetensors": digest_files([out / "model.safetensors"])}
    assert (result.interpolate, result.interpolated, result.dtype) == (1.0, 0, None)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_folder_is_what_a_plain_way_gives(
    kind: str, tiny: TinyCheckpoints, tmp_path: Path
) -> None:
    """Files, keys, shapes, dtypes and configuration as from_pretrained, save_pretrained write."""
    base = tiny.base(kind)
    trained = train(prepare(base, tmp_path / "prepared"), tmp_path / "trained")
    collapse_checkpoint(trained, tmp_path / "out")
    with quiet_libraries():
        plain = AutoModelForSequenceClassification.from_pretrained(
            base,
            id2label={0: "no", 1: "yes"},
            label2id={"no": 0, "yes": 1},
            problem_type="single_label_classification",
        )
    save_checkpoint(plain, tmp_path / "plain")
    ours, theirs = weights(tmp_path / "out"), weights(tmp_path / "plain")
    assert {k: (v.shape, v.dtype) for k, v in ours.items()} == {
        k: (v.shape, v.dtype) for k, v in theirs.items()
    }
    assert {f.name for f in (tmp_path / "out").iterdir()} == {
        "README.md",
        "manifest.json",
        *(f.name for f in (tmp_path / "plain").iterdir()),
    }
    configs = [json.loads((tmp_path / n / "config.json").read_text()) for n in ("out", "plain")]
    assert configs[0] == configs[1]
    for file in (tmp_path / "plain").iterdir():
        file = tmp_path / "out" / file.name
        assert b"mixout" not in file.read_bytes()
        assert b"pretrained_" not in file.read_bytes()


def test_dropout_of_the_base_is_put_back(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    base = tiny.folder("bert", hidden_dropout_prob=0.25, attention_probs_dropout_prob=0.05)
    prepared = prepare(base, tmp_path / "prepared", dropout=0.15, head_dropout=0.3)
    collapse_checkpoint(train(prepared, tmp_path / "trained"), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["hidden_dropout_prob"], config["attention_probs_dropout_prob"]) == (0.25, 0.05)
    assert config.get("classifier_dropout") is None


def test_it_loads_where_this_package_is_not_installed(trained: Path, tmp_path: Path) -> None:
    collapse_checkpoint(trained, tmp_path / "out")
    script = """
        import sys
        for name in ("mixout_export", "mixout_export_cli"):
            sys.modules[name] = None  # what makes an import of it fail
        import warnings, torch
        warnings.simplefilter("error")
        torch.set_num_threads(1)
        from transformers import AutoModelForSequenceClassification, AutoTokenizer
        path = sys.argv[1]
        model, info = AutoModelForSequenceClassification.from_pretrained(
            path, output_loading_info=True
        )
        assert not any(info.values()), info
        ids = AutoTokenizer.from_pretrained(path)("the dog sleeps", return_tensors="pt")
        print(model.config.id2label[int(model(**ids).logits.argmax())])
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() in ("no", "yes")


def test_two_runs_give_the_same_bytes(trained: Path, tmp_path: Path) -> None:
    for name in ("1", "2"):
        collapse_checkpoint(trained, tmp_path / name, interpolate=0.5)
    one, two = ({f.name: f.read_bytes() for f in (tmp_path / n).iterdir()} for n in "12")
    assert one == two


def test_sharded_checkpoints(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "_SHARD_SIZE", "20KB")
    save_mixout(load_mixout(trained), tmp_path / "sharded")
    out = tmp_path / "out"
    result = collapse_checkpoint(tmp_path / "sharded", out)
    assert not (out / "model.safetensors").exists()
    assert same_bits(weights(out), weights(trained))
    assert len(result.sha256) == len(list(out.glob("model-*.safetensors"))) > 2
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == weights(out).keys()
    assert index["metadata"]["total_size"] == result.bytes
    assert torch.equal(
        load_plain(open_checkpoint(out))(IDS).logits, load_mixout(trained)(IDS).logits
    )


def test_a_folder_that_another_trainer_saved(tmp_path: Path) -> None:
    model = make_model("bert", "ForSequenceClassification")
    expected = {key: value.clone() for key, value in model.state_dict().items()}
    inject_mixout(model)
    for size in ("50GB", "20KB"):
        save_checkpoint(model, tmp_path / size, max_shard_size=size)
        assert any("pretrained_" in key for key in weights(tmp_path / size))
        collapse_checkpoint(tmp_path / size, tmp_path / f"out{size}")
        assert same_bits(weights(tmp_path / f"out{size}"), expected)
        config = json.loads((tmp_path / f"out{size}" / "config.json").read_text())
        assert "mixout" not in config
        assert torch.equal(
            load_plain(open_checkpoint(tmp_path / f"out{size}"))(IDS).logits, model(IDS).logits
        )


def test_a_shard_of_anchors_alone_leaves_no_file(tmp_path: Path) -> None:
    model = make_model("bert", "ForSequenceClassification")
    inject_mixout(model)
    folder = save_checkpoint(model, tmp_path / "foreign")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    parts = {
        "model-1.safetensors": {k: v for k, v in tensors.items() if "pretrained_" not in k},
        "model-2.safetensors": {k: v for k, v in tensors.items() if "pretrained_" in k},
    }
    for name, part in parts.items():
        save_file(part, folder / name, metadata={"format": "pt"})
    weight_map = {key: name for name, part in parts.items() for key in part}
    index = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(index)
    collapse_checkpoint(folder, tmp_path / "out")
    assert not (tmp_path / "out" / "model-2.safetensors").exists()
    assert torch.equal(load_plain(open_checkpoint(tmp_path / "out"))(IDS).logits, model(IDS).logits)


def test_a_foreign_folder_of_a_prepared_checkpoint_gets_its_configuration_back(
    tiny: TinyCheckpoints, tmp_path: Path
) -> None:
    prepared = prepare(tiny.base(), tmp_path / "prepared")
    model = load_mixout(prepared)
    with quiet_libraries():
        model.save_pretrained(tmp_path / "foreign")
    collapse_checkpoint(prepared, tmp_path / "1")
    collapse_checkpoint(tmp_path / "foreign", tmp_path / "2")
    one, two = (json.loads((tmp_path / n / "config.json").read_text()) for n in "12")
    assert one == two
    assert one["hidden_dropout_prob"] == 0.1
    assert same_bits(weights(tmp_path / "1"), weights(tmp_path / "2"))


# Interpolation ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_alpha_0_is_the_base_bit_for_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    model = make_model("bert").to(dtype)
    with torch.no_grad():
        model.pooler.dense.bias[:3] = torch.tensor([-0.0, 0.0, 1e-7])
    base = save_checkpoint(model, tmp_path / "base")
    trained = train(prepare(base, tmp_path / "prepared"), tmp_path / "trained")
    result = collapse_checkpoint(trained, tmp_path / "out", interpolate=0.0)
    out, original = weights(tmp_path / "out"), weights(base)
    body = {key.removeprefix("bert."): out[key] for key in out if key.startswith("bert.")}
    assert same_bits(body, original)
    head = {key: value for key, value in out.items() if not key.startswith("bert.")}
    assert head
    assert same_bits(head, {key: weights(trained)[key] for key in head})
    assert result.interpolated == len(original)


def test_alpha_between_is_the_formula_rounded_once(trained: Path, tmp_path: Path) -> None:
    collapse_checkpoint(trained, tmp_path / "out", interpolate=0.3)
    out, w, u = weights(tmp_path / "out"), weights(trained), anchors(trained)
    moved = 0
    for key, value in out.items():
        expected = w[key]
        if anchor_key(key) in u:
            wide = (1.0 - 0.3) * u[anchor_key(key)].double() + 0.3 * w[key].double()
            expected = wide.float()
            moved += 1
        assert as_bits(value) == as_bits(expected)
    assert moved == len(out) - 2  # all but the fresh head


def test_alpha_1_is_the_trained_weight(trained: Path, tmp_path: Path) -> None:
    result = collapse_checkpoint(trained, tmp_path / "out", interpolate=1.0)
    assert same_bits(weights(tmp_path / "out"), weights(trained))
    assert result.interpolated == 0


def test_a_fresh_head_with_an_anchor_is_not_interpolated(tiny, tmp_path: Path) -> None:
    prepared = prepare(tiny.base(), tmp_path / "prepared", head="mixout")
    trained = train(prepared, tmp_path / "trained")
    collapse_checkpoint(trained, tmp_path / "out", interpolate=0.0)
    out = weights(tmp_path / "out")
    for key in ("classifier.weight", "classifier.bias"):
        assert torch.equal(out[key], weights(trained)[key])


def test_interpolation_of_a_base_in_another_dtype(tmp_path: Path) -> None:
    """`train` keeps fp32 masters: the result is fp32, with the base's values exactly at α = 0."""
    base = save_checkpoint(make_model("bert").bfloat16(), tmp_path / "base")
    trained = train(prepare(base, tmp_path / "prepared"), tmp_path / "trained")
    wide = {key: value.float() for key, value in weights(trained).items()}
    save_file(wide, trained / "model.safetensors", metadata={"format": "pt"})
    collapse_checkpoint(trained, tmp_path / "0", interpolate=0.0)
    collapse_checkpoint(trained, tmp_path / "half", interpolate=0.5)
    u = anchors(trained)
    for key, value in weights(tmp_path / "0").items():
        assert value.dtype == torch.float32
        if anchor_key(key) in u:
            assert as_bits(value) == as_bits(u[anchor_key(key)].float())
            mean = (u[anchor_key(key)].double() + wide[key].double()) / 2
            assert torch.equal(weights(tmp_path / "half")[key], mean.float())


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan"), float("inf")])
def test_alpha_outside_its_domain(alpha: float, trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"interpolate: got .*expected a number in \[0, 1\]"):
        collapse_checkpoint(trained, tmp_path / "out", interpolate=alpha)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("native", [False, True])
def test_interpolation_needs_every_pretrained_value(native: bool, tmp_path: Path) -> None:
    model = make_model("bert", "ForSequenceClassification")
    inject_mixout(model)
    if native:
        save_mixout(model, tmp_path / "source")
    else:
        save_checkpoint(model, tmp_path / "source")
    with pytest.raises(CheckpointError, match="holds the pretrained values of its mixed layers"):
        collapse_checkpoint(tmp_path / "source", tmp_path / "out", interpolate=0.5)
    collapse_checkpoint(tmp_path / "source", tmp_path / "out")


def test_changed_anchors_are_refused(trained: Path, tmp_path: Path) -> None:
    path = trained / "pretrained.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.unlink()
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="has SHA-256"):
        collapse_checkpoint(trained, tmp_path / "out", interpolate=0.5)
    assert not (tmp_path / "out").exists()


# Dtypes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("alpha", [1.0, 0.3, 0.0])
def test_conversion(name: str, alpha: float, trained: Path, tmp_path: Path) -> None:
    collapse_checkpoint(trained, tmp_path / "out", dtype=name, interpolate=alpha)
    out, w, u = weights(tmp_path / "out"), weights(trained), anchors(trained)
    numpy_dtype = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
    for key, value in out.items():
        wide = w[key].double()
        if anchor_key(key) in u:
            wide = (1.0 - alpha) * u[anchor_key(key)].double() + alpha * wide
        assert value.dtype == getattr(torch, name)
        assert as_bits(value) == wide.numpy().astype(numpy_dtype).tobytes()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == name
    assert "torch_dtype" not in config
    assert {p.dtype for p in load_plain(open_checkpoint(tmp_path / "out")).parameters()} == {
        getattr(torch, name)
    }


def test_large_tensors_are_converted_and_interpolated_in_pieces(
    trained: Path, tmp_path: Path
) -> None:
    """More than one chunk of either kind, and an odd number of elements."""
    w, u = torch.randn(1_300_001, 2), torch.randn(1_300_001, 2)
    tensors = {**weights(trained), "bert.big.weight": w}
    save_file(tensors, trained / "model.safetensors", metadata={"format": "pt"})
    path = trained / "pretrained.safetensors"
    pretrained = {**anchors(trained), "bert.big.pretrained_weight": u}
    path.unlink()
    save_file(pretrained, path, metadata={"format": "pt"})
    metadata = json.loads((trained / "mixout_config.json").read_text())
    metadata["pretrained_sha256"] = digest_files([path])
    (trained / "mixout_config.json").write_text(json.dumps(metadata))
    collapse_checkpoint(trained, tmp_path / "1", dtype="bfloat16")
    assert torch.equal(weights(tmp_path / "1")["bert.big.weight"], w.bfloat16())
    collapse_checkpoint(trained, tmp_path / "2", interpolate=0.5)
    expected = (0.5 * u.double() + 0.5 * w.double()).float()
    assert torch.equal(weights(tmp_path / "2")["bert.big.weight"], expected)


def test_other_than_floating_tensors_keep_their_dtype(trained: Path, tmp_path: Path) -> None:
    ids = torch.arange(5)
    tensors = {**weights(trained), "bert.embeddings.position_ids": ids}
    save_file(tensors, trained / "model.safetensors", metadata={"format": "pt"})
    collapse_checkpoint(trained, tmp_path / "out", dtype="float16", interpolate=0.5)
    assert torch.equal(weights(tmp_path / "out")["bert.embeddings.position_ids"], ids)


def test_a_value_too_large_for_the_dtype_is_refused(trained: Path, tmp_path: Path) -> None:
    tensors = weights(trained)
    tensors["classifier.weight"][0, 0] = 70_000.0
    save_file(tensors, trained / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"'classifier\.weight' holds a value too large for"):
        collapse_checkpoint(trained, tmp_path / "out", dtype="float16")
    assert {path.name for path in tmp_path.iterdir()} == {"prepared", "trained"}
    collapse_checkpoint(trained, tmp_path / "out", dtype="bfloat16")
    tensors["classifier.weight"][0, 0] = float("inf")  # was infinite before: nothing overflows
    save_file(tensors, trained / "model.safetensors", metadata={"format": "pt"})
    collapse_checkpoint(trained, tmp_path / "inf", dtype="float16")


def test_an_unknown_dtype_is_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="dtype: got 'int8', expected one of float32, float16"):
        collapse_checkpoint(trained, tmp_path / "out", dtype="int8")


# Refusals -----------------------------------------------------------------------------------------


def test_collapsing_a_plain_folder_is_refused(tiny, trained: Path, tmp_path: Path) -> None:
    collapse_checkpoint(trained, tmp_path / "out")
    for source in (tmp_path / "out", tiny.classifier()):
        with pytest.raises(CheckpointError, match="without mixout, so there is nothing to coll"):
            collapse_checkpoint(source, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_damaged_source_is_refused_before_anything_is_written(
    trained: Path, tmp_path: Path
) -> None:
    weight_file = trained / "model.safetensors"
    whole = weight_file.read_bytes()
    out = tmp_path / "out"
    for data, message in (
        (whole[:-1], "is truncated"),
        (whole[:100], "is truncated"),
        (b"", "too few for a safetensors file"),
    ):
        weight_file.write_bytes(data)
        with pytest.raises(CheckpointError, match=rf"model\.safetensors: .*{message}"):
            collapse_checkpoint(trained, out)
    weight_file.unlink()
    with pytest.raises(CheckpointError, match=r"holds no model\.safetensors"):
        collapse_checkpoint(trained, out)
    assert {path.name for path in tmp_path.iterdir()} == {"prepared", "trained"}


def test_out_is_protected(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="is the source itself"):
        collapse_checkpoint(trained, trained, overwrite=True)
    with pytest.raises(ArgumentError, match="lies inside the source"):
        collapse_checkpoint(trained, trained / "out")
    out = shutil.copytree(trained, tmp_path / "out")
    with pytest.raises(OutputError, match="is not empty"):
        collapse_checkpoint(trained, out)
    assert (out / "mixout_config.json").exists()
    collapse_checkpoint(trained, out, overwrite=True)
    assert not (out / "mixout_config.json").exists()
    assert not (out / "pretrained.safetensors").exists()


def test_a_full_disk_leaves_out_untouched(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(trained, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left on device"):
        collapse_checkpoint(trained, out, overwrite=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"prepared", "trained", "out"}


# Memory -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_the_whole_model_is_never_in_memory(alpha: float, trained: Path, tmp_path: Path) -> None:
    """160 MB of weights, of which one tensor takes 80 MB, go through in a few times 8 MB."""
    big = torch.zeros(20_000_000)
    tensors = {**weights(trained), "bert.one.weight": big, "bert.two.weight": big.clone()}
    save_file(tensors, trained / "model.safetensors", metadata={"format": "pt"})
    path = trained / "pretrained.safetensors"
    pretrained = {**anchors(trained), "bert.one.pretrained_weight": big}
    path.unlink()
    save_file(pretrained, path, metadata={"format": "pt"})
    metadata = json.loads((trained / "mixout_config.json").read_text())
    metadata["pretrained_sha256"] = digest_files([path])
    (trained / "mixout_config.json").write_text(json.dumps(metadata))
    script = """
        import resource, sys
        from pathlib import Path
        from mixout_export.stages.collapse import collapse_checkpoint
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        source, out, alpha = sys.argv[1:]
        collapse_checkpoint(Path(source), Path(out), interpolate=float(alpha))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), trained, tmp_path / "out", str(alpha)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(run.stdout) < 60_000  # KB


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_the_quick_digest_is_not_what_interpolation_trusts(
    alpha: float, tmp_path: Path, tiny: TinyCheckpoints
) -> None:
    """Only where the anchors are not used does a hash suffice that shows damage, but not malice."""
    source = prepare(tiny.base(), tmp_path / "prepared")
    file, record = source / "pretrained.safetensors", source / "mixout_config.json"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.unlink()
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match="has SHA-256"):
        collapse_checkpoint(source, tmp_path / "damaged", interpolate=alpha)
    metadata = json.loads(record.read_text())
    record.write_text(json.dumps({**metadata, "pretrained_xxh3": quick_digest([file])}))
    if alpha == 1.0:
        collapse_checkpoint(source, tmp_path / "forged", interpolate=alpha)
    else:
        with pytest.raises(CheckpointError, match="has SHA-256"):
            collapse_checkpoint(source, tmp_path / "forged", interpolate=alpha)
