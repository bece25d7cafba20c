import os
import subprocess
import sys
from collections import Counter
from importlib.resources import files
from pathlib import Path

import acceptability_grammar as grammar
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

SCRIPT = Path(grammar.__file__)
HALVES = ("train", "eval")

# What stays in a skeleton; the forms of one word, and words of one kind, count as one.
FUNCTION_WORDS = {
    **dict.fromkeys(("is", "are", "was", "were"), "be"),
    **dict.fromkeys(("has", "have", "had"), "have"),
    **dict.fromkeys(("must", "will", "should", "could", "would"), "will"),
    **dict.fromkeys(("he", "him", "she", "her", "we", "us", "they", "them", "it"), "he"),
    **dict.fromkeys(("himself", "herself", "themselves"), "himself"),
    **dict.fromkeys(("the", "a", "this", "these", "another", "two", "three", "several"), "the"),
    **dict.fromkeys(("every", "each", "many", "most", "one", "no", "any"), "the"),
    **dict.fromkeys(("near", "behind", "beside", "in", "with", "by", "about"), "in"),
    **dict.fromkeys(("yesterday", "today", "again", "tomorrow"), "today"),
    **dict.fromkeys(("often", "always", "never", "usually", "sometimes"), "often"),
    **dict.fromkeys(("away", "up", "down", "back"), "up"),
}


OTHER_WORDS = (
    "did not to who what which that whether where why when because there ever very so both either "
    "and or nobody anybody nothing anything"
)


def skeleton(sentence: str) -> str:
    """Blank out the content words of a sentence, without the tables of the generator."""
    spaced = sentence.lower().replace(".", " .").replace("?", " ?").replace(",", " ,")
    kept = FUNCTION_WORDS | {word: word for word in (*OTHER_WORDS.split(), ".", "?", ",")}
    return " ".join(kept.get(word, "_") for word in spaced.split())


def test_a_skeleton_blanks_content_words() -> None:
    assert skeleton("The nurses near this park are tired?") == "the _ in the _ be _ ?"


def shipped(half: str) -> bytes:
    return files("mixout_export").joinpath("demo_data", f"{half}.tsv").read_bytes()


def rows(half: str) -> list[tuple[str, str]]:
    _, *lines = shipped(half).decode().splitlines()
    pairs = (line.split("\t") for line in lines)
    return [(sentence, label) for sentence, label in pairs]


@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_the_script_regenerates_the_shipped_files(tmp_path: Path, hash_seed: str) -> None:
    subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path)],
        check=True,
        env=os.environ | {"PYTHONHASHSEED": hash_seed},
    )
    assert {path.name for path in tmp_path.iterdir()} == {f"{half}.tsv" for half in HALVES}
    for half in HALVES:
        assert (tmp_path / f"{half}.tsv").read_bytes() == shipped(half)


def test_another_seed_gives_other_sentences(tmp_path: Path) -> None:
    grammar.main([str(tmp_path / "new"), "--seed", "1"])
    assert (tmp_path / "new" / "train.tsv").read_bytes() != shipped("train")


@pytest.mark.parametrize("half", HALVES)
def test_the_format_is_plain(half: str) -> None:
    text = shipped(half).decode("utf-8")
    assert text.startswith("sentence\tlabel\n")
    assert text.endswith("\n")
    assert not set('"\r\ufeff') & set(text)
    for line in text.splitlines()[1:]:
        sentence, label = line.split("\t")
        assert label in ("0", "1")
        assert sentence == sentence.strip()
        assert sentence[0].isupper()
        assert sentence[-1] in ".?"
        assert not set("[]{}|~") & set(sentence)


def test_there_are_enough_rows() -> None:
    assert sum(len(rows(half)) for half in HALVES) >= 1000
    assert len(rows("eval")) >= 500


@pytest.mark.parametrize("half", HALVES)
def test_the_labels_are_balanced(half: str) -> None:
    counts = Counter(label for _, label in rows(half))
    assert abs(counts["1"] / counts.total() - 0.5) <= 0.02


def test_no_sentence_occurs_twice() -> None:
    sentences = [sentence.lower() for half in HALVES for sentence, _ in rows(half)]
    assert len(set(sentences)) == len(sentences)


def test_the_halves_share_no_frame() -> None:
    train, evaluation = (
        {grammar.frame_of(sentence) for sentence, _ in rows(half)} for half in HALVES
    )
    assert not train & evaluation


def test_the_halves_share_no_skeleton() -> None:
    train, evaluation = ({skeleton(sentence) for sentence, _ in rows(half)} for half in HALVES)
    assert not train & evaluation


def test_no_seed_shares_a_frame() -> None:
    for seed in range(1, 4):
        train, evaluation = (
            {grammar.frame_of(row.sentence) for row in half}
            for half in grammar.generate(seed).values()
        )
        assert not train & evaluation


def test_a_frame_ignores_the_choice_of_words() -> None:
    frame = grammar.frame_of("The nurses near the park are tired.")
    assert frame == ("D", "N", "P", "D", "N", "BE", "ADJ", ".")
    assert frame == grammar.frame_of("A king beside these pianos was polite.")
    assert frame != grammar.frame_of("The nurses are tired near the park.")


def test_no_content_word_is_left_in_a_frame() -> None:
    frames = {grammar.frame_of(sentence) for half in HALVES for sentence, _ in rows(half)}
    literal = {item for frame in frames for item in frame if item.islower()}
    assert literal <= set(OTHER_WORDS.split())


def test_a_word_in_two_classes_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(grammar.LEXICON, "adjective", [{"word": "nurse"}])
    with pytest.raises(ValueError, match="'nurse' is in the classes N and ADJ"):
        grammar.word_classes()


def test_every_template_gives_as_many_of_each_label() -> None:
    for half, generated in grammar.generate().items():
        counts = Counter((row.template, row.label) for row in generated)
        assert counts.keys() == {(t, label) for t in grammar.templates(half) for label in (0, 1)}
        assert set(counts.values()) == {grammar.PAIRS_PER_TEMPLATE[half]}


def test_counting_words_is_not_enough() -> None:
    vectorizer = CountVectorizer(token_pattern=r"\w+")
    train, evaluation = rows("train"), rows("eval")
    model = LogisticRegression(max_iter=1000)
    model.fit(vectorizer.fit_transform(s for s, _ in train), [label for _, label in train])
    score = model.score(
        vectorizer.transform(s for s, _ in evaluation), [label for _, label in evaluation]
    )
    assert score < 0.65


def test_the_readme_states_the_counts() -> None:
    readme = files("mixout_export").joinpath("demo_data", "README.md").read_text("utf-8")
    for half in HALVES:
        counts = Counter(label for _, label in rows(half))
        row = f"| `{half}.tsv` | {counts.total()} | {counts['1']} | {counts['0']} |"
        assert row in readme
