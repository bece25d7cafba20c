"""The tokenizers that people have, from the base to the bundle for browsers."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import POSITIONS, make_model
from tokenizer_folders import (
    PORTABLE,
    merges_txt,
    vocab_txt,
    word_pieces,
    written_in_python,
)
from tokenizers import Tokenizer
from training_runs import sentences, write_tsv

from mixout_export.bundling.plan import BundleOptions
from mixout_export.checkpoint.base import BaseOptions
from mixout_export.checkpoint.tokenizer import load_tokenizer
from mixout_export.errors import CheckpointError
from mixout_export.stages.bundle import BundleResult, bundle_onnx
from mixout_export.stages.collapse import collapse_checkpoint
from mixout_export.stages.onnx_export import export_onnx
from mixout_export.stages.prepare import PrepareOptions, prepare_checkpoint
from mixout_export.stages.train import DataOptions, train_checkpoint
from mixout_export.training.options import TrainOptions

SIZE = 300


def make_base(path: Path, write: Callable[[Path], None] | None) -> Path:
    """Save a headless model of `SIZE` ids, which all these tokenizers fit."""
    make_model("bert", "Model", vocab_size=SIZE, type_vocab_size=1).save_pretrained(path)
    if write is not None:
        write(path)
    return path


def prepare(base: Path, out: Path) -> Path:
    options = BaseOptions(task="text-classification", labels=("bad", "good"))
    return prepare_checkpoint(str(base), out, PrepareOptions(base=options)).out


def to_onnx(base: Path, root: Path) -> Path:
    """Go the whole way from a base to ONNX. The step is too small to change a weight."""
    rows = [(text, ("bad", "good")[label]) for text, label in sentences(16, seed=0)]
    data = DataOptions(write_tsv(root / "train.tsv", ("text", "label"), rows))
    options = TrainOptions(max_steps=1, batch_size=8, lr=1e-30, device="cpu")
    train_checkpoint(prepare(base, root / "prepared"), root / "trained", data, options)
    collapse_checkpoint(root / "trained", root / "collapsed")
    return export_onnx(root / "collapsed", root / "onnx", verify=False).path


def bundle(source: Path, out: Path, server: str = "transformers-js") -> BundleResult:
    return bundle_onnx(source, out, BundleOptions(server, "tiny"))


@pytest.mark.parametrize("write", PORTABLE, ids=lambda write: write.__name__)
def test_it_goes_to_the_browser(write: Callable[[Path], None], tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", write)
    made = bundle(to_onnx(base, tmp_path), tmp_path / "js")
    original = load_tokenizer(base)
    alone = Tokenizer.from_file(str(made.out / "tokenizer.json"))
    text = "the good dog hears <entity> covid"
    assert original is not None
    assert alone.encode(text).ids == original(text).input_ids
    assert len(set(alone.encode(text).ids)) > 5
    assert made.tokenizer_texts > 30
    assert made.tokenizer_note == ""
    said = json.loads((made.out / "tokenizer_config.json").read_text())
    assert (said["trained_max_length"], said["model_max_length"]) == (POSITIONS, POSITIONS)
    assert said.get("padding_side", "right") == "right"  # where BERT has to be padded


# What only Python reads, and what is missing


def test_python_code_stays_out_of_browsers(tmp_path: Path) -> None:
    source = to_onnx(make_base(tmp_path / "base", written_in_python), tmp_path)
    with pytest.raises(CheckpointError, match=r"ByT5Tokenizer is written in Python .* --server"):
        bundle(source, tmp_path / "js")
    assert not (tmp_path / "js").exists()
    made = bundle(source, tmp_path / "served", "triton")
    assert made.tokenizer_texts > 30  # as Python loads it from the bundle
    assert "only Python clients" in made.tokenizer_note


def test_a_bundle_without_tokenizer_says_so(tmp_path: Path) -> None:
    prepare(make_base(tmp_path / "base", None), tmp_path / "prepared")
    collapse_checkpoint(tmp_path / "prepared", tmp_path / "collapsed")
    source = export_onnx(tmp_path / "collapsed", tmp_path / "onnx", verify=False).path
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        bundle(source, tmp_path / "js")
    made = bundle(source, tmp_path / "served", "mlserver")
    assert made.tokenizer_texts == 0
    assert "has no tokenizer" in made.tokenizer_note


@pytest.mark.parametrize(
    ("file", "kind", "package"),
    [
        ("spm.model", "DebertaV2Tokenizer", "sentencepiece"),
        ("source.spm", "MarianTokenizer", "sentencepiece"),
        ("tiktoken.model", "PreTrainedTokenizerFast", "tiktoken"),
    ],
)
def test_prepare_names_the_missing_package(
    file: str, kind: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_base(tmp_path / "base", vocab_txt)
    (base / "vocab.txt").unlink()
    (base / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))
    (base / file).write_bytes(b"something")
    for name in ("sentencepiece", "tiktoken", "tiktoken.load"):
        monkeypatch.setitem(sys.modules, name, None)
    wanted = rf"{file}: .* needs the package {package}, .* 'mixout-export\[tokenizers\]'"
    with pytest.raises(CheckpointError, match=wanted):
        prepare(base, tmp_path / "prepared")
    assert not (tmp_path / "prepared").exists()


@pytest.mark.parametrize(("write", "lost"), [(vocab_txt, "vocab.txt"), (merges_txt, "merges.txt")])
def test_an_incomplete_tokenizer_is_refused(
    write: Callable[[Path], None], lost: str, tmp_path: Path
) -> None:
    base = make_base(tmp_path / "base", write)
    (base / lost).unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json.* of the base"):
        prepare(base, tmp_path / "prepared")


def test_a_file_that_is_no_sentencepiece_model(tmp_path: Path) -> None:
    pytest.importorskip("sentencepiece")
    base = make_base(tmp_path / "base", word_pieces)
    (base / "tokenizer.json").unlink()
    (base / "spiece.model").write_bytes(b"not a model")
    (base / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
    with pytest.raises(CheckpointError, match=r"spiece\.model: the tokenizer cannot be made"):
        prepare(base, tmp_path / "prepared")
    shutil.rmtree(base)
