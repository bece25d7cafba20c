"""Tiny random checkpoints with a small real tokenizer, built from configurations."""

import string
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordPiece
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerFast

from mixout_export.quiet import quiet_libraries

HIDDEN = 32
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
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}

#: Model type → prefix of the class names, and settings of its own.
_KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", {}),
    "roberta": ("Roberta", {"max_position_embeddings": POSITIONS + 1, "type_vocab_size": 1}),
    "distilbert": ("DistilBert", {"dim": HIDDEN, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}),
    "albert": ("Albert", {"embedding_size": 16}),
    "gpt2": ("GPT2", {"n_embd": HIDDEN, "n_layer": 2, "n_head": 4, "n_positions": POSITIONS}),
    "llama": ("Llama", {"num_key_value_heads": 2}),
}

ARCHITECTURES = tuple(_KINDS)

# for what only they have
_KINDS["mpnet"] = ("MPNet", {})
_KINDS["mistral"] = ("Mistral", {"num_key_value_heads": 2})
_KINDS["gpt_neo"] = ("GPTNeo", {})
_KINDS["bart"] = (
    "Bart",
    {"d_model": HIDDEN, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48},
)


def make_config(kind: str, **settings: Any) -> Any:
    _, own = _KINDS[kind]
    with quiet_libraries():
        return AutoConfig.for_model(kind, **{**_COMMON, **own, **settings})


def make_model(
    kind: str, head: str = "Model", *, seed: int = 0, **settings: Any
) -> PreTrainedModel:
    """Build a model in which no parameter, bias or scale has a default value."""
    with quiet_libraries(), torch.random.fork_rng():
        torch.manual_seed(seed)  # or the weights would depend on which tests ran before
        model = getattr(transformers, _KINDS[kind][0] + head)(make_config(kind, **settings))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.empty_like(parameter).normal_(0.0, 0.1, generator=generator))
    return model.eval()


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
