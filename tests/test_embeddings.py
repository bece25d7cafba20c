"""Embeddings mixed on request: a row is an input neuron of the product with a one-hot vector."""

import copy
from pathlib import Path

import pytest
import torch
from checkpoints import TinyCheckpoints, make_model
from torch import Tensor, nn

from mixout_export import MixoutConfig, collapse_mixout, inject_mixout, load_mixout, save_mixout
from mixout_export.checkpoint.folder import open_checkpoint
from mixout_export.checkpoint.loading import load_plain
from mixout_export.config import ALL_LINEAR
from mixout_export.errors import TargetError
from mixout_export.layers import MixoutEmbedding, to_plain
from mixout_export.stages.collapse import collapse_checkpoint
from mixout_export.stages.inspection import inspect_path
from mixout_export.stages.onnx_export import export_onnx
from mixout_export.stages.prepare import PrepareOptions, prepare_checkpoint
from mixout_export.stages.verify import verify_checkpoints

ROWS, WIDTH, P = 11, 6, 0.6
IDS = torch.tensor([[1, 4, 4, 0], [9, 1, 10, 4]])

GRANULARITIES = pytest.mark.parametrize("granularity", ["neuron", "filter", "element"])


def embedding(granularity: str = "neuron", padding_idx: int | None = None) -> MixoutEmbedding:
    torch.manual_seed(0)
    layer = MixoutEmbedding(ROWS, WIDTH, padding_idx, p=P, granularity=granularity)
    with torch.no_grad():
        layer.weight.add_(torch.randn_like(layer.weight))
    return layer.double()


def mixed_table(layer: MixoutEmbedding, seed: int) -> Tensor:
    """Return the table by the paper's eq. 4, with the mask that the layer draws under a seed."""
    torch.manual_seed(seed)
    w, u, m = layer.weight, layer.pretrained_weight, torch.zeros(ROWS, 1)
    if layer.granularity == "neuron":
        m = torch.rand(ROWS, 1) >= P
    elif layer.granularity == "filter":
        m = torch.rand(1, WIDTH) >= P
    else:  # a row of bits for each different id, in order, of as many rows as are looked up
        ids = IDS.unique()
        m = torch.zeros(ROWS, WIDTH).index_copy(
            0, ids, (torch.rand(IDS.numel(), WIDTH)[: len(ids)] >= P).float()
        )
    m = m.to(w.dtype)
    return ((1 - m) * u + m * w - P * u) / (1 - P)


@GRANULARITIES
@pytest.mark.parametrize("padding_idx", [None, 4])
def test_forward_and_gradient_against_a_dense_reference(granularity, padding_idx) -> None:
    layer = embedding(granularity, padding_idx)
    upstream = torch.randn(*IDS.shape, WIDTH, dtype=torch.float64)
    torch.manual_seed(2)  # which keeps row 4
    output = layer(IDS)
    output.backward(upstream)
    got, layer.weight.grad = layer.weight.grad, None

    expected = mixed_table(layer, 2)[IDS]
    expected.backward(upstream)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    wanted = layer.weight.grad.clone()
    if padding_idx is not None:
        assert wanted[padding_idx].any()
        wanted[padding_idx] = 0.0  # the plain layer gives its padding row no gradient
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    assert layer.weight.grad.layout == torch.strided


def test_a_dropped_row_is_the_pretrained_row_as_a_whole() -> None:
    layer = embedding()
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.pretrained_weight.fill_(-1.0)
    kept = -1.0 + 2.0 / (1.0 - P)
    seen = set()
    for _ in range(20):
        rows = layer(torch.arange(ROWS))
        assert (rows == rows[:, :1]).all()
        seen |= set(rows[:, 0].tolist())
        assert torch.equal(*layer(torch.tensor([3, 3])))  # wherever it is looked up
    assert sorted(seen) == pytest.approx([-1.0, kept])


def test_element_bits_belong_to_entries_and_are_shared_by_equal_ids() -> None:
    layer = embedding("element")
    rows = layer(torch.tensor([7, 2, 7, 2, 2]))
    assert torch.equal(rows[0], rows[2])
    assert torch.equal(rows[1], rows[4])
    scales = (rows[:2] - layer.pretrained_weight[[7, 2]]) / (
        layer.weight - layer.pretrained_weight
    )[[7, 2]]
    assert 0 < (scales.abs() > 0.5).sum() < 2 * WIDTH
    assert not torch.equal(layer(torch.tensor([7])), layer(torch.tensor([7])))


@GRANULARITIES
def test_the_mean_is_the_weight(granularity: str) -> None:
    layer = embedding(granularity).float()
    rows = torch.stack([layer(torch.arange(ROWS)) for _ in range(4000)])
    spread = (layer.weight - layer.pretrained_weight).abs() * (P / (1 - P) / 4000) ** 0.5
    assert ((rows.mean(0) - layer.weight).abs() <= 6 * spread + 1e-6).all()


@GRANULARITIES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_evaluation_is_the_plain_layer_and_training_is_exact_at_the_anchor(
    granularity: str, dtype: torch.dtype
) -> None:
    layer = embedding(granularity).to(dtype)
    plain = to_plain(copy.deepcopy(layer))
    assert type(plain) is nn.Embedding
    assert torch.equal(layer.eval()(IDS), plain(IDS))
    with torch.no_grad():
        layer.weight.copy_(layer.pretrained_weight)
    assert torch.equal(layer.train()(IDS), layer.pretrained_weight[IDS])


@GRANULARITIES
def test_ids_of_any_shape(granularity: str) -> None:
    layer = embedding(granularity)
    for shape in ((), (0,), (3,), (2, 3, 4)):
        assert layer(torch.full(shape, 5)).shape == (*shape, WIDTH)
        assert layer(torch.full(shape, 5, dtype=torch.int32)).shape == (*shape, WIDTH)


# Targets ------------------------------------------------------------------------------------------


def replaced(targets: str, kind: str = "bert", head: str = "ForSequenceClassification") -> set[str]:
    return set(inject_mixout(make_model(kind, head), MixoutConfig(target_modules=targets)).replaced)


def test_embeddings_are_mixed_where_they_are_named() -> None:
    words = "bert.embeddings.word_embeddings"
    assert replaced("embeddings.word_embeddings") == {words}
    assert replaced(r".*\.word_embeddings") == {words}
    assert replaced(r".*embeddings\.(word|position)_embeddings|.*word_embeddings") == {words}
    assert len(replaced("word_embeddings,query")) == 3


@pytest.mark.parametrize("targets", [ALL_LINEAR, r".*", r"bert\..*"])
def test_embeddings_are_not_mixed_where_they_are_not(targets: str) -> None:
    assert not any("embeddings" in name for name in replaced(targets))


def test_a_regex_that_only_happens_to_match_says_how_to_name_an_embedding() -> None:
    with pytest.raises(TargetError, match="mixes only if it contains 'word_embeddings'"):
        replaced(r".*word_emb.*")


def test_a_tied_embedding_is_mixed_only_by_its_full_name() -> None:
    with pytest.raises(TargetError, match=r"shared by transformer\.wte, lm_head"):
        replaced("wte", "gpt2", "LMHeadModel")
    assert replaced("transformer.wte", "gpt2", "LMHeadModel") == {"transformer.wte"}


def test_tables_that_cannot_be_mixed_are_refused() -> None:
    class Special(nn.Embedding):
        pass

    model = nn.ModuleDict({"norm": nn.Embedding(3, 2, max_norm=1.0), "own": Special(3, 2)})
    with pytest.raises(TargetError, match="'norm' is an Embedding with a max_norm"):
        inject_mixout(model, MixoutConfig(target_modules="norm"))
    with pytest.raises(TargetError, match="'own' is a Special, which cannot be mixed"):
        inject_mixout(model, MixoutConfig(target_modules="own"))


# The whole way ------------------------------------------------------------------------------------

TARGETS = "word_embeddings,position_embeddings,query"


@GRANULARITIES
def test_prepare_step_collapse_onnx_verify(
    tiny: TinyCheckpoints, tmp_path: Path, granularity: str
) -> None:
    base = tiny.folder("bert", "ForSequenceClassification")
    options = PrepareOptions(mixout=MixoutConfig(target_modules=TARGETS, granularity=granularity))
    result = prepare_checkpoint(str(base), tmp_path / "prepared", options)
    assert len(result.mixed) == 4
    assert not result.notes or "shares" not in result.notes[0]

    model = load_mixout(tmp_path / "prepared")
    table = model.get_submodule("bert.embeddings.word_embeddings")
    assert type(table) is MixoutEmbedding
    assert table.granularity == granularity
    before = table.weight.detach().clone()
    ids = torch.tensor([[2, 40, 41, 3], [2, 42, 3, 0]])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    torch.manual_seed(0)
    for _ in range(5):  # at one step all rows may be dropped
        model.train()(ids, attention_mask=ids.ne(0), labels=torch.tensor([0, 1])).loss.backward()
        optimizer.step()
    moved = (table.weight != before).any(dim=1).nonzero().flatten().tolist()
    assert moved
    assert set(moved) <= {2, 3, 40, 41, 42}  # no row that was not looked up, nor the padding row
    assert torch.equal(table.pretrained_weight, before)
    save_mixout(model, tmp_path / "trained")

    found = {layer.name: layer for layer in inspect_path(tmp_path / "trained").layers}
    assert found["bert.embeddings.word_embeddings"].distance > 0
    collapse_checkpoint(tmp_path / "trained", tmp_path / "collapsed")
    export_onnx(tmp_path / "collapsed", tmp_path / "onnx")
    assert verify_checkpoints(tmp_path / "trained", tmp_path / "onnx").holds
    plain = load_plain(open_checkpoint(tmp_path / "collapsed"))
    assert torch.equal(plain.bert.embeddings.word_embeddings.weight, table.weight)


def test_a_tied_embedding_says_so_and_collapses_to_one_weight(
    tiny: TinyCheckpoints, tmp_path: Path
) -> None:
    base = tiny.folder("gpt2", "LMHeadModel")
    options = PrepareOptions(mixout=MixoutConfig(target_modules="transformer.wte"))
    result = prepare_checkpoint(str(base), tmp_path / "prepared", options)
    assert result.notes[0].startswith(
        "transformer.wte shares its weight with lm_head: only lookups are"
    )
    model = load_mixout(tmp_path / "prepared")
    assert model.lm_head.weight is model.transformer.wte.weight
    assert type(model.transformer.wte) is MixoutEmbedding
    collapse_mixout(model)
    assert type(model.transformer.wte) is nn.Embedding
