"""Tiny random checkpoints with a tokenizer, for tests of export and parity."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from matrix.tiny import make_config
from mixout_export.quiet import quiet_libraries

VOCABULARY = 90
POSITIONS = 24
WORDS = ("the", "a", "cat", "dog", "bird", "sees", "hears", "likes", "runs", "sleeps")

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": 0,
}

#: Settings of one architecture.
_OWN: dict[str, dict[str, Any]] = {
    "roberta": {
        "pad_token_id": 1,
        "type_vocab_size": 1,
        "max_position_embeddings": POSITIONS + 2,
    },
    "distilbert": {"hidden_dim": 24},
    "albert": {"embedding_size": 8},
    "llama": {"num_key_value_heads": 1},
}

ARCHITECTURES = ("bert", "roberta", "distilbert", "albert", "gpt2", "llama")


def make_model(
    kind: str, head: str = "ForSequenceClassification", *, seed: int = 0, **settings: Any
) -> PreTrainedModel:
    """Build a tiny model whose weights are large enough for faults to show in the logits."""
    labels = {"num_labels": 3} if "Classification" in head else {}
    config = make_config(kind, **{**_SIZES, **_OWN.get(kind, {}), **labels, **settings})
    with quiet_libraries():
        model = getattr(transformers, type(config).__name__.removesuffix("Config") + head)(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
    return model.eval()  # type: ignore[no-any-return]


def make_tokenizer(pad_token_id: int = 0, *, fixed_length: int | None = None) -> Any:
    """Build a word-level tokenizer; with `fixed_length`, padding and truncation are baked in."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    if pad_token_id == 1:
        special[:2] = ["[UNK]", "[PAD]"]
    vocabulary = {word: index for index, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    if fixed_length is not None:
        tokenizer.enable_padding(length=fixed_length, pad_id=pad_token_id)
        tokenizer.enable_truncation(fixed_length)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def save_checkpoint(model: PreTrainedModel, path: Path, *, tokenizer: bool = True) -> Path:
    """Save a model, and a tokenizer with its padding id, as a Hugging Face folder."""
    with quiet_libraries():
        model.save_pretrained(path)
        if tokenizer:
            pad = model.config.pad_token_id
            make_tokenizer(pad if pad is not None else 0, fixed_length=8).save_pretrained(path)
    return path


def edit_config(path: Path, **entries: Any) -> None:
    """Change entries of a folder's `config.json`."""
    file = path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))
