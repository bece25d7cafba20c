"""Embeddings with rows that the base did not have: they are fresh, in every command."""

from pathlib import Path

import pytest
import torch
from checkpoints import TinyCheckpoints, make_tokenizer
from safetensors.torch import load_file
from torch import Tensor
from training_runs import write_tsv

from mixout_export import MixoutConfig, load_mixout, save_mixout
from mixout_export.artifacts.opening import open_artifact
from mixout_export.checkpoint.base import BaseOptions
from mixout_export.quiet import quiet_libraries
from mixout_export.stages.collapse import collapse_checkpoint
from mixout_export.stages.inspection import inspect_path
from mixout_export.stages.prepare import PrepareOptions, prepare_checkpoint
from mixout_export.stages.train import train_checkpoint
from mixout_export.stages.train.data import DataOptions
from mixout_export.training.options import TrainOptions

TABLE = "bert.embeddings.word_embeddings.weight"
MIXED = "query,word_embeddings"
ROWS = [("the dog sleeps", 0), ("a cat sees him", 1)] * 4


def prepare(tiny: TinyCheckpoints, path: Path, targets: str = "all-linear") -> Path:
    options = PrepareOptions(
        BaseOptions("text-classification", 2), MixoutConfig(target_modules=targets)
    )
    prepare_checkpoint(str(tiny.folder("bert")), path, options)
    return path


def resize(path: Path, out: Path, change: int) -> tuple[Path, Tensor, Tensor]:
    """Save a prepared model with another number of rows; return it, the base's table and its."""
    model = load_mixout(path)
    base = model.get_input_embeddings().weight.detach().clone()
    with quiet_libraries():
        model.resize_token_embeddings(len(base) + change)
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(1.0)
    save_mixout(model, out)
    return out, base, model.get_input_embeddings().weight.detach()


def train(path: Path, out: Path, **options: object) -> Tensor:
    """Train one step and return the trained table."""
    data = write_tsv(path.parent / "data.tsv", ("text", "label"), ROWS)
    settings = TrainOptions(max_steps=1, warmup_ratio=0.0, **options)  # type: ignore[arg-type]
    train_checkpoint(path, out, DataOptions(train_file=data), settings)
    return load_file(out / "model.safetensors")[TABLE]


@pytest.mark.parametrize("targets", ["all-linear", MIXED])
@pytest.mark.parametrize("change", [3, -2])
@pytest.mark.parametrize("alpha", [0.0, 0.25])
def test_interpolation_leaves_new_rows_alone(
    tiny: TinyCheckpoints, tmp_path: Path, targets: str, change: int, alpha: float
) -> None:
    prepared = prepare(tiny, tmp_path / "prepared", targets)
    path, base, trained = resize(prepared, tmp_path / "resized", change)
    collapse_checkpoint(path, tmp_path / "plain", interpolate=alpha)
    found = load_file(tmp_path / "plain/model.safetensors")[TABLE]
    known = min(len(base), len(trained))
    assert torch.equal(found[known:], trained[known:])
    if alpha == 0.0:
        assert torch.equal(found[:known], base[:known])
    else:
        expected = (1 - alpha) * base.double()[:known] + alpha * trained.double()[:known]
        torch.testing.assert_close(found[:known], expected.float(), atol=1e-6, rtol=1e-6)


def test_new_rows_decay_toward_zero(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    """Ids that no text has get no gradient, so all that moves them is the decay."""
    prepared = prepare(tiny, tmp_path / "prepared")
    path, base, resized = resize(prepared, tmp_path / "resized", 3)
    rate, decay = 0.01, 0.5
    settings = {"lr": rate, "weight_decay": decay, "decay_toward": "pretrained"}
    trained = train(path, tmp_path / "trained", **settings)
    unused = len(base) - 1  # the last word of the vocabulary
    target = torch.cat([base, torch.zeros(3, base.shape[1])])
    expected = resized - rate * decay * (resized - target)
    torch.testing.assert_close(trained[unused:], expected[unused:], atol=1e-6, rtol=1e-5)
    assert torch.equal(
        load_file(tmp_path / "trained/pretrained.safetensors")[
            TABLE.replace("weight", "pretrained_weight")
        ],
        base,
    )


def test_a_mixed_embedding_mixes_the_rows_of_the_base_only(
    tiny: TinyCheckpoints, tmp_path: Path
) -> None:
    prepared = prepare(tiny, tmp_path / "prepared", MIXED)
    path, base, resized = resize(prepared, tmp_path / "resized", 3)
    table = load_mixout(path).get_input_embeddings().train()
    ids = torch.arange(len(resized)).repeat(2, 1)
    torch.manual_seed(0)
    rows = table(ids)
    assert torch.equal(rows[:, len(base) :], resized[len(base) :].expand(2, -1, -1))
    dropped = (rows[:, : len(base)] == base).all(-1)
    assert 0.5 < dropped.float().mean() < 0.9  # p = 0.7
    rows.sum().backward()
    gradient = table.weight.grad
    assert torch.equal(gradient[len(base) :], torch.full_like(gradient[len(base) :], 2.0))
    layers = {layer.name: layer for layer in inspect_path(path).layers}
    moved = torch.ones_like(base).norm().item()
    assert layers["bert.embeddings.word_embeddings"].distance == pytest.approx(moved, rel=1e-4)


def test_a_mixed_embedding_goes_on_where_it_was_resized(
    tiny: TinyCheckpoints, tmp_path: Path
) -> None:
    """Training, saving and opening work at once, and in a folder that others saved."""
    model = load_mixout(prepare(tiny, tmp_path / "prepared", MIXED)).train()
    with quiet_libraries():
        model.resize_token_embeddings(model.config.vocab_size + 2)
    last = model.config.vocab_size - 1
    model(input_ids=torch.tensor([[2, last, 3]])).logits.sum().backward()
    with quiet_libraries():
        model.save_pretrained(tmp_path / "foreign")
        make_tokenizer().save_pretrained(tmp_path / "foreign")
    assert load_mixout(tmp_path / "foreign").get_input_embeddings().weight.shape[0] == last + 1
    trained = train(tmp_path / "foreign", tmp_path / "trained")
    assert trained.shape[0] == last + 1


def test_a_resized_layer_that_is_plain_now_is_not_mixed_any_more(
    tiny: TinyCheckpoints, tmp_path: Path
) -> None:
    """transformers puts a new plain layer in the place of an output layer it enlarges."""
    options = PrepareOptions(
        BaseOptions("causal-lm"), MixoutConfig(target_modules="q_proj,lm_head")
    )
    prepare_checkpoint(str(tiny.folder("llama", "ForCausalLM")), tmp_path / "prepared", options)
    model = load_mixout(tmp_path / "prepared")
    with quiet_libraries():
        model.resize_token_embeddings(model.config.vocab_size + 2)
    save_mixout(model, tmp_path / "resized")
    names = [module.name for module in open_artifact(tmp_path / "resized").metadata.modules]
    assert names
    assert "lm_head" not in names
    load_mixout(tmp_path / "resized")
    collapse_checkpoint(tmp_path / "resized", tmp_path / "plain", interpolate=0.5)
