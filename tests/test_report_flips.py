import numpy as np
import pytest
from tiny_models import WORDS, make_tokenizer

from mixout_export.checkpoint.model_inputs import Batch
from mixout_export.parity.compare import OutputComparison, OutputDifference, Tolerance
from mixout_export.report.flips import SHOWN_TOKENS, FlipFacts, FlipReader, Text

LABELS = ("no", "yes", "maybe")

#: "the cat sees" between its marks.
IDS = [2, 4, 6, 9, 3]


def compared(
    reference: list, candidate: list, ids: list = IDS, *, decision: str = "argmax", **options: bool
) -> OutputDifference:
    """Compare one row's logits, as the comparison of whole models does."""
    comparison = OutputComparison("logits", Tolerance(1e-5, 0.0), decision=decision, **options)
    batch = Batch("data", {"input_ids": np.array([ids]), "attention_mask": np.ones_like([ids])})
    comparison.add(batch, np.array([reference], float), np.array([candidate], float))
    return comparison.result()


def read(task: str, output: OutputDifference, **options: bool) -> tuple[FlipFacts, ...]:
    reader = FlipReader(task=task, labels=LABELS, tokenizer=make_tokenizer())
    return reader.read(output, **options)


def said(text: Text) -> list[tuple[str, str]]:
    return [(piece.text, piece.role) for piece in text.pieces]


def test_a_text_is_decided_as_a_whole() -> None:
    (flip,) = read("text-classification", compared([3.0, 1.0, 0.0], [0.0, 1.0, 0.0]))
    assert (flip.place, flip.reference, flip.candidate) == ("", "no", "yes")
    assert said(flip.texts[0]) == [("[CLS] the cat sees [SEP]", "")]
    assert flip.texts[0].ids == tuple(IDS)
    assert (flip.flip.margin, flip.flip.batch) == (2.0, "data")


def test_labels_that_have_no_name_are_numbered() -> None:
    output = compared([0.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0])
    (flip,) = read("text-classification", output)
    assert (flip.reference, flip.candidate) == ("label 3", "no")


def test_each_label_of_several_is_a_decision() -> None:
    output = compared([3.0, -1.0, -2.0], [3.0, 1.0, -2.0], decision="sign")
    (flip,) = read("multi-label", output)
    assert (flip.place, flip.reference, flip.candidate) == ("yes", "no", "yes")
    assert {role for _, role in said(flip.texts[0])} == {""}


def test_the_token_that_is_decided_about_is_marked() -> None:
    left, right = np.zeros((5, 3)), np.zeros((5, 3))
    left[2, 1] = right[2, 2] = 1.0
    (flip,) = read("token-classification", compared(left, right, per_token=True))
    assert (flip.place, flip.reference, flip.candidate) == ("token 2", "yes", "maybe")
    assert said(flip.texts[0]) == [("[CLS] the", ""), ("cat", "place"), ("sees [SEP]", "")]


def test_the_tokens_that_are_decided_for_are_marked() -> None:
    left, right = [0, 0, 2, 0, 0], [0, 2, 0, 0, 0]
    (flip,) = read("question-answering", compared(left, right, per_token=True))
    assert (flip.reference, flip.candidate) == ("token 2, “cat”", "token 1, “the”")
    pieces = [("[CLS]", ""), ("the", "candidate"), ("cat", "reference"), ("sees [SEP]", "")]
    assert said(flip.texts[0]) == pieces


def test_choices_are_texts_of_their_own() -> None:
    output = compared([2.0, 0.0], [0.0, 2.0], [[2, 4, 6, 3], [2, 5, 7, 3]])
    (flip,) = read("multiple-choice", output)
    assert (flip.reference, flip.candidate) == ("choice 0", "choice 1")
    assert [text.title for text in flip.texts] == ["choice 0", "choice 1"]
    assert said(flip.texts[1]) == [("[CLS] a dog [SEP]", "")]


def test_the_padding_of_shorter_choices_is_left_out() -> None:
    comparison = OutputComparison("logits", Tolerance(1e-5, 0.0), decision="argmax")
    ids = np.array([[[2, 4, 6, 3, 0], [2, 5, 7, 9, 3]]])
    mask = np.array([[[1, 1, 1, 1, 0], [1] * 5]])
    batch = Batch("data", {"input_ids": ids, "attention_mask": mask})
    comparison.add(batch, np.array([[2.0, 0.0]]), np.array([[0.0, 2.0]]))
    (flip,) = read("multiple-choice", comparison.result())
    assert [text.ids for text in flip.texts] == [(2, 4, 6, 3), (2, 5, 7, 9, 3)]


def test_words_of_a_vocabulary_are_decoded() -> None:
    left, right = np.zeros((2, 14)), np.zeros((2, 14))
    left[1, 4 + WORDS.index("runs")] = right[1, 4 + WORDS.index("sleeps")] = 1.0
    (flip,) = read("causal-lm", compared(left, right), generated=True)
    assert (flip.place, flip.reference, flip.candidate) == ("generated token 1", "runs", "sleeps")
    (flip,) = read("masked-lm", compared(left, right))
    assert said(flip.texts[0])[1] == ("the", "place")


def test_without_a_tokenizer_ids_stay_ids() -> None:
    reader = FlipReader(task="causal-lm", labels=(), tokenizer=None)
    left, right = np.eye(5, 14), np.roll(np.eye(5, 14), 1, axis=1)
    flips = reader.read(compared(left, right))
    assert len(flips) == 5
    assert flips[0].texts[0].pieces == ()
    assert flips[0].texts[0].ids == tuple(IDS)
    assert {flip.reference for flip in flips} == {f"token id {i}" for i in range(5)}


@pytest.mark.parametrize(
    ("place", "before"), [(0, 0), (SHOWN_TOKENS, 64), (999, 1000 - SHOWN_TOKENS)]
)
def test_long_texts_are_cut_around_the_place(place: int, before: int) -> None:
    ids = [4 + i % len(WORDS) for i in range(1000)]
    left, right = np.zeros((1000, 3)), np.zeros((1000, 3))
    left[place, 1] = right[place, 2] = 1.0
    (flip,) = read("token-classification", compared(left, right, ids, per_token=True))
    (text,) = flip.texts
    assert (text.before, len(text.ids), text.after) == (before, SHOWN_TOKENS, 872 - before)
    assert (WORDS[place % len(WORDS)], "place") in said(text)


def test_flips_on_the_users_data_come_first() -> None:
    comparison = OutputComparison("logits", Tolerance(1e-5, 0.0), decision="argmax")
    for name, margin in (("shapes", 9.0), ("data", 1.0), ("vocabulary", 5.0), ("data", 3.0)):
        batch = Batch(name, {"input_ids": np.array([IDS])})
        comparison.add(batch, np.array([[margin, 0.0]]), np.array([[0.0, margin]]))
    flips = read("text-classification", comparison.result())
    assert [flip.flip.margin for flip in flips] == [3.0, 1.0, 9.0, 5.0]
