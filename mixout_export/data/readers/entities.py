"""Entities in sequences of tags, and their precision, recall and F1."""

from collections import Counter
from collections.abc import Sequence

#: The letters of IOBES and BILOU, as those of IOBES: L is E (end) and U is S (single).
_LETTERS = {"B": "B", "I": "I", "E": "E", "S": "S", "L": "E", "U": "S"}

#: Type, first word and last word.
Entity = tuple[str, int, int]


def has_scheme(names: Sequence[str]) -> bool:
    """Return whether tags have letters that mark where entities begin: B-PER, I-PER and so on."""
    return any(name[1:2] == "-" and name[0] in _LETTERS for name in names)


def _split(tag: str, *, scheme: bool) -> tuple[str, str]:
    """Return the letter and type of a tag. Without a scheme, each word is an entity."""
    if tag == "O":
        return "O", ""
    if not scheme:
        return "S", tag
    letter, _, kind = tag.partition("-")
    return (_LETTERS[letter], kind) if letter in _LETTERS else ("I", tag)


def _ends(before: tuple[str, str], now: tuple[str, str]) -> bool:
    """Return whether an entity ends between two tags, by the rules of conlleval."""
    if before[0] == "O":
        return False
    return before[0] in ("E", "S") or now[0] in ("B", "S", "O") or before[1] != now[1]


def _starts(before: tuple[str, str], now: tuple[str, str]) -> bool:
    """Return whether an entity starts at the second of two tags, by the rules of conlleval."""
    if now[0] == "O":
        return False
    return now[0] in ("B", "S") or before[0] in ("E", "S", "O") or before[1] != now[1]


def find_entities(tags: Sequence[str], *, scheme: bool = True) -> set[Entity]:
    """Return the entities of a sentence, which has one tag for each word.

    The rules are those of conlleval, which are also seqeval's default: an I- after nothing begins
    an entity. IOB1, IOB2 (BIO), IOBES and BILOU are supported. Without a scheme, each word but "O"
    is an entity.
    """
    found: set[Entity] = set()
    outside = ("O", "")
    before, first = outside, 0
    for place, tag in enumerate([*tags, "O"]):
        now = _split(tag, scheme=scheme)
        if _ends(before, now):
            found.add((before[1], first, place - 1))
        if _starts(before, now):
            first = place
        before = now
    return found


class EntityCounts:
    """Counts the entities of sentences. Only exact entities are right.

    Attributes:
        right: Type → number of entities that were found exactly.
        found: Type → number of predicted entities.
        there: Type → number of entities in the labels.
    """

    def __init__(self) -> None:
        self.right: Counter[str] = Counter()
        self.found: Counter[str] = Counter()
        self.there: Counter[str] = Counter()

    def add(self, expected: Sequence[str], predicted: Sequence[str], *, scheme: bool) -> int:
        """Count a sentence, and return how many entities are missing or wrong."""
        ours, theirs = (find_entities(tags, scheme=scheme) for tags in (predicted, expected))
        for counts, entities in (
            (self.right, ours & theirs),
            (self.found, ours),
            (self.there, theirs),
        ):
            counts.update(kind for kind, _, _ in entities)
        return len(ours ^ theirs)

    def scores(self) -> dict[str, float]:
        """Return precision, recall and F1 over all types together."""
        right, found, there = (sum(c.values()) for c in (self.right, self.found, self.there))
        precision, recall = (right / count if count else 0.0 for count in (found, there))
        f1 = 2 * right / (found + there) if found + there else 0.0
        return {"f1": f1, "precision": precision, "recall": recall}


def entity_scores(
    expected: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], *, scheme: bool = True
) -> dict[str, float]:
    """Return precision, recall and F1 over all sentences. Only exact entities count."""
    counts = EntityCounts()
    for gold, guess in zip(expected, predicted, strict=True):
        counts.add(gold, guess, scheme=scheme)
    return counts.scores()
