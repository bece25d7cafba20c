"""Real comparisons to report on, with names that attack the page, and a reader of pages."""

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from xml.etree.ElementTree import Element

from safetensors.torch import load_file, save_file
from tiny_models import make_model, save_checkpoint
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from mixout_export.quiet import quiet_libraries

SCRIPT = "<script>document.title='owned'</script>"
STYLE = "</style><img/src='https://example.org/x.png'/onerror=alert(1)>"
BRACES = "{{7*7}}{%_raw_%}"
UNICODE = "naïve-عربى-日本語-🙂-\u202eflip"
LABELS = (f"{SCRIPT} no", f"{STYLE} yes & \"maybe\" 'so'", f"{UNICODE} {BRACES}")
WORDS = (SCRIPT, STYLE, BRACES, UNICODE, "]]>", "-->", "&lt;b&gt;", "</textarea>", "<svg/onload=a>")

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")

#: Name of a folder that is a path on every system, and bad HTML.
FOLDER = "a <b>&amp; 'c' \"d\""


def hostile_tokenizer() -> PreTrainedTokenizerFast:
    """Build a tokenizer whose words are attacks."""
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def hostile_checkpoint(folder: Path) -> Path:
    """Save a classifier whose path, labels and words are attacks on a page."""
    path = folder / FOLDER / "reference"
    names = {str(index): label for index, label in enumerate(LABELS)}
    numbers = {label: index for index, label in enumerate(LABELS)}
    size = len(SPECIAL) + len(WORDS)
    model = make_model("bert", id2label=names, label2id=numbers, vocab_size=size)
    save_checkpoint(model, path, tokenizer=False)
    with quiet_libraries():
        hostile_tokenizer().save_pretrained(path)
    return path


def with_swapped_labels(source: Path, out: Path) -> Path:
    """Copy a classifier with the rows of its head in another order, so that decisions differ."""
    shutil.copytree(source, out)
    tensors = load_file(out / "model.safetensors")
    for key in ("classifier.weight", "classifier.bias"):
        tensors[key] = tensors[key].roll(1, 0).clone()
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


def points(shape: Element) -> list[tuple[float, float]]:
    """Return where an element of a picture is: its corners, or its one place."""
    if shape.tag == "path":
        numbers = [float(number) for number in re.findall(r"-?[\d.]+", shape.get("d", ""))]
        return list(zip(numbers[::2], numbers[1::2], strict=True))
    return [(float(shape.get("x", "")), float(shape.get("y", "")))] if "x" in shape.attrib else []


def without_definitions(drawn: Element) -> Element:
    """Return a picture without the shapes that are only used elsewhere."""
    for group in drawn.iter("g"):
        for definitions in group.findall("defs"):
            group.remove(definitions)
    return drawn


class Page(HTMLParser):
    """A page as a browser reads it: its elements, and the text in each."""

    _VOID = frozenset(("meta", "link", "br", "img", "hr", "input"))

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.html = html
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open, self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self._VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open, tag
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and data.strip():
            self.texts.append((self._open[-1], data))

    def names(self) -> set[str]:
        """The elements that there are."""
        return {tag for tag, _ in self.tags}

    def all(self, tag: str) -> list[str]:
        """The text directly in each element of a name."""
        return [" ".join(text.split()) for name, text in self.texts if name == tag]

    @property
    def text(self) -> str:
        """What can be read on the page."""
        hidden = ("style", "title")
        return " ".join(" ".join(text.split()) for name, text in self.texts if name not in hidden)
