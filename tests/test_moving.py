"""Weights that are moved as bytes, held against what `save_pretrained` writes."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from checkpoints import ARCHITECTURES, TinyCheckpoints, make_model, save_checkpoint
from safetensors.torch import load_file, save_file

from mixout_export.checkpoint.keys import anchor_key
from mixout_export.checkpoint.moving import SavePlan, plan_saving
from mixout_export.checkpoint.torch_tensors import TensorInMemory
from mixout_export.errors import CheckpointError
from mixout_export.files.tensors import digest_files, read_tensors
from mixout_export.files.weight_files import BaseDigest
from mixout_export.files.writing import TensorFile, write_twice
from mixout_export.quiet import quiet_libraries

HEAD = "AutoModelForSequenceClassification"


def load(path: Path, auto: str = HEAD, **options: Any) -> tuple[Any, set[str]]:
    with quiet_libraries():
        torch.manual_seed(3)
        model, info = getattr(transformers, auto).from_pretrained(
            path, output_loading_info=True, **options
        )
    return model, set(info["missing_keys"])


def plan_of(base: Path, model: Any, fresh: set[str], out: Path, **options: Any) -> SavePlan | None:
    out.mkdir()
    return plan_saving(model, out, sorted(base.glob("*.safetensors")), fresh, **options)


def saved(model: Any, out: Path, **options: Any) -> Path:
    with quiet_libraries():
        model.save_pretrained(out, **options)
    return out


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("auto", [HEAD, "AutoModelForMaskedLM", "AutoModelForCausalLM"])
def test_the_same_files_as_save_pretrained(
    kind: str, auto: str, tiny: TinyCheckpoints, tmp_path: Path
) -> None:
    """The same keys, bytes and order of bytes, and the same other files."""
    base = tiny.base(kind)
    try:
        model, fresh = load(base, auto)
    except ValueError:
        pytest.skip(f"{kind} has no {auto}")
    theirs = saved(model, tmp_path / "theirs")
    ours = tmp_path / "ours"
    plan = plan_of(base, model, fresh, ours)
    assert plan is not None
    anchored = [key for key in plan.tensors if key not in fresh]
    sha256 = plan.write(ours, anchored).anchors_sha256
    one, two = (read_tensors(folder / "model.safetensors") for folder in (theirs, ours))
    assert list(one) == list(two)
    assert all(entry.same_bytes(two[key]) for key, entry in one.items())
    anchors = read_tensors(ours / "pretrained.safetensors")
    assert list(anchors) == [anchor_key(key) for key in anchored]
    assert all(anchors[anchor_key(key)].same_bytes(one[key]) for key in anchored)
    assert sha256 == hashlib.sha256((ours / "pretrained.safetensors").read_bytes()).hexdigest()
    names = {path.name for path in theirs.iterdir()}
    assert {path.name for path in ours.iterdir()} == names | {"pretrained.safetensors"}
    for name in names - {"model.safetensors"}:
        assert json.loads((ours / name).read_text()) == json.loads((theirs / name).read_text())


@pytest.mark.parametrize("shards_of_base", [False, True])
def test_shards(shards_of_base: bool, tiny: TinyCheckpoints, tmp_path: Path) -> None:
    base = tiny.base()
    if shards_of_base:
        base = saved(load(base, "AutoModel")[0], tmp_path / "base", max_shard_size="20KB")
        assert len(list(base.glob("model-*.safetensors"))) > 2
    model, fresh = load(base)
    theirs = saved(model, tmp_path / "theirs", max_shard_size="40KB")
    ours = tmp_path / "ours"
    plan = plan_of(base, model, fresh, ours, shard_size="40KB")
    assert plan is not None
    anchored = [key for key in plan.tensors if key not in fresh]
    sha256 = plan.write(ours, anchored, limit=30_000).anchors_sha256
    names = {path.name for path in theirs.glob("model*")}
    assert len(names) > 3
    assert {path.name for path in ours.glob("model*")} == names
    for name in names - {"model.safetensors.index.json"}:
        one, two = (load_file(folder / name) for folder in (theirs, ours))
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one)
    one, two = (
        json.loads((folder / "model.safetensors.index.json").read_text())
        for folder in (theirs, ours)
    )
    assert one == two
    shards = sorted(ours.glob("pretrained-*.safetensors"))
    assert len(shards) > 2
    assert sha256 == digest_files(shards)
    index = json.loads((ours / "pretrained.safetensors.index.json").read_text())
    held = {key: path.name for path in shards for key in read_tensors(path)}
    assert index["weight_map"] == held
    assert held.keys() == {anchor_key(key) for key in anchored}


def test_equal_shards_are_told_apart(tmp_path: Path) -> None:
    """Two files of the same layout: only keys tell which tensor of the two a weight is."""
    model = make_model("bert", num_hidden_layers=2)
    base = save_checkpoint(model, tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    halves: list[dict[str, torch.Tensor]] = [{}, {}]
    for key, value in tensors.items():
        halves["layer.1." in key][key] = value
    weight_map = {}
    for number, half in enumerate(halves, 1):
        save_file(half, base / f"model-{number}.safetensors", metadata={"format": "pt"})
        weight_map |= dict.fromkeys(half, f"model-{number}.safetensors")
    index = {"metadata": {}, "weight_map": weight_map}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    loaded, fresh = load(base)
    plan = plan_of(base, loaded, fresh, tmp_path / "ours")
    assert plan is not None
    plan.write(tmp_path / "ours", [])
    written = load_file(tmp_path / "ours" / "model.safetensors")
    assert all(torch.equal(written[f"bert.{key}"], value) for key, value in tensors.items())


def test_what_was_changed_is_not_moved(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    base = tiny.base()
    untouched, fresh = load(base)
    assert plan_of(base, untouched, fresh, tmp_path / "1") is not None
    changed, _ = load(base)
    with torch.no_grad():
        changed.bert.pooler.dense.bias.add_(1)
    assert plan_of(base, changed, fresh, tmp_path / "2") is None
    replaced, _ = load(base)
    replaced.bert.pooler.dense.bias = torch.nn.Parameter(replaced.bert.pooler.dense.bias.clone())
    assert plan_of(base, replaced, fresh, tmp_path / "3") is None
    narrower, _ = load(base, dtype=torch.bfloat16)
    assert plan_of(base, narrower, fresh, tmp_path / "4") is None
    elsewhere, _ = load(tiny.base("roberta"))
    assert plan_of(base, elsewhere, set(), tmp_path / "5") is None


def test_legacy_names_are_not_moved(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    base = tmp_path / "base"
    model = transformers.AutoModel.from_pretrained(tiny.base())
    saved(model, base)
    renamed = {
        key.replace("LayerNorm.weight", "LayerNorm.gamma"): value.clone()
        for key, value in load_file(base / "model.safetensors").items()
    }
    save_file(renamed, base / "model.safetensors", metadata={"format": "pt"})
    loaded, fresh = load(base)
    assert fresh == {"classifier.weight", "classifier.bias"}
    assert plan_of(base, loaded, fresh, tmp_path / "ours") is None


def test_a_bases_digest_is_that_of_its_files(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    digest = BaseDigest.begin(tiny.base())
    assert digest is not None
    assert digest.result() == digest_files([tiny.base() / "model.safetensors"])
    assert BaseDigest.begin(tmp_path) is None
    (tmp_path / "model.safetensors.index.json").write_text("{")
    assert BaseDigest.begin(tmp_path) is None
    with pytest.raises(CheckpointError, match=r"none\.safetensors: cannot be read"):
        BaseDigest([tmp_path / "none.safetensors"]).result()


def test_copies_are_written_on_the_way(tmp_path: Path) -> None:
    big = torch.arange(700_000)  # larger than a piece
    small, empty = torch.arange(3.0), torch.zeros(0, 2)
    save_file({"big": big, "small": small, "empty": empty}, tmp_path / "a.safetensors")
    entries = read_tensors(tmp_path / "a.safetensors")
    order = [entries[key] for key in ("small", "empty", "big")]
    copies = [
        TensorFile(tmp_path / "one.safetensors", (entries["small"].renamed("s"),)),
        TensorFile(
            tmp_path / "two.safetensors",
            (entries["empty"].renamed("e"), entries["big"].renamed("b")),
        ),
    ]
    whole = TensorFile(tmp_path / "whole.safetensors", tuple(order))
    digests = write_twice([whole], copies, {"small", "empty", "big"})
    assert digests == {f.path.name: digest_files([f.path]) for f in (whole, *copies)}
    assert load_file(whole.path).keys() == entries.keys()
    assert torch.equal(load_file(whole.path)["big"], big)
    assert torch.equal(load_file(copies[0].path)["s"], small)
    two = load_file(copies[1].path)
    assert torch.equal(two["b"], big)
    assert two["e"].shape == (0, 2)


def test_a_copy_may_end_with_a_tensor_of_no_bytes(tmp_path: Path) -> None:
    tensors = (TensorInMemory("a", torch.ones(3)), TensorInMemory("z", torch.zeros(0, 4)))
    copy = TensorFile(
        tmp_path / "copy.safetensors", tuple(t.renamed(f"c.{t.key}") for t in tensors)
    )
    write_twice([TensorFile(tmp_path / "whole.safetensors", tensors)], [copy], {"a", "z"})
    assert load_file(copy.path)["c.z"].shape == (0, 4)
