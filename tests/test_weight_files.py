"""Which files of a folder hold its weights: one answer for every reader."""

import json
import logging
import os
import shutil
from pathlib import Path

import pytest
import torch
from checkpoints import TinyCheckpoints, make_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel, PreTrainedModel

from mixout_export.artifacts.opening import open_artifact
from mixout_export.checkpoint.base import BaseOptions
from mixout_export.checkpoint.folder import open_checkpoint
from mixout_export.errors import CheckpointError
from mixout_export.files.input_files import InputFiles
from mixout_export.files.tensors import digest_files
from mixout_export.files.weight_files import find_anchors, find_pickles, find_weights
from mixout_export.quiet import quiet_libraries
from mixout_export.stages.collapse import collapse_checkpoint
from mixout_export.stages.prepare import PrepareOptions, prepare_checkpoint

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
CLASSIFICATION = PrepareOptions(base=BaseOptions(task="text-classification"))


def save(model: PreTrainedModel, path: Path, *, sharded: bool = False) -> Path:
    with quiet_libraries():
        model.save_pretrained(path, max_shard_size="10KB" if sharded else "5GB")
    return path


def shards(path: Path) -> list[Path]:
    return sorted(path.glob("model-*.safetensors"))


def names(path: Path) -> list[str]:
    return [file.name for file in find_weights(InputFiles(path)).files]


def age(path: Path, seconds: int) -> None:
    changed = path.stat().st_mtime - seconds
    os.utime(path, (changed, changed))


@pytest.fixture
def both(tmp_path: Path) -> Path:
    """A folder with a single file and shards of the same weights."""
    path = save(make_model("bert"), tmp_path / "both")
    return save(make_model("bert"), path, sharded=True)


def test_an_empty_folder_has_no_weights(tmp_path: Path) -> None:
    found = find_weights(InputFiles(tmp_path))
    assert (found.files, found.index, found.name) == ((), None, None)


def test_shards_are_found_by_their_index(tmp_path: Path) -> None:
    path = save(make_model("bert"), tmp_path / "sharded", sharded=True)
    found = find_weights(InputFiles(path))
    assert list(found.files) == shards(path)
    assert found.name == INDEX


def test_equal_sets_are_read_as_transformers_reads_them(both: Path) -> None:
    assert names(both) == [SINGLE]


@pytest.mark.parametrize("change", ["value", "key"])
def test_sets_of_different_weights_are_refused_by_name(change: str, both: Path) -> None:
    shard = shards(both)[0]
    tensors = load_file(shard)
    key = next(iter(tensors))
    tensors["more" if change == "key" else key] = tensors[key] + 1
    save_file(tensors, shard, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"{SINGLE}: holds other weights than .*{INDEX}"):
        names(both)


def test_a_stale_index_is_named_and_the_newer_file_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = save(make_model("bert"), tmp_path / "stale", sharded=True)
    model = save(make_model("bert", seed=1), path)  # transformers leaves the old index behind
    age(path / INDEX, 60)
    assert not shards(model)
    with caplog.at_level(logging.WARNING, "mixout_export"):
        prepare_checkpoint(str(path), tmp_path / "out", CLASSIFICATION)
    assert f"{path / INDEX}: is stale" in caplog.text
    with quiet_libraries():
        expected = AutoModel.from_pretrained(path).state_dict()
    found = load_file(tmp_path / "out" / SINGLE)
    key = "embeddings.word_embeddings.weight"
    assert torch.equal(found[f"bert.{key}"], expected[key])


def test_shards_that_are_newer_than_the_single_file_have_to_be_there(both: Path) -> None:
    for shard in shards(both):
        shard.unlink()
    age(both / SINGLE, 60)
    with pytest.raises(CheckpointError, match=r"is missing, and model\.safetensors is there too"):
        names(both)


def test_a_part_of_the_shards_does_not_make_an_index_stale(both: Path) -> None:
    shards(both)[0].unlink()
    age(both / INDEX, 60)
    with pytest.raises(CheckpointError, match="restore the shards and delete"):
        names(both)


def test_an_index_may_list_the_single_file(tmp_path: Path) -> None:
    path = save(make_model("bert"), tmp_path / "listed")
    weight_map = dict.fromkeys(load_file(path / SINGLE), SINGLE)
    (path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert names(path) == [SINGLE]


def test_anchors_are_found_like_weights(tmp_path: Path) -> None:
    save_file({"pretrained_a": torch.ones(2)}, tmp_path / "pretrained.safetensors")
    save_file({"pretrained_a": torch.zeros(2)}, tmp_path / "pretrained-1.safetensors")
    (tmp_path / "pretrained.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"pretrained_a": "pretrained-1.safetensors"}})
    )
    with pytest.raises(CheckpointError, match=r"pretrained\.safetensors: holds other weights"):
        find_anchors(tmp_path)


def test_two_sets_of_pickles_are_refused(tmp_path: Path) -> None:
    for name in ("pytorch_model.bin", "shard.bin"):
        torch.save({"a": torch.ones(1)}, tmp_path / name)
    assert [file.name for file in find_pickles(tmp_path).files] == ["pytorch_model.bin"]
    (tmp_path / "pytorch_model.bin.index.json").write_text(
        json.dumps({"weight_map": {"a": "shard.bin"}})
    )
    with pytest.raises(CheckpointError, match="holds other weights than the shards"):
        find_pickles(tmp_path)


# What config.json names ---------------------------------------------------------------------------


def rename_weights(path: Path, name: str) -> None:
    """Give the weights a name of their own, as config.json can, beside a file of other weights."""
    config = path / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "transformers_weights": name}))
    (path / SINGLE).rename(path / name)
    other = {key: value + 1 for key, value in load_file(path / name).items()}
    save_file(other, path / SINGLE, metadata={"format": "pt"})


def test_every_reader_uses_the_file_that_config_json_names(
    tiny: TinyCheckpoints, tmp_path: Path
) -> None:
    path = shutil.copytree(tiny.classifier(), tmp_path / "named")
    expected = load_file(path / SINGLE)
    rename_weights(path, "best.safetensors")

    folder = open_artifact(path)
    assert folder.checkpoint is not None
    assert {entry.file.name for entry in folder.checkpoint.tensors.values()} == {"best.safetensors"}
    assert folder.checkpoint.weights_sha256() == digest_files([path / "best.safetensors"])
    loaded = folder.checkpoint.model.state_dict()
    prepare_checkpoint(str(path), tmp_path / "prepared")
    collapse_checkpoint(tmp_path / "prepared", tmp_path / "collapsed")
    written = load_file(tmp_path / "collapsed" / SINGLE)
    for key, value in expected.items():
        assert torch.equal(loaded[key], value)
        assert torch.equal(written[key], value)
    for out in ("prepared", "collapsed"):
        assert "transformers_weights" not in (tmp_path / out / "config.json").read_text()


@pytest.mark.parametrize("name", ["gone.safetensors", "../copy/best.safetensors", 3])
def test_a_name_that_is_no_file_of_the_folder_is_refused(name: object, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"transformers_weights": name}))
    with pytest.raises(CheckpointError, match=r"config\.json: its 'transformers_weights' names"):
        names(tmp_path)


def test_a_distributed_checkpoint_is_refused(both: Path) -> None:
    (both / "shard-00000-model-00001-of-00001.safetensors").touch()
    with pytest.raises(CheckpointError, match="belongs to a distributed checkpoint"):
        names(both)


@pytest.mark.parametrize(("seconds", "named"), [(3600, True), (10, False), (-3600, False)])
def test_a_newer_pickle_is_named(
    seconds: int,
    named: bool,
    tiny: TinyCheckpoints,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = shutil.copytree(tiny.base(), tmp_path / "base")
    pickle, written = path / "pytorch_model.bin", (path / SINGLE).stat().st_mtime
    torch.save({}, pickle)
    os.utime(pickle, (written + seconds, written + seconds))
    assert open_checkpoint(path).weight_paths == [path / SINGLE]
    said = f"{pickle}: is newer than {SINGLE} and is not read, as in transformers"
    assert (said in caplog.text) is named
