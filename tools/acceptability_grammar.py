"""Generate a small data set of acceptable and unacceptable English sentences, as CoLA has them.

The data set of `mixout-export demo` comes from here; the standard library is all it needs:

    python tools/acceptability_grammar.py OUT_DIR [--seed 0]

It writes `train.tsv` and `eval.tsv` with the columns `sentence` and `label` (1 acceptable,
0 unacceptable). Every template yields minimal pairs: two sentences that differ in the order, the
choice or the form of a few words. Nearly every word occurs in both kinds of sentence, so that
counting words is not enough to tell them apart.

A *frame* is what is left of a sentence when every word is replaced by its word class (`frame_of`):
`The nurses near the park are tired.` has the frame `D N P D N BE ADJ .`. Number, tense and the
choice between words of one class do not make a new frame. No frame occurs in both halves, so
a model can only do well on the evaluation half by carrying a rule over to structures it never saw.
"""

import argparse
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

PAIRS_PER_TEMPLATE = {"train": 15, "eval": 9}

Lexeme = dict[str, str]


def _words(text: str) -> list[Lexeme]:
    return [{"word": word} for word in text.split()]


def _nouns(text: str) -> list[Lexeme]:
    return [{"sg": noun, "pl": noun + "s"} for noun in text.split()]


def _forms(names: str, table: str) -> list[Lexeme]:
    """Read one lexeme per line, its forms in the order of `names`."""
    rows = (line.split() for line in table.strip().splitlines())
    return [dict(zip(names.split(), row, strict=True)) for row in rows]


def _verb(base: str, past: str, participle: str) -> Lexeme:
    """Derive the forms of a verb, whose final consonant is not doubled."""
    stem = base.removesuffix("e")
    if base.endswith("y") and base[-2] not in "aeiou":
        third_person = base[:-1] + "ies"
    else:
        third_person = base + ("es" if base.endswith(("ch", "sh", "ss")) else "s")
    forms = {"base": base, "pl": base, "sg": third_person, "ing": stem + "ing"}
    return forms | {"past": past, "part": participle}


def _regular(text: str) -> list[Lexeme]:
    verbs = []
    for base in text.split():
        stem = base[:-1] + "i" if base.endswith("y") and base[-2] not in "aeiou" else base
        past = stem.removesuffix("e") + "ed"
        verbs.append(_verb(base, past, past))
    return verbs


def _irregular(*verbs: str) -> list[Lexeme]:
    return [_verb(*verb.split()) for verb in verbs]


ADMIRE = _regular("admire praise blame respect like dislike")
GREET = _regular("greet thank invite avoid congratulate contact recognize")

# Nouns and adjectives begin with a consonant, so that "a" fits them all.
LEXICON: dict[str, list[Lexeme]] = {
    "person": _nouns(
        "teacher student doctor nurse lawyer farmer singer painter driver writer tourist guest "
        "manager pilot baker visitor scientist dentist"
    ),
    # Nouns with a gender; "self" is the reflexive that agrees.
    "man": _forms(
        "sg pl self.sg self.pl",
        """
        man men himself themselves
        boy boys himself themselves
        king kings himself themselves
        prince princes himself themselves
        monk monks himself themselves
        woman women herself themselves
        girl girls herself themselves
        queen queens herself themselves
        lady ladies herself themselves
        princess princesses herself themselves
        """,
    ),
    "name": [
        {"sg": name, "self": agreeing, "other": disagreeing}
        for names, agreeing, disagreeing in (
            ("Mary Anna Sarah Emma Laura", "herself", "himself"),
            ("John Peter David Thomas Paul", "himself", "herself"),
        )
        for name in names.split()
    ],
    "thing": _nouns(
        "chair lamp bag clock mirror ring vase basket bicycle carpet guitar camera phone blanket "
        "ladder piano"
    ),
    "topic": _nouns("plan problem reason rule decision secret result rumor"),
    "place": _nouns("garden park kitchen museum hotel village school market theater restaurant"),
    # Verbs of liking, which also go with a reflexive, and other verbs between people.
    "admire": ADMIRE,
    "greet": GREET,
    "trans": ADMIRE + GREET,
    # Verbs that take no object.
    "intrans": _regular("laugh smile cough sneeze wait cry yawn talk")
    + _irregular("sleep slept slept", "kneel knelt knelt"),
    # Verbs that cannot do without an object.
    "handle": _regular("carry repair damage fetch examine inspect replace locate remove"),
    # Verbs whose past tense and participle differ.
    "break": _irregular(
        "break broke broken",
        "steal stole stolen",
        "choose chose chosen",
        "take took taken",
        "draw drew drawn",
    ),
    # Verbs that take "the nurse the lamp", and with topics "tell" but not "explain".
    "give": _regular("offer")
    + _irregular("give gave given", "show showed shown", "send sent sent", "lend lent lent"),
    "tell": _irregular("tell told told", "give gave given", "show showed shown"),
    "explain": _regular("explain mention describe announce reveal"),
    # Verbs that take "that", "whether" or both.
    "think": _regular("believe claim hope") + _irregular("think thought thought"),
    "ask": _regular("ask inquire investigate"),
    "know": _regular("remember discover guess") + _irregular("know knew known"),
    # Verbs that take "to sleep", and verbs that take "sleeping".
    "want": _regular("want decide refuse promise manage hesitate"),
    "enjoy": _regular("enjoy finish deny imagine") + _irregular("keep kept kept"),
    "throw": _forms(
        "base past particle",
        """
        throw threw away
        pick picked up
        put put down
        bring brought back
        give gave back
        """,
    ),
    "adjective": _words("tired hungry polite nervous calm proud happy sad friendly busy careful"),
    "quality": _words("new cheap beautiful heavy dirty small strange"),
    "often": _words("often always never usually sometimes"),
    "past": _words("yesterday today again"),
    "modal": _words("must will should could would"),
    "near": _words("near behind beside"),
    "pronoun": _forms("subject object", "he him\nshe her\nthey them\nwe us"),
    "it": _forms("sg pl", "it them"),
    "be": _forms("sg pl", "is are\nwas were"),
    "was": _forms("sg pl", "was were"),
    "have": _forms("sg pl", "has have"),
    "this": _forms("sg pl", "this these"),
    "one": _forms("sg pl", "one two\na three\nanother several"),
    "every": _forms("sg pl", "every many\neach several\nevery three\neach most"),
}

# How to read a template: [category], or [category2] for a second word of that category, then
# :form (none means the first form). n and m are numbers, singular or plural, drawn for each pair;
# ~n is the opposite of n. {acceptable | unacceptable} is where the two sentences of a pair part.
TEMPLATES = {
    "train": """
        # Subject-verb agreement
        The [person:n] {[be:n] | [be:~n]} [adjective].
        The [person:n] {[be:n] | [be:~n]} [intrans:ing].
        The [person:n] [near] the [place] {[be:n] | [be:~n]} [adjective].
        The [person:n] who [greet:past] the [person2:m] {[be:n] | [be:~n]} [adjective].
        The [thing:n] in the [place] {[be:n] | [be:~n]} very [quality].
        There {[be:n] | [be:~n]} [one:n] [person:n] in the [place].
        Where {[be:n] | [be:~n]} the [thing:n]?
        [name] thinks that the [person:n] {[be:n] | [be:~n]} [intrans:ing].
        When the [person:n] {[was:n] | [was:~n]} [adjective], [name] [intrans:past].
        # Reflexives agree with the subject of their own clause
        The [man:n] [admire:past] {[man:self.n] | [man:self.~n]} yesterday.
        The [man:n] in the [place] [admire:past] {[man:self.n] | [man:self.~n]}.
        The [man:n] will [admire:base] {[man:self.n] | [man:self.~n]}.
        [name] [admire:past] {[name:self] | [name:other]} yesterday.
        [name] said that the [man:n] [admire:past] {[man:self.n] | [man:self.~n]}.
        {The [man:n] [admire:past] [man:self.n] | [man:self.n] [admire:past] the [man:n]}.
        # Word order
        The {[adjective] [person:n] | [person:n] [adjective]} [greet:past] the [person2:m].
        The [person:n] {[be:n] not | not [be:n]} very [adjective].
        [name] {[often] [admire:sg] | [admire:sg] [often]} the [person:m].
        Where {did the [person:n] | the [person:n] did} [handle:base] the [thing:m]?
        What {did the [person:n] | the [person:n] did} [handle:base]?
        Why {[have:n] the [person:n] | the [person:n] [have:n]} [intrans:past]?
        [name] wonders where {the [person:n] [be:n] | [be:n] the [person:n]} [intrans:ing].
        [name] [know:past] why {the [person:n] [was:n] | [was:n] the [person:n]} [adjective].
        The [person:n] {[have:n] not | not [have:n]} [handle:past] the [thing:m].
        The [person:n] {[modal] not | not [modal]} [intrans:base] in the [place].
        The [person:n] [greet:past] the [person2:m] {in the | the in} [place].
        [name] [handle:past] {the very | very the} [quality] [thing:n].
        The [person:n] {[handle:past] the [thing:m] | the [thing:m] [handle:past]} [past].
        The [person:n] [throw:past] {[it:m] [throw:particle] | [throw:particle] [it:m]} [past].
        # Determiners and nouns
        {[this:n] | [this:~n]} [person:n] [greet:past] the [person2:m].
        [name] [handle:past] {[this:n] | [this:~n]} [thing:n] yesterday.
        [every:n] {[person:n] | [person:~n]} in the [place] [intrans:past].
        [name] [greet:past] [every:n] {[person:n] | [person:~n]} in the [place].
        # Questions and relative clauses need a gap, other clauses must not have one
        [name] [know:past] {what | that} the [person:n] [handle:past].
        [name] [know:past] {that | what} the [person:n] [handle:past] the [thing:m].
        [name] [ask:past] {what | whether} the [person:n] had [handle:past].
        [name] [ask:past] {whether | what} the [person:n] had [handle:past] the [thing:m].
        What did the [person:n] [handle:base] {in | the [thing:m] in} the [place]?
        Did the [person:n] [handle:base] {the [thing:m] in | in} the [place]?
        The [thing:n] that [name] [handle:past] {[was:n] | [it:n] [was:n]} [quality].
        [name] found the [thing:n] and [handle:past] {[it:n] yesterday | yesterday}.
        Who did [name] [greet:base] {in | the [person:n] in} the [place]?
        What did [name] {say that | cry because} the [person:n] [handle:past]?
        # What a verb takes
        The [person:n] {[intrans:past] | [greet:past]} in the [place].
        The [person:n] {[greet:past] | [intrans:past]} the [person2:m] in the [place].
        The [person:n] who {[intrans:past] | [greet:past]} [was:n] [adjective].
        The [person:n] did not {[greet:base] | [intrans:base]} [name].
        [name] [want:past] {to [intrans:base] | [intrans:ing]} in the [place].
        [name] will [want:base] {to [handle:base] | [handle:ing]} the [thing:m].
        [name] [enjoy:past] {[handle:ing] | to [handle:base]} the [thing:m].
        The [person:n] {[tell:past] | [explain:past]} the [person2:m] the [topic].
        [name] did not {[tell:base] | [explain:base]} the [person:n] the [topic].
        [name] {[explain:past] the [topic] to | [explain:past] to the [topic]} the [person:n].
        [name] [give:past] the [thing:m] {to the | the} [person:n].
        [name] {[think:past] | [ask:past]} that the [person:n] [was:n] [adjective].
        [name] {[ask:past] | [think:past]} whether the [person:n] [was:n] [adjective].
        # The form a verb takes after an auxiliary
        The [person:n] [modal] {[handle:base] | [handle:past]} the [thing:m].
        [name] [modal] {[intrans:base] | [intrans:ing]} in the [place].
        The [person:n] [have:n] {[break:part] | [break:past]} the [thing:m].
        The [person:n] {[break:past] | [break:part]} the [thing:m] [past].
        Where [have:n] the [person:n] {[break:part] | [break:past]} the [thing:m]?
        [name] [was:sg] {[handle:ing] | [handle:base]} the [thing:m] [past].
        Did the [person:n] {[greet:base] | [greet:past]} the [person2:m]?
        [name] did not {[intrans:base] | [intrans:past]} in the [place].
        The [thing:n] [was:n] {[handle:part] | [handle:base]} by the [person:m].
        [name] [want:past] to {[handle:base] | [handle:past]} the [thing:m].
        # Words that need a negation before them, in a clause that contains them
        {No [person] that the | The [person] that no} [person2:pl] like has ever [intrans:past].
        {Nobody [handle:past] anything | Anybody [handle:past] nothing} in the [place].
        [name] {did not [handle:base] | [handle:past]} any [thing:pl] [past].
        # Case
        {[pronoun:subject] | [pronoun:object]} [greet:past] the [person:n].
        The [person:n] [greet:past] {[pronoun:object] | [pronoun:subject]} in the [place].
        [name] [give:past] {[pronoun:object] | [pronoun:subject]} the [thing:m].
        [name] thinks that {[pronoun:subject] | [pronoun:object]} [handle:past] the [thing:m].
        What did {[pronoun:subject] | [pronoun:object]} [handle:base] yesterday?
        # Paired conjunctions
        [name] [greet:past] {both | either} the [person:n] and the [person2:m].
        [name] [greet:past] {either | both} the [person:n] or the [person2:m].
    """,
    "eval": """
        # Subject-verb agreement
        The [person:n] with the [thing:m] {[be:n] | [be:~n]} often [adjective].
        Why {[be:n] | [be:~n]} the [person:n] [intrans:ing] in the [place]?
        [name] smiled because the [person:n] {[was:n] | [was:~n]} [adjective].
        # Reflexives
        The [man:n] that [name] [greet:past] [admire:past] {[man:self.n] | [man:self.~n]}.
        Did the [man:n] [admire:base] {[man:self.n] | [man:self.~n]}?
        The [man:n] [want:past] to [admire:base] {[man:self.n] | [man:self.~n]}.
        # Word order
        The [person:n] {[be:n] very | very [be:n]} [adjective] today.
        What {[have:n] the [person:n] | the [person:n] [have:n]} [handle:past] in the [place]?
        [name] did not know why {the [person:n] [was:n] | [was:n] the [person:n]} so [adjective].
        [name] {[modal] not | not [modal]} [handle:base] the [thing:m].
        The [person:n] carried the [thing:m] {to the | the to} [place] [past].
        Did [name] [throw:base] {[it:m] [throw:particle] | [throw:particle] [it:m]}?
        # Determiners and nouns
        Did [name] [handle:base] {[this:n] | [this:~n]} [thing:n]?
        [every:n] {[person:n] | [person:~n]} that [name] [greet:past] [intrans:past].
        # Gaps
        Which [thing:n] did the [person:m] [handle:base] {[past] | [it:n] [past]}?
        It was the [thing] that [name] [handle:past] {in | it in} the [place].
        [name] asked {whether | what} the [person:n] [modal] [handle:base] the [thing:m].
        [name] asked {what | whether} the [person:n] [modal] [handle:base].
        # What a verb takes
        The [person] in the [place] who {[intrans:past] | [greet:past]} was [adjective].
        The [person:n] [modal] {[greet:base] | [intrans:base]} [name] tomorrow.
        The [person:n] [have:n] [want:past] {to [handle:base] | [handle:ing]} the [thing:m].
        Did the [person:n] {[tell:base] | [explain:base]} [name] the [topic]?
        # Verb forms
        [modal] the [person:n] {[greet:base] | [greet:past]} the [person2:m]?
        [name] [have:sg] never {[break:part] | [break:past]} the [thing:m].
        [name] and the [person:n] were {[handle:ing] | [handle:base]} the [thing:m].
        The [thing:n] that [was:n] {[handle:past] | [handle:base]} by [name] [was:n] [quality].
        # Negation
        {Nobody who thanked the | The [person] who thanked no} [person2] has ever [intrans:past].
        # Case
        Did {[pronoun:subject] | [pronoun:object]} [greet:base] the [person:n]?
        The [thing:n] that {[pronoun:subject] | [pronoun:object]} [handle:past] [was:n] [quality].
        The [person:n] talked about {[pronoun:object] | [pronoun:subject]} yesterday.
        # Paired conjunctions
        {Both | Either} [name] and [name2] [intrans:past] in the [place].
        {Either | Both} [name] or [name2] [intrans:past] in the [place].
    """,
}

# The word class of every category above, and of the function words that templates spell out.
# "that", "who", "what", "not" and other words not listed stand for themselves.
CLASS_OF_CATEGORY = {
    "N": "person man thing topic place",
    "NAME": "name",
    "V": "trans intrans handle break give tell explain think ask know want enjoy throw",
    "ADJ": "adjective quality",
    "ADV": "often",
    "TIME": "past",
    "MODAL": "modal",
    "P": "near",
    "PRO": "pronoun it",
    "BE": "be",
    "HAVE": "have",
    "D": "this one every",
}
CLASS_OF_WORD = {
    "D": "the no any",
    "P": "in by with about",
    "V": "found said say wonders",
    "DO": "did",
    "HAVE": "had",
    "WHADV": "where why when",
    "INDEF": "nobody anybody nothing anything",
    "TIME": "tomorrow",
}

# Forms that are not of the class of their category.
_CLASS_OF_FORM = {"self": "REFL", "other": "REFL", "particle": "PARTICLE"}

_SLOT = re.compile(r"\[([a-z]+)(\d?)(?::([a-z.~]+))?\]")
_CHOICE = re.compile(r"\{(.+?) \| (.+?)\}")
_TOKEN = re.compile(r"\w+|[^\w\s]")
_OPPOSITE = {"sg": "pl", "pl": "sg"}


@dataclass(frozen=True)
class Row:
    """A labeled sentence and the template that it comes from."""

    sentence: str
    label: int
    template: str


def templates(half: str) -> list[str]:
    """List the templates of a half, "train" or "eval"."""
    lines = (line.strip() for line in TEMPLATES[half].splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def word_classes() -> dict[str, str]:
    """Map every word in lower case to its class; a word in two classes is an error."""
    classes = {word: name for name, words in CLASS_OF_WORD.items() for word in words.split()}
    for name, categories in CLASS_OF_CATEGORY.items():
        for lexeme in (lexeme for category in categories.split() for lexeme in LEXICON[category]):
            for key, form in lexeme.items():
                expected = _CLASS_OF_FORM.get(key.partition(".")[0], name)
                if classes.setdefault(form.lower(), expected) != expected:
                    raise ValueError(f"{form!r} is in the classes {classes[form]} and {expected}")
    return classes


_WORD_CLASSES = word_classes()


def frame_of(sentence: str) -> tuple[str, ...]:
    """Replace every word of a sentence by its word class; that is the frame of the sentence."""
    return tuple(_WORD_CLASSES.get(token, token) for token in _TOKEN.findall(sentence.lower()))


def _pick(rng: Random, count: int) -> int:
    # random() is the one method whose sequence Python promises to keep from version to version.
    return int(rng.random() * count)


def _draw_words(template: str, rng: Random) -> dict[str, Lexeme]:
    """Draw a lexeme for each slot, never the same one twice."""
    words: dict[str, Lexeme] = {}
    for category, index, _ in _SLOT.findall(template):
        if category + index not in words:
            free = [lexeme for lexeme in LEXICON[category] if lexeme not in words.values()]
            words[category + index] = free[_pick(rng, len(free))]
    return words


def _fill(template: str, words: dict[str, Lexeme], numbers: dict[str, str]) -> str:
    def form(slot: re.Match[str]) -> str:
        category, index, name = slot.groups()
        lexeme = words[category + index]
        if name is None:
            return next(iter(lexeme.values()))
        return lexeme[".".join(numbers.get(part, part) for part in name.split("."))]

    sentence = _SLOT.sub(form, template)
    return sentence[0].upper() + sentence[1:]


def minimal_pair(template: str, rng: Random) -> tuple[str, str]:
    """Draw an acceptable sentence and its unacceptable counterpart."""
    words = _draw_words(template, rng)
    numbers = {name: ("sg", "pl")[_pick(rng, 2)] for name in "nm"}
    numbers |= {"~" + name: _OPPOSITE[number] for name, number in numbers.items()}
    acceptable = _fill(_CHOICE.sub(r"\1", template), words, numbers)
    return acceptable, _fill(_CHOICE.sub(r"\2", template), words, numbers)


def generate_half(half: str, rng: Random) -> list[Row]:
    """Draw the rows of a half in a random order, without duplicates and half of them acceptable."""
    rows: dict[str, Row] = {}
    for template in templates(half):
        target = len(rows) + 2 * PAIRS_PER_TEMPLATE[half]
        while len(rows) < target:
            acceptable, unacceptable = minimal_pair(template, rng)
            if acceptable not in rows and unacceptable not in rows:
                rows[acceptable] = Row(acceptable, 1, template)
                rows[unacceptable] = Row(unacceptable, 0, template)
    return sorted(rows.values(), key=lambda _: rng.random())


def generate(seed: int = 0) -> dict[str, list[Row]]:
    """Draw both halves, "train" and "eval"."""
    rng = Random(seed)
    return {half: generate_half(half, rng) for half in TEMPLATES}


def to_tsv(rows: Iterable[Row]) -> bytes:
    """Render rows as the bytes of a TSV file: UTF-8, a header, LF, no quoting."""
    lines = ["sentence\tlabel", *(f"{row.sentence}\t{row.label}" for row in rows)]
    return "".join(line + "\n" for line in lines).encode()


def main(arguments: Sequence[str] | None = None) -> None:
    """Write train.tsv and eval.tsv into a folder."""
    parser = argparse.ArgumentParser(description="Generate the acceptability data set.")
    parser.add_argument("out_dir", type=Path, metavar="OUT_DIR", help="folder for the two files")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws (default: 0)")
    options = parser.parse_args(arguments)
    options.out_dir.mkdir(parents=True, exist_ok=True)
    for half, rows in generate(options.seed).items():
        (options.out_dir / f"{half}.tsv").write_bytes(to_tsv(rows))


if __name__ == "__main__":
    main()
