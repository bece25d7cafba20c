"""Folders of the tokenizers that people have, each as small as its format allows."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

WORDS = ("the", "a", "cat", "dog", "bird", "sees", "hears", "likes", "good", "bad")
LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORD_PIECES = (*SPECIAL, *WORDS, *LETTERS, *(f"##{letter}" for letter in LETTERS))

_NAMES = dict(zip(("pad", "unk", "cls", "sep", "mask"), SPECIAL, strict=True))


def _config(folder: Path, tokenizer_class: str, **settings: Any) -> None:
    content = {"tokenizer_class": tokenizer_class, **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(content))


def _word_pieces() -> Tokenizer:
    ids = {piece: number for number, piece in enumerate(WORD_PIECES)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return tokenizer


def _fast(tokenizer: Tokenizer, **settings: Any) -> PreTrainedTokenizerFast:
    names = {f"{name}_token": token for name, token in _NAMES.items()}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{**names, **settings})


def word_pieces(folder: Path) -> None:
    """BERT as it is on the hub today."""
    _fast(_word_pieces()).save_pretrained(folder)


def vocab_txt(folder: Path) -> None:
    """BERT as it was for years."""
    (folder / "vocab.txt").write_text("\n".join(WORD_PIECES) + "\n")
    _config(folder, "BertTokenizer", do_lower_case=True)


def added_tokens(folder: Path) -> None:
    """Words of a trade that were added to a tokenizer, one of them special."""
    tokenizer = _fast(_word_pieces())
    tokenizer.add_tokens(["covid", "<url>"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<entity>"]})
    tokenizer.save_pretrained(folder)


def fixed_padding(folder: Path) -> None:
    """A sentence encoder, whose file pads and cuts to one length."""
    tokenizer = _word_pieces()
    tokenizer.enable_padding(length=16, pad_id=0)
    tokenizer.enable_truncation(16)
    _fast(tokenizer).save_pretrained(folder)


def left_padding(folder: Path) -> None:
    """A decoder's: pads on the left, although its file says right, and has a chat template."""
    tokenizer = _word_pieces()
    tokenizer.enable_padding(pad_id=0)
    chat = "{% for m in messages %}{{ m.content }}{% endfor %}"
    _fast(tokenizer, padding_side="left", chat_template=chat).save_pretrained(folder)


def merges_txt(folder: Path) -> None:
    """GPT-2: byte-level BPE in two files, without a padding token."""
    merges = ["t h", "th e", "Ġ the", "g o", "o d", "go od", "Ġ good"]
    pieces = [*bytes_to_unicode().values(), *(merge.replace(" ", "") for merge in merges)]
    ids = {piece: number for number, piece in enumerate([*pieces, "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(ids))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    _config(folder, "GPT2Tokenizer")


def _pieces(folder: Path, name: str, special: tuple[str, ...], *, bpe: bool = False) -> None:
    """Write a SentencePiece model."""
    protocol = pytest.importorskip("sentencepiece.sentencepiece_model_pb2")
    model = protocol.ModelProto()
    model.trainer_spec.model_type = 2 if bpe else 1
    model.trainer_spec.unk_id = special.index("<unk>")
    model.normalizer_spec.name = "identity"
    parts = [token[: end + 1] for token in WORDS for end in range(1, len(token))] if bpe else []
    words = ["▁" + word for word in WORDS]
    for number, piece in enumerate([*special, *dict.fromkeys([*parts, *words, "▁", *LETTERS])]):
        kind = 2 if piece == "<unk>" else 3 if piece in special else 1
        model.pieces.add(piece=piece, score=0.0 if piece in special else -number / 10, type=kind)
    (folder / name).write_bytes(model.SerializeToString())


def deberta_pieces(folder: Path) -> None:
    """DeBERTa-v3: only a SentencePiece model."""
    _pieces(folder, "spm.model", ("[PAD]", "<unk>", "[CLS]", "[SEP]"))
    _config(folder, "DebertaV2Tokenizer")


def xlm_roberta_pieces(folder: Path) -> None:
    """XLM-R: only a SentencePiece model, whose ids are shifted."""
    _pieces(folder, "sentencepiece.bpe.model", ("<unk>", "<s>", "</s>"))
    _config(folder, "XLMRobertaTokenizer")


def t5_pieces(folder: Path) -> None:
    """T5: only a SentencePiece model, and a hundred sentinels."""
    _pieces(folder, "spiece.model", ("<pad>", "</s>", "<unk>"))
    _config(folder, "T5Tokenizer")


def llama_pieces(folder: Path) -> None:
    """Llama 2: a SentencePiece model of BPE, without a padding token."""
    _pieces(folder, "tokenizer.model", ("<unk>", "<s>", "</s>"), bpe=True)
    _config(folder, "LlamaTokenizer", add_bos_token=True)


def written_in_python(folder: Path) -> None:
    """ByT5: bytes, in Python only."""
    _config(folder, "ByT5Tokenizer", extra_ids=0)


#: What can be read everywhere in the end.
PORTABLE: tuple[Callable[[Path], None], ...] = (
    word_pieces,
    vocab_txt,
    added_tokens,
    fixed_padding,
    left_padding,
    merges_txt,
    deberta_pieces,
    xlm_roberta_pieces,
    t5_pieces,
    llama_pieces,
)
