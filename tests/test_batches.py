from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import make_tokenizer

from mixout_export.checkpoint.interface import ModelInterface
from mixout_export.data.texts import EncodedTexts, TextEncoding
from mixout_export.training.batches import (
    StepPlan,
    evaluation_batches,
    share_of,
    training_batches,
)
from mixout_export.training.options import TrainOptions


def encode(
    tokenizer: Any,
    texts: list[str],
    pairs: list[str] | None,
    labels: Any,
    *,
    inputs: tuple[str, ...],
    max_length: int,
) -> EncodedTexts:
    interface = ModelInterface(inputs, ("logits",), len(tokenizer), None, 2, None)
    made = TextEncoding(tokenizer, interface, max_length).texts(texts, pairs)
    return replace(made, labels=labels)


LENGTHS = np.random.default_rng(0).integers(3, 120, size=1003)


def padded_share(batches: list[list[int]]) -> float:
    """Return the share of positions that hold padding."""
    filled = sum(LENGTHS[batch].sum() for batch in batches)
    return 1.0 - filled / sum(len(batch) * LENGTHS[batch].max() for batch in batches)


@pytest.mark.parametrize("batch_size", [1, 7, 32, 5000])
def test_every_example_comes_once_an_epoch(batch_size: int) -> None:
    batches = training_batches(LENGTHS, batch_size=batch_size, seed=3, epoch=1)
    assert sorted(index for batch in batches for index in batch) == list(range(len(LENGTHS)))
    assert max(len(batch) for batch in batches) == min(batch_size, len(LENGTHS))


def test_the_number_of_batches_is_the_same_in_every_epoch() -> None:
    counts = {len(training_batches(LENGTHS, batch_size=8, seed=0, epoch=e)) for e in range(10)}
    assert counts == {-(-len(LENGTHS) // 8)}


def test_batches_depend_on_seed_and_epoch_and_on_nothing_else() -> None:
    first = training_batches(LENGTHS, batch_size=16, seed=5, epoch=2)
    np.random.seed(99)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert training_batches(LENGTHS, batch_size=16, seed=5, epoch=2) == first
    assert torch.equal(torch.get_rng_state(), before)
    assert training_batches(LENGTHS, batch_size=16, seed=6, epoch=2) != first
    assert training_batches(LENGTHS, batch_size=16, seed=5, epoch=3) != first
    # Not the sum of the two, or runs of neighboring seeds would share epochs.
    assert training_batches(LENGTHS, batch_size=16, seed=4, epoch=3) != first


def test_similar_lengths_go_together() -> None:
    order = np.random.default_rng(1).permutation(len(LENGTHS))
    at_random = [order[i : i + 16].tolist() for i in range(0, len(order), 16)]
    ours = training_batches(LENGTHS, batch_size=16, seed=0, epoch=0)
    assert padded_share(at_random) > 0.4
    assert padded_share(ours) < 0.1


def test_batches_do_not_come_in_the_order_of_their_length() -> None:
    means = [LENGTHS[b].mean() for b in training_batches(LENGTHS, batch_size=16, seed=0, epoch=0)]
    correlation = np.corrcoef(means, np.arange(len(means)))[0, 1]
    assert abs(correlation) < 0.5  # 63 batches: 4 standard deviations


def test_evaluation_starts_with_the_longest_and_leaves_out_none() -> None:
    batches = evaluation_batches(LENGTHS, batch_size=64)
    lengths = [LENGTHS[index] for batch in batches for index in batch]
    assert lengths == sorted(LENGTHS, reverse=True)
    assert sorted(i for batch in batches for i in batch) == list(range(len(LENGTHS)))


@pytest.mark.parametrize(("count", "ranks"), [(10, 1), (10, 2), (10, 3), (2, 4), (1, 3)])
def test_processes_get_equally_many_batches_and_together_all(count: int, ranks: int) -> None:
    batches = [[i] for i in range(count)]
    shares = [share_of(batches, rank=rank, ranks=ranks) for rank in range(ranks)]
    assert {len(share) for share in shares} == {-(-count // ranks)}
    assert sorted({b[0] for share in shares for b in share}) == list(range(count))
    first = [share[0][0] for share in shares]
    assert len(set(first)) == min(count, ranks)


def plan(rank: int, ranks: int = 2) -> StepPlan:
    lengths = LENGTHS[:70]
    options = TrainOptions(batch_size=8, gradient_accumulation=2, seed=3)
    return StepPlan(lengths, lengths % 5, options, rank, ranks)


def test_steps_hold_the_batches_of_their_epoch_in_order() -> None:
    steps = list(plan(0, ranks=1).steps(0, 10))  # 9 batches an epoch, so the fifth step has one
    for epoch in (0, 1):
        batches = training_batches(LENGTHS[:70], batch_size=8, seed=3, epoch=epoch)
        mine = steps[5 * epoch : 5 * epoch + 5]
        assert [batch for step in mine for batch in step.batches] == batches
        assert [len(step.batches) for step in mine] == [2, 2, 2, 2, 1]
        assert {step.epoch for step in mine} == {epoch}
        assert [step.ends_epoch for step in mine] == [False] * 4 + [True]


def test_steps_are_the_same_wherever_they_start() -> None:
    steps = list(plan(1).steps(0, 12))
    for start in range(12):
        assert list(plan(1).steps(start, 12)) == steps[start:]


def test_the_order_has_a_seed_of_its_own() -> None:
    def order(**options: int) -> list[tuple[list[int], ...]]:
        made = StepPlan(LENGTHS, LENGTHS, TrainOptions(**options))
        return [step.batches for step in made.steps(0, 5)]

    assert order(seed=0, data_seed=3) == order(seed=1, data_seed=3) == order(seed=3)
    assert order(seed=3, data_seed=0) != order(seed=3)


def test_processes_know_the_mean_of_their_targets() -> None:
    for first, second in zip(plan(0).steps(0, 6), plan(1).steps(0, 6), strict=True):
        counts = [sum(LENGTHS[i] % 5 for i in b) for b in (*first.batches, *second.batches)]
        assert [*first.targets, *second.targets] == counts
        assert first.mean_targets == second.mean_targets == sum(counts) / 2


def examples(padding_side: str) -> EncodedTexts:
    columns = {
        "input_ids": [[5, 6], [7, 8, 9], [4]],
        "attention_mask": [[1, 1], [1, 1, 1], [1]],
        "token_type_ids": [[0, 1], [0, 1, 1], [0]],
    }
    fill = {"input_ids": 99, "attention_mask": 0, "token_type_ids": 0}
    return EncodedTexts(columns, np.array([1, 0, 1]), fill, padding_side)


def test_a_batch_is_padded_on_the_right_to_its_own_longest() -> None:
    batch = examples("right").collate([2, 0])
    assert batch["input_ids"].tolist() == [[4, 99], [5, 6]]
    assert batch["attention_mask"].tolist() == [[1, 0], [1, 1]]
    assert batch["token_type_ids"].tolist() == [[0, 0], [0, 1]]
    assert batch["labels"].tolist() == [1, 1]
    assert {value.dtype for value in batch.values()} == {torch.int64}


def test_a_batch_is_padded_on_the_left_where_the_tokenizer_says_so() -> None:
    batch = examples("left").collate([0, 1])
    assert batch["input_ids"].tolist() == [[99, 5, 6], [7, 8, 9]]
    assert batch["attention_mask"].tolist() == [[0, 1, 1], [1, 1, 1]]


def test_encoding_keeps_what_the_tokenizer_makes_of_each_text() -> None:
    tokenizer = make_tokenizer()
    inputs = ("input_ids", "attention_mask", "token_type_ids")
    texts, pairs = ["the dog sleeps", "a cat"], ["a", "the good cat sees"]
    encoded = encode(tokenizer, texts, pairs, np.zeros(2, np.int64), inputs=inputs, max_length=64)
    assert encoded.lengths.tolist() == [7, 9]
    batch = encoded.collate([0, 1])
    expected = tokenizer(texts, pairs, padding=True, return_tensors="pt")
    for name in inputs:
        assert torch.equal(batch[name], expected[name])
    assert 1 in batch["token_type_ids"]


def test_encoding_leaves_out_inputs_that_the_model_does_not_take() -> None:
    encoded = encode(
        make_tokenizer(), ["a dog"], None, np.zeros(1), inputs=("input_ids",), max_length=64
    )
    assert set(encoded.collate([0])) == {"input_ids", "labels"}


def test_what_is_too_long_is_cut_and_nothing_else() -> None:
    texts = ["the dog sees the cat", "a dog"]
    encoded = encode(
        make_tokenizer(), texts, None, np.zeros(2), inputs=("input_ids",), max_length=5
    )
    assert encoded.lengths.tolist() == [5, 4]
    assert encoded.columns["input_ids"][0][-1] == 3  # the final [SEP] stays


def test_padding_uses_the_tokenizers_own_id() -> None:
    tokenizer = make_tokenizer()
    tokenizer.pad_token = "[MASK]"
    encoded = encode(
        tokenizer, ["a", "a dog"], None, np.zeros(2), inputs=("input_ids",), max_length=64
    )
    assert encoded.collate([0, 1])["input_ids"][0, -1] == tokenizer.mask_token_id


def test_numbers_to_predict_stay_float32() -> None:
    labels = np.array([2.5, 0.0], np.float32)
    encoded = encode(
        make_tokenizer(), ["a", "b"], None, labels, inputs=("input_ids",), max_length=64
    )
    assert encoded.collate([1, 0])["labels"].dtype == torch.float32
    assert encoded.collate([1, 0])["labels"].tolist() == [0.0, 2.5]
