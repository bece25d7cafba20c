import logging
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import make_tokenizer
from datasets_setup import encoding, read, table
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from mixout_export.errors import ArgumentError, CheckpointError, DataError
from mixout_export.tasks import TASKS

TASK = "token-classification"
TAGS = ("O", "B-PER", "I-PER")
ROWS = (
    {"tokens": ["the", "xyz", "sees"], "ner_tags": ["O", "B-PER", "O"]},
    {"tokens": ["dog"], "ner_tags": ["I-PER"]},
)


def test_a_words_first_token_carries_its_label() -> None:
    batch = read(TASK, table(*ROWS), encoding(*TAGS)).collate([0, 1])
    tokens = make_tokenizer().convert_ids_to_tokens(batch["input_ids"][0])
    assert tokens == ["[CLS]", "the", "x", "##y", "##z", "sees", "[SEP]"]
    assert batch["labels"].tolist() == [
        [-100, 0, 1, -100, -100, 0, -100],
        [-100, 2, -100, -100, -100, -100, -100],
    ]
    assert batch["attention_mask"].sum(1).tolist() == [7, 3]


@pytest.mark.parametrize(
    "rows",
    [
        ({"text": "the xyz sees", "labels": "O B-PER O"}, {"text": "dog", "labels": "I-PER"}),
        ({"words": ["the", "xyz", "sees"], "label": [0, 1, 0]}, {"words": ["dog"], "label": [2]}),
        ({"tokens": "the  xyz sees", "pos": "0 1 0"}, {"tokens": "dog ", "pos": "2"}),
    ],
    ids=["conll", "numbers", "numbers as text"],
)
def test_usual_names_and_formats_mean_the_same(rows: Any) -> None:
    ours = read(TASK, table(*rows), encoding(*TAGS)).collate([0, 1])
    theirs = read(TASK, table(*ROWS), encoding(*TAGS)).collate([0, 1])
    for name, value in theirs.items():
        assert torch.equal(ours[name], value)


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """Build a tokenizer like GPT-2's: spaces belong to the token after them."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = BPE({letter: index for index, letter in enumerate(letters)}, [])
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="!")


def test_a_byte_level_tokenizer_needs_no_other_settings() -> None:
    made = read(TASK, table(*ROWS), encoding(*TAGS, tokenizer=byte_level_tokenizer()))
    # t h e _ x y z _ s e e s: the space begins the token's word
    assert made.places[0].tolist() == [0, 4, 8]
    assert made.collate([0])["labels"][0].tolist() == [
        0,
        *[-100] * 3,
        1,
        *[-100] * 3,
        0,
        *[-100] * 3,
    ]


def test_a_word_with_spaces_in_it_is_one_word() -> None:
    rows = {"tokens": ["new house", "the"], "tags": ["B-PER", "O"]}
    assert read(TASK, table(rows), encoding(*TAGS)).places[0].tolist() == [1, 3]


@pytest.mark.parametrize("side", ["right", "left"])
def test_predictions_are_read_where_the_words_begin(side: str) -> None:
    tokenizer = make_tokenizer()
    tokenizer.padding_side = side
    made = read(TASK, table(*ROWS), encoding(*TAGS, tokenizer=tokenizer))
    batch = made.collate([1, 0])
    assert batch["labels"][0].tolist().count(2) == 1
    logits = torch.nn.functional.one_hot(batch["labels"].clamp(min=0), len(TAGS)).float()
    predictions = made.predict([1, 0], {"logits": logits})
    assert [p.tolist() for p in predictions] == [[2], [0, 1, 0]]
    scores = made.metrics(predictions[::-1])
    assert scores == dict.fromkeys(TASKS[TASK].metrics, 1.0)


def test_a_wrong_word_costs_its_entity_and_its_share_of_the_words() -> None:
    made = read(TASK, table(*ROWS), encoding(*TAGS))
    scores = made.metrics([np.array([0, 0, 0]), np.array([2])])
    assert scores == pytest.approx({"f1": 2 / 3, "precision": 1.0, "recall": 0.5, "accuracy": 0.75})


def test_logits_that_are_not_numbers_make_every_metric_nan() -> None:
    made = read(TASK, table(*ROWS), encoding(*TAGS))
    logits = torch.zeros(2, 7, 3)
    logits[0, 2, 1] = torch.nan
    scores = made.metrics(made.predict([0, 1], {"logits": logits}))
    assert set(scores) == set(TASKS[TASK].metrics)
    assert all(np.isnan(value) for value in scores.values())


def test_words_beyond_the_longest_sequence_are_counted_as_cut(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, logger="mixout_export"):
        made = read(TASK, table(*ROWS), encoding(*TAGS, max_length=5))
    assert [place.tolist() for place in made.places] == [[1, 2], [1]]
    assert made.targets.tolist() == [2, 1]
    assert [len(tags) for tags in made.tags] == [2, 1]
    assert dict(made.cut) == {0: 7}
    assert "not read" not in caplog.text


def test_words_without_tokens_are_told_of(caplog: pytest.LogCaptureFixture) -> None:
    row = {"tokens": ["the", "\u200b"], "ner_tags": ["O", "O"]}
    with caplog.at_level(logging.WARNING, logger="mixout_export"):
        read(TASK, table(row, *ROWS), encoding(*TAGS, max_length=5))
    assert "1 of 3 words are not read, because the tokenizer turns them into no" in caplog.text


def test_a_table_without_labels_is_read_but_not_judged() -> None:
    made = read(TASK, table({"tokens": ["the", "dog"]}), encoding(*TAGS), labeled=False)
    assert not made.labeled
    assert "labels" not in made.collate([0])
    assert made.predict([0], {"logits": torch.zeros(1, 4, 3)})[0].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        (
            {"tokens": ["a", "b"], "tags": ["O"]},
            ("'tags' holds 1 labels", "expected 2", "'tokens'"),
        ),
        ({"tokens": ["a"], "tags": "O O"}, ("'tags' holds 2 labels", "expected 1")),
        ({"tokens": ["a"], "tags": 1}, ("'tags' holds 1 in", "expected 1")),
        (
            {"tokens": ["a"], "tags": ["B-LOC"]},
            ("'B-LOC'", "3 labels (O, B-PER, I-PER, or their numbers 0"),
        ),
        ({"tokens": ["a"], "tags": [3]}, ("label 3", "0 to 2")),
        ({"tokens": ["a"], "tags": None}, ("'tags' has no value",)),
        ({"tokens": [], "tags": []}, ("at least one word",)),
        ({"tokens": ["a", " "], "tags": ["O", "O"]}, ("no empty one",)),
        ({"tokens": ["a", 1], "tags": ["O", "O"]}, ("int 1", "expected text")),
        ({"tokens": 5, "tags": ["O"]}, ("holds 5", "list of words")),
        ({"tokens": ["\u200b"], "tags": ["O"]}, ("turns into no tokens",)),
    ],
)
def test_rows_that_do_not_fit(row: Any, parts: tuple[str, ...]) -> None:
    with pytest.raises(DataError) as caught:
        read(TASK, table({"tokens": ["a"], "tags": ["O"]}, row), encoding(*TAGS))
    message = str(caught.value)
    for part in ("data.jsonl", "row 2 (line 3)", *parts):
        assert part in message
    assert "\n" not in message


def test_columns_that_cannot_be_told_apart() -> None:
    row = {"tokens": ["a"], "ner_tags": ["O"], "pos_tags": ["O"]}
    with pytest.raises(DataError, match=r"several columns .* \(ner_tags, pos_tags\)"):
        read(TASK, table(row), encoding(*TAGS))
    assert read(TASK, table(row), encoding(*TAGS), label="ner_tags").labeled
    with pytest.raises(ArgumentError, match="reads one text a row"):
        read(TASK, table(row), encoding(*TAGS), text_pair="tokens")
    with pytest.raises(DataError, match="--label-column names 2 columns"):
        read(TASK, table(row), encoding(*TAGS), label="ner_tags,pos_tags")


def test_a_tokenizer_that_does_not_tell_where_its_tokens_lie() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(CheckpointError, match="Slow: is a slow tokenizer"):
        read(TASK, table(*ROWS), encoding(*TAGS, tokenizer=Slow()))
