"""Tiny random checkpoints with a small real tokenizer, built from configurations."""

import string
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordPiece
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from matrix import tiny
from mixout_export.quiet import quiet_libraries

POSITIONS = 64
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_WORDS = """
the a an this that these those some every no he she it they we you i him her them himself
herself themselves is are was were has have had do does did not will can may must and or but
because that who which what when where why how in on at by with from to of for as about dog cat
bird boy girl man woman teacher student farmer book letter house garden window runs sleeps sees
hears likes gave read saw sang slept good bad small large old new quickly always never
"""
_CHARACTERS = string.ascii_lowercase + string.digits + string.punctuation
VOCABULARY = (
    *SPECIAL,
    *_CHARACTERS,
    *(f"##{character}" for character in string.ascii_lowercase + string.digits),
    *dict.fromkeys(word for word in _WORDS.split() if len(word) > 1),
)

_COMMON: dict[str, Any] = {
    "vocab_size": len(VOCABULARY),
    "max_position_embeddings": POSITIONS,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}

#: Settings of one architecture.
_OWN: dict[str, dict[str, Any]] = {
    "roberta": {"max_position_embeddings": POSITIONS + 1, "type_vocab_size": 1},
    "albert": {"embedding_size": 16},
    "llama": {"num_key_value_heads": 2},
    "mistral": {"num_key_value_heads": 2},
}

ARCHITECTURES = ("bert", "roberta", "distilbert", "albert", "gpt2", "llama")


def make_model(
    kind: str, head: str = "Model", *, seed: int = 0, **settings: Any
) -> PreTrainedModel:
    """Build a model in which no parameter, bias or scale has a default value."""
    config = tiny.make_config(kind, **{**_COMMON, **_OWN.get(kind, {}), **settings})
    model_class = getattr(transformers, type(config).__name__.removesuffix("Config") + head)
    return tiny.make_model(lambda: model_class(config), seed=seed)


def make_tokenizer(kind: str = "bert") -> PreTrainedTokenizerFast:
    """Build a WordPiece tokenizer that spells any English text."""
    segments = ["token_type_ids"] if kind in ("bert", "albert") else []
    vocabulary = {token: index for index, token in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=POSITIONS,
        model_input_names=["input_ids", *segments, "attention_mask"],
    )


def save_checkpoint(model: PreTrainedModel, path: Path, **options: Any) -> Path:
    """Save a model and a tokenizer as a Hugging Face folder."""
    with quiet_libraries():
        model.save_pretrained(path, **options)
        make_tokenizer(model.config.model_type).save_pretrained(path)
    return path


class TinyCheckpoints:
    """Folders of tiny checkpoints, each built on first use; tests must not change them."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._made: dict[str, Path] = {}

    def folder(self, kind: str, head: str = "Model", **settings: Any) -> Path:
        """Return a checkpoint's folder."""
        name = "-".join([kind, head, *(f"{k}={v}" for k, v in sorted(settings.items()))])
        if name not in self._made:
            path = self._root / str(len(self._made)) / kind
            self._made[name] = save_checkpoint(make_model(kind, head, **settings), path)
        return self._made[name]

    def base(self, kind: str = "bert") -> Path:
        """Return a headless base."""
        return self.folder(kind)

    def classifier(self, kind: str = "bert", labels: int = 3) -> Path:
        """Return a sequence classifier."""
        return self.folder(kind, "ForSequenceClassification", num_labels=labels)
