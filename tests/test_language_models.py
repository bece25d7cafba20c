import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import VOCABULARY, make_tokenizer
from datasets_setup import encoding, read, table

from mixout_export.data.readers.language_modeling import Surprise
from mixout_export.errors import ArgumentError, CheckpointError, DataError

MASK = VOCABULARY.index("[MASK]")
WORDS = (*("the", "good", "dog", "sees", "the", "old", "cat"), *("in", "the", "house", "and"))
WORDS += ("the", "bird", "runs")


def rows(count: int = 3) -> Any:
    return table(*({"text": " ".join(WORDS[: 4 + 3 * n])} for n in range(count)))


def ending_tokenizer() -> Any:
    """Return a tokenizer that has an end token and does not write it."""
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = None
    tokenizer.eos_token = "[SEP]"
    return tokenizer


# Masks


def test_hidden_tokens_are_labels_and_nothing_else_is() -> None:
    made = read("masked-lm", rows())
    whole = made.encoded.collate([0, 1, 2])["input_ids"]
    batch = made.collate([0, 1, 2], epoch=0)
    chosen = batch["labels"] != -100
    assert chosen.sum(1).tolist() == made.targets.tolist() == [1, 1, 2]  # 15 % of 4, 7 and 10
    assert torch.equal(batch["labels"][chosen], whole[chosen])
    assert torch.equal(batch["input_ids"][~chosen], whole[~chosen])
    special = (whole == 0) | (whole == 2) | (whole == 3)  # padding, [CLS], [SEP]
    assert not (chosen & special).any()


def test_of_the_hidden_8_of_10_are_masked_1_is_random_and_1_stays() -> None:
    made = read("masked-lm", table(*({"text": " ".join(WORDS * 4)} for _ in range(100))))
    counts = {"chosen": 0, "masked": 0, "kept": 0}
    where = np.zeros(made.lengths[0])
    for epoch in range(10):
        batch = made.collate(range(100), epoch=epoch)
        ids, labels = batch["input_ids"].numpy(), batch["labels"].numpy()
        chosen = labels != -100
        where += chosen.sum(0)
        counts["chosen"] += chosen.sum()
        counts["masked"] += (ids == MASK)[chosen].sum()
        counts["kept"] += (ids == labels)[chosen].sum()
    total = counts["chosen"]
    assert total == 1000 * round(0.15 * 56)
    # Five standard deviations of a binomial with n = 8000.
    for name, share in (("masked", 0.8), ("kept", 0.1)):
        bound = 5 * math.sqrt(share * (1 - share) / total) + 1 / len(VOCABULARY)
        assert abs(counts[name] / total - share) < bound
    inner = where[1:-1]
    assert where[0] == where[-1] == 0
    # Each of 56 places is hidden in 8/56 of 1000 draws.
    assert np.abs(inner - 1000 / 7).max() < 5 * math.sqrt(1000 / 7 * 6 / 7)


def test_masks_depend_on_seed_epoch_and_example_and_on_nothing_else() -> None:
    data = table(*({"text": " ".join(WORDS)} for _ in range(8)))
    made = read("masked-lm", data, encoding(seed=5))

    def hidden(indices: list[int], epoch: int | None, examples: Any = made) -> list[Any]:
        return examples.collate(indices, epoch=epoch)["labels"].tolist()

    first = hidden([0, 1, 2, 3], 1)
    torch.manual_seed(9)
    np.random.seed(9)
    assert hidden([3, 2], 1) == [first[3], first[2]]
    assert hidden([0, 1, 2, 3], 2) != first
    assert len({str(row) for row in hidden(list(range(8)), 1)}) > 4
    other = read("masked-lm", data, encoding(seed=6))
    assert hidden([0, 1, 2, 3], 1, other) != first
    # Evaluations of runs with different seeds can be compared.
    assert hidden([0, 1, 2, 3], None) == hidden([0, 1, 2, 3], None, other) != first


def test_batches_leave_the_texts_as_they_were() -> None:
    made = read("masked-lm", rows())
    before = [row.copy() for row in made.encoded.columns["input_ids"]]
    made.collate([0, 1, 2], epoch=0)
    for row, old in zip(made.encoded.columns["input_ids"], before, strict=True):
        assert np.array_equal(row, old)


def test_padding_on_the_left_hides_the_same_words() -> None:
    tokenizer = make_tokenizer()
    tokenizer.padding_side = "left"
    made = encoding(tokenizer=tokenizer)
    made = replace(made, interface=replace(made.interface, left_padding=True))
    left = read("masked-lm", rows(), made).collate([0, 2], epoch=0)
    right = read("masked-lm", rows()).collate([0, 2], epoch=0)
    length = int(right["attention_mask"][0].sum())
    for name in ("input_ids", "labels"):
        assert torch.equal(left[name][0, -length:], right[name][0, :length])
        assert torch.equal(left[name][1], right[name][1])


def test_a_tokenizer_without_a_mask() -> None:
    tokenizer = make_tokenizer()
    tokenizer._special_tokens_map.pop("mask_token")
    with pytest.raises(CheckpointError, match="has no mask token"):
        read("masked-lm", rows(), encoding(tokenizer=tokenizer))


# What follows


def test_every_token_but_the_first_is_a_target() -> None:
    made = read("causal-lm", rows(2), encoding(tokenizer=ending_tokenizer()))
    batch = made.collate([0, 1])
    assert made.targets.tolist() == [4, 7]  # words, the end, less the first
    assert batch["input_ids"][0].tolist()[:5] == batch["labels"][0].tolist()[:5]
    assert batch["labels"][0].tolist()[5:] == [-100] * 3
    assert batch["input_ids"][1, -1] == VOCABULARY.index("[SEP]")


def test_an_end_that_the_tokenizer_writes_is_not_doubled() -> None:
    tokenizer = make_tokenizer()
    tokenizer.eos_token = "[SEP]"
    made = read("causal-lm", rows(1), encoding(tokenizer=tokenizer))
    assert made.collate([0])["input_ids"][0].tolist().count(VOCABULARY.index("[SEP]")) == 1


def test_a_text_that_is_cut_has_no_end() -> None:
    made = read("causal-lm", rows(2), encoding(tokenizer=ending_tokenizer(), max_length=5))
    ends = [VOCABULARY.index("[SEP]") in row for row in made.encoded.columns["input_ids"]]
    assert ends == [True, False]
    assert made.lengths.tolist() == [5, 5]


def test_texts_to_continue_are_padded_on_the_right() -> None:
    tokenizer = ending_tokenizer()
    tokenizer.padding_side = "left"
    batch = read("causal-lm", rows(2), encoding(tokenizer=tokenizer)).collate([0, 1])
    assert batch["attention_mask"][0].tolist() == [1] * 5 + [0] * 3


# Blocks


def test_blocks_hold_every_token_once() -> None:
    made = read(
        "causal-lm",
        rows(3),
        encoding(tokenizer=ending_tokenizer(), max_length=7, pack_sequences=True),
    )
    joined = np.concatenate(made.encoded.columns["input_ids"]).tolist()
    tokenizer = make_tokenizer()
    ids = [
        [*tokenizer.convert_tokens_to_ids(WORDS[: 4 + 3 * n]), VOCABULARY.index("[SEP]")]
        for n in range(3)
    ]
    assert joined == [token for text in ids for token in text]
    assert made.lengths.tolist() == [7, 7, 7, 3]
    assert made.rows.tolist() == [0, 1, 2, 2]


def test_a_last_block_of_one_token_is_left_out() -> None:
    made = read(
        "causal-lm",
        rows(3),
        encoding(tokenizer=ending_tokenizer(), max_length=23, pack_sequences=True),
    )
    assert made.lengths.tolist() == [23]


def test_blocks_of_masked_text_hide_no_special_token() -> None:
    made = read("masked-lm", rows(3), encoding(max_length=9, pack_sequences=True))
    assert made.lengths.tolist() == [9, 9, 9]
    ids = np.concatenate(made.encoded.columns["input_ids"])
    assert (ids == 2).sum() == (ids == 3).sum() == 3
    for epoch in range(20):
        labels = made.collate([0, 1, 2], epoch=epoch)["labels"]
        assert not ((labels == 2) | (labels == 3)).any()


# Metrics


@pytest.mark.parametrize("task", ["masked-lm", "causal-lm"])
def test_the_loss_is_the_mean_over_targets(task: str) -> None:
    made = read(task, rows(3))
    generator = torch.Generator().manual_seed(0)
    predictions: list[Any] = []
    total = count = 0.0
    for indices in ([0, 1], [2]):
        batch = made.collate(indices)
        logits = torch.randn(*batch["input_ids"].shape, len(VOCABULARY), generator=generator)
        predictions += made.predict(indices, {"logits": logits})
        shift = 1 if task == "causal-lm" else 0
        for line, labels in zip(logits, batch["labels"], strict=True):
            for place, label in enumerate(labels.tolist()):
                if label != -100 and place >= shift:
                    total -= float(line[place - shift].log_softmax(0)[label])
                    count += 1
    scores = made.metrics(predictions)
    assert scores["loss"] == pytest.approx(total / count, rel=1e-5)
    assert scores["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)
    assert count == made.targets.sum()


def test_a_loss_that_the_model_computed_is_taken_over() -> None:
    made = read("causal-lm", rows(3))
    predictions = made.predict([0, 1], {"loss": torch.tensor(2.0)})
    predictions += made.predict([2], {"loss": torch.tensor(5.0)})
    counts = made.targets.tolist()
    expected = (2.0 * (counts[0] + counts[1]) + 5.0 * counts[2]) / sum(counts)
    assert made.metrics(predictions)["loss"] == pytest.approx(expected)


def test_a_loss_too_large_for_a_perplexity() -> None:
    made = read("causal-lm", rows(1))
    assert made.metrics([Surprise(1e4, 1)]) == {"loss": 1e4, "perplexity": math.inf}
    assert math.isnan(made.metrics([Surprise(math.nan, 1)])["perplexity"])


# Data


def test_usual_names() -> None:
    for name in ("text", "sentence", "Content"):
        assert len(read("masked-lm", table({name: "the dog sees"}))) == 1
    assert len(read("masked-lm", table({"q": "the dog sees", "text": "a"}), text="q")) == 1


@pytest.mark.parametrize(
    ("row", "named", "kind", "part"),
    [
        ({"words": "a"}, {}, DataError, "--text-column"),
        ({"text": "a", "review": "b"}, {}, DataError, "several columns may hold the text"),
        ({"text": "a", "b": "c"}, {"text_pair": "b"}, ArgumentError, "text-pair-column"),
        ({"text": "a", "b": "c"}, {"label": "b"}, ArgumentError, "label-column"),
        ({"text": ""}, {}, DataError, "'text' has no value in row 1 (line 2)"),
        ({"text": "\u200b"}, {}, DataError, "without a token to predict in row 1 (line 2)"),
        ({"text": 3}, {}, DataError, "int 3"),
    ],
)
def test_data_that_do_not_fit(
    row: Any, named: dict[str, str], kind: type[Exception], part: str
) -> None:
    with pytest.raises(kind) as caught:
        read("masked-lm", table(row), **named)
    assert part in str(caught.value)


def test_a_text_of_one_token_has_nothing_to_continue() -> None:
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = None
    with pytest.raises(DataError, match="without a token to predict in row 1"):
        read("causal-lm", table({"text": "dog"}), encoding(tokenizer=tokenizer))
