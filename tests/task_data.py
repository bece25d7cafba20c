"""Small generated data for every task, each with something that can be learned."""

import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixout_export.stages.train import DataOptions

PERSONS = ("boy", "girl", "man", "woman", "teacher", "student", "farmer")
ANIMALS = ("dog", "cat", "bird")
PLACES = ("house", "garden", "window")
ADJECTIVES = ("good", "bad", "small", "large", "old", "new")
VERBS = ("sees", "hears", "likes", "gave", "read")
TAGS = ("O", "B-PER", "I-PER", "B-LOC")

Row = dict[str, Any]


def tagged(rng: random.Random) -> Row:
    """Persons are entities, with the adjective before them; places are others; animals none."""
    words, tags = [], []
    for _ in range(rng.randint(1, 3)):
        words += ["the"]
        tags += ["O"]
        adjective = rng.random() < 0.5
        noun = rng.choice((*PERSONS, *PLACES, *ANIMALS))
        if adjective:
            words.append(rng.choice(ADJECTIVES))
            tags.append("B-PER" if noun in PERSONS else "O")
        words.append(noun)
        if noun in PERSONS:
            tags.append("I-PER" if adjective else "B-PER")
        else:
            tags.append("B-LOC" if noun in PLACES else "O")
        words.append(rng.choice(VERBS))
        tags.append("O")
    return {"tokens": words, "ner_tags": tags}


def question(rng: random.Random, *, filler: int = 0, unanswerable: bool = False) -> Row:
    """ "who" asks for the person, "what" for the animal, of which there may be none."""
    asked = rng.choice(("who", "what"))
    person, animal = rng.choice(PERSONS), rng.choice(ANIMALS)
    none = unanswerable and rng.random() < 0.4
    if none and asked == "who":
        person = rng.choice(PLACES)
    if none and asked == "what":
        animal = rng.choice(PLACES)
    body = f"the {person} {rng.choice(VERBS)} the {rng.choice(ADJECTIVES)} {animal}"
    before, after = (" ".join(rng.choices(ADJECTIVES, k=rng.randint(0, filler))) for _ in "12")
    context = " ".join(part for part in (before, body, after) if part)
    text = person if asked == "who" else animal
    answers: Row = {"text": [], "answer_start": []}
    if not none:
        answers = {"text": [text], "answer_start": [context.index(text)]}
    return {"question": asked, "context": context, "answers": answers}


def choice(rng: random.Random) -> Row:
    """The sentence with an animal in it is the right one."""
    right = rng.randrange(3)
    made: Row = {"sent1": "what is it", "label": right}
    for place in range(3):
        noun = rng.choice(ANIMALS if place == right else PERSONS)
        words = rng.choices(ADJECTIVES, k=rng.randint(0, 4))
        made[f"ending{place}"] = " ".join(["the", *words, noun])
    return made


def labeled(rng: random.Random) -> Row:
    """Which kinds of noun are in it."""
    kinds = {"person": PERSONS, "animal": ANIMALS, "place": PLACES}
    there = [name for name in kinds if rng.random() < 0.5]
    words = [*rng.choices(ADJECTIVES, k=rng.randint(1, 4)), *(rng.choice(kinds[n]) for n in there)]
    rng.shuffle(words)
    return {"text": " ".join(words), "labels": there}


def text(rng: random.Random) -> Row:
    """The noun says which verb follows, and the verb which adjective: half of all is certain."""
    words = []
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(PERSONS))
        verb = VERBS[place % len(VERBS)]
        words += ["the", PERSONS[place], verb, "the", ADJECTIVES[place % len(VERBS)], "dog"]
    return {"text": " ".join(words)}


@dataclass(frozen=True)
class Kind:
    """A task's generated data.

    Attributes:
        task: Name of the task.
        make: Makes a row.
        labels: Label names.
        options: Arguments of `make`.
    """

    task: str
    make: Any
    labels: tuple[str, ...] | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def rows(self, count: int, *, seed: int) -> list[Row]:
        rng = random.Random(seed)
        return [self.make(rng, **self.options) for _ in range(count)]


KINDS = {
    kind.task: kind
    for kind in (
        Kind("multi-label", labeled, ("person", "animal", "place")),
        Kind("token-classification", tagged, TAGS),
        Kind("question-answering", question, options={"filler": 4}),
        Kind("multiple-choice", choice),
        Kind("masked-lm", text),
        Kind("causal-lm", text),
    )
}


def write_jsonl(path: Path, rows: list[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def task_data(root: Path, task: str, train: int = 256, dev: int = 64) -> DataOptions:
    """Write a task's data and return where they lie."""
    kind = KINDS[task]
    return DataOptions(
        write_jsonl(root / f"train-{train}.jsonl", kind.rows(train, seed=0)),
        write_jsonl(root / f"dev-{dev}.jsonl", kind.rows(dev, seed=1)),
    )
