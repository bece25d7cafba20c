from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from checkpoints import make_tokenizer
from datasets_setup import INPUTS, encoding, table

from mixout_export.data.columns import ColumnNames
from mixout_export.data.encoding import EncodingOptions
from mixout_export.data.evaluation import evaluation_data
from mixout_export.errors import ArgumentError, DataError
from mixout_export.tasks import TASKS

INTERFACE = encoding().interface
TEXTS = ("the dog sees", "a cat", "the old house in the garden", "he")


def make(data: Any, task: str | None = "text-classification", **options: Any) -> Any:
    interface = options.pop("interface", INTERFACE)
    tokenizer = options.pop("tokenizer", make_tokenizer())
    asked = {name: options.pop(name) for name in ("max_length", "doc_stride") if name in options}
    return evaluation_data(
        data,
        None if task is None else TASKS[task],
        tokenizer,
        interface,
        options=EncodingOptions(**asked),
        **options,
    )


def rows(**columns: Any) -> Any:
    return table(
        *(
            {"sentence": text, **{name: values[place] for name, values in columns.items()}}
            for place, text in enumerate(TEXTS)
        )
    )


def test_batches_hold_the_inputs_as_the_tokenizer_pads_them() -> None:
    found = make(rows(label=[0, 1, 0, 1]), labels=("no", "yes"), batch_size=3)
    expected = make_tokenizer()(list(TEXTS[:3]), padding=True, return_tensors="np")
    assert [set(batch) for batch in found.batches] == [set(INPUTS)] * 2
    for name in INPUTS:
        assert found.batches[0][name].dtype == np.int64
        assert np.array_equal(found.batches[0][name], expected[name])
    assert found.rows == ((0, 1, 2), (3,))


def test_metrics_are_those_of_the_outputs() -> None:
    found = make(rows(label=["no", "yes", "no", "yes"]), labels=("no", "yes"), batch_size=3)
    logits = [np.array([[1.0, 0], [0, 1], [0, 1]], np.float32), np.array([[0.0, 1]], np.float32)]
    scores = found.metrics({"logits": values} for values in logits)
    assert scores["accuracy"] == 0.75
    assert set(scores) == {"accuracy", "f1", "matthews", "macro_f1"}


@pytest.mark.parametrize(
    "data",
    [
        rows(),
        rows(label=[-1] * 4),
        rows(label=["-1"] * 4),
        rows(label=[None] * 4),
        rows(score=[0] * 4, stars=[1] * 4),
    ],
    ids=["none", "-1", "-1 as text", "null", "not to be told"],
)
def test_a_table_without_labels_has_no_metrics(data: Any) -> None:
    found = make(data, labels=("no", "yes"))
    assert not found.labeled
    assert found.columns.label is None
    assert len(found.batches) == 1
    assert found.metrics([{"logits": np.zeros((4, 2), np.float32)}]) is None


def test_labels_that_do_not_fit_are_an_error_even_if_no_one_named_them() -> None:
    with pytest.raises(DataError, match="label 7 in row 3"):
        make(rows(label=[0, 1, 7, 1]), labels=("no", "yes"))
    with pytest.raises(DataError, match="label -1 in row 1"):
        make(rows(label=[-1] * 4), labels=("no", "yes"), columns=ColumnNames.named(label="label"))


def test_a_model_without_a_head_is_given_texts() -> None:
    found = make(rows(label=[0, 1, 0, 1]), None)
    assert not found.labeled
    assert found.batches[0]["input_ids"].shape[0] == 4


def test_only_the_first_rows() -> None:
    found = make(rows(label=[0, 1, 0, 9]), labels=("no", "yes"), max_examples=3)
    assert found.rows == ((0, 1, 2),)
    assert make(rows(), max_examples=99).rows == ((0, 1, 2, 3),)


def test_without_a_padding_id_each_row_is_a_batch() -> None:
    found = make(rows(), interface=replace(INTERFACE, pad_token_id=None))
    assert [batch["input_ids"].shape[0] for batch in found.batches] == [1] * 4
    assert all((batch["attention_mask"] == 1).all() for batch in found.batches)


def test_padding_is_the_models_own() -> None:
    found = make(rows(), interface=replace(INTERFACE, pad_token_id=4))
    batch = found.batches[0]
    assert set(batch["input_ids"][batch["attention_mask"] == 0]) == {4}


@pytest.mark.parametrize("side", ["right", "left"])
def test_inputs_that_the_tokenizer_does_not_make(side: str) -> None:
    tokenizer = make_tokenizer("gpt2")
    tokenizer.padding_side = side
    interface = replace(INTERFACE, inputs=(*INPUTS, "position_ids"))
    batch = make(rows(), interface=interface, tokenizer=tokenizer).batches[0]
    assert tuple(batch) == interface.inputs
    assert not batch["token_type_ids"].any()
    for mask, positions in zip(batch["attention_mask"], batch["position_ids"], strict=True):
        assert positions[mask == 1].tolist() == list(range(mask.sum()))


def test_an_input_that_texts_do_not_give() -> None:
    interface = replace(INTERFACE, inputs=("input_ids", "pixel_values"))
    with pytest.raises(ArgumentError, match="'pixel_values'"):
        make(rows(), interface=interface)


def test_sequences_are_cut_to_the_models_limit() -> None:
    found = make(rows(), interface=replace(INTERFACE, sequence_limit=5))
    assert found.batches[0]["input_ids"].shape == (4, 5)
    assert make(rows(), max_length=4).batches[0]["input_ids"].shape == (4, 4)


def test_a_question_with_several_windows() -> None:
    context = "the dog sees the good cat in the old house"
    data = table(
        {"question": "who", "context": context},
        {"question": "what", "context": "a dog"},
    )
    found = make(data, "question-answering", max_length=8, doc_stride=2, batch_size=2)
    assert found.rows == ((0, 0), (0, 0), (1,))
    assert found.metrics([]) is None


def test_choices_have_a_dimension_of_their_own() -> None:
    data = table({"question": "who", "choices": ["x", "y", "z"], "label": 2})
    interface = replace(INTERFACE, choices=True)
    found = make(data, "multiple-choice", interface=interface)
    assert found.batches[0]["input_ids"].shape == (1, 3, 5)
    assert found.metrics([{"logits": np.array([[0, 0, 1.0]])}]) == {"accuracy": 1.0}


def test_text_hides_the_same_words_every_time() -> None:
    data = table(*({"text": text} for text in TEXTS))
    first, second = (make(data, "masked-lm").batches[0]["input_ids"] for _ in "12")
    assert np.array_equal(first, second)
    assert (first == make_tokenizer().mask_token_id).any()


@pytest.mark.parametrize(
    ("outputs", "part"),
    [
        ([np.zeros((3, 2))], "outputs of 1 batches, expected 2"),
        ([np.zeros((3, 2)), np.zeros((2, 2))], r"\[2\] rows for batch 1, expected 1"),
    ],
)
def test_outputs_that_belong_to_other_batches(outputs: list[Any], part: str) -> None:
    found = make(rows(label=[0, 1, 0, 1]), labels=("no", "yes"), batch_size=3)
    with pytest.raises(ArgumentError, match=part):
        found.metrics([{"logits": values} for values in outputs])
