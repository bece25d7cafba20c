import itertools
import random

import pytest

from mixout_export.data.readers.entities import (
    Entity,
    entity_scores,
    find_entities,
    has_scheme,
)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O O", set()),
        ("B-PER", {("PER", 0, 0)}),
        ("B-PER I-PER O", {("PER", 0, 1)}),
        ("B-PER B-PER", {("PER", 0, 0), ("PER", 1, 1)}),
        ("B-PER I-LOC", {("PER", 0, 0), ("LOC", 1, 1)}),
        ("O I-PER I-PER", {("PER", 1, 2)}),  # IOB1, and what conlleval makes of a stray I-
        ("I-PER B-PER I-PER", {("PER", 0, 0), ("PER", 1, 2)}),
        ("B-PER I-PER E-PER S-LOC", {("PER", 0, 2), ("LOC", 3, 3)}),
        ("B-PER I-PER L-PER U-LOC", {("PER", 0, 2), ("LOC", 3, 3)}),
        ("U-PER U-PER", {("PER", 0, 0), ("PER", 1, 1)}),
        ("B-PER O I-PER", {("PER", 0, 0), ("PER", 2, 2)}),
        ("B-A-B I-A-B", {("A-B", 0, 1)}),
    ],
)
def test_entities_of_a_sentence(tags: str, expected: set[Entity]) -> None:
    assert find_entities(tags.split()) == expected


def by_definition(tags: list[str]) -> set[Entity]:
    """IOB2 and IOB1 written down otherwise: the longest runs of a type that no B- breaks."""
    found: set[Entity] = set()
    place = 0
    while place < len(tags):
        kind = tags[place][2:]
        if not kind:
            place += 1
            continue
        end = place + 1
        while end < len(tags) and tags[end] == f"I-{kind}":
            end += 1
        found.add((kind, place, end - 1))
        place = end
    return found


def test_every_short_sentence_of_two_types() -> None:
    tags = ["O", "B-X", "I-X", "B-Y", "I-Y"]
    for length in range(1, 6):
        for sentence in itertools.product(tags, repeat=length):
            assert find_entities(sentence) == by_definition(list(sentence)), sentence


def test_bilou_is_iobes_by_other_names() -> None:
    rng = random.Random(0)
    names = ["O", *(f"{letter}-{kind}" for letter in "BIES" for kind in "XY")]
    other = str.maketrans("ES", "LU")
    for _ in range(300):
        sentence = rng.choices(names, k=6)
        bilou = [tag[0].translate(other) + tag[1:] for tag in sentence]
        assert find_entities(bilou) == find_entities(sentence)


def test_scores_count_exact_entities_over_all_sentences() -> None:
    expected = [["B-PER", "I-PER", "O", "B-LOC"], ["B-PER"], ["O"]]
    predicted = [["B-PER", "O", "O", "B-LOC"], ["B-LOC"], ["B-PER"]]
    # Found: PER(0, 0), LOC(3, 3), LOC(0, 0), PER(0, 0); there: PER(0, 1), LOC(3, 3), PER(0, 0).
    scores = entity_scores(expected, predicted)
    assert scores == pytest.approx({"precision": 1 / 4, "recall": 1 / 3, "f1": 2 / 7})


def test_nothing_found_and_nothing_there() -> None:
    nothing = {"f1": 0.0, "precision": 0.0, "recall": 0.0}
    assert entity_scores([["O"]], [["O"]]) == nothing
    assert entity_scores([["B-X"]], [["O"]]) == nothing
    assert entity_scores([["B-X"]], [["B-X"]]) == dict.fromkeys(nothing, 1.0)


def test_without_a_scheme_every_word_but_o_is_an_entity() -> None:
    assert not has_scheme(["NOUN", "VERB", "O"])
    assert has_scheme(["O", "B-X"])
    assert find_entities(["NOUN", "NOUN", "O"], scheme=False) == {("NOUN", 0, 0), ("NOUN", 1, 1)}
    scores = entity_scores([["NOUN", "VERB"]], [["NOUN", "NOUN"]], scheme=False)
    assert scores == {"f1": 0.5, "precision": 0.5, "recall": 0.5}
