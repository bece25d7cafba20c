"""A real checkpoint of 22 M parameters on its way to the servers, each station made once."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from mixout_export.bundling.plan import BundleOptions
from mixout_export.checkpoint.base import BaseOptions
from mixout_export.export.precision import Conversion
from mixout_export.stages.bundle import bundle_onnx
from mixout_export.stages.collapse import collapse_checkpoint
from mixout_export.stages.onnx_export import export_onnx
from mixout_export.stages.prepare import PrepareOptions, prepare_checkpoint
from mixout_export.stages.train import DataOptions, train_checkpoint
from mixout_export.training.options import TrainOptions

#: What the model is called on every server.
NAME = "reviews"

LABELS = ("negative", "positive")

_WORDS = (
    ("awful", "dreadful", "terrible", "boring", "horrible", "poor", "disappointing", "bad"),
    ("wonderful", "delightful", "brilliant", "superb", "charming", "lovely", "excellent", "great"),
)

_THINGS = ("film", "book", "meal", "hotel", "phone", "concert", "teacher", "journey")

SENTENCES = (
    "The film was a delight from the first scene to the last.",
    "I would not recommend this phone: its battery is terrible!",
    "It was neither good nor bad.",
    "naïve café — crème brûlée, 3.75 % & “quotes” 😀",
    "  leading and\ttrailing   space  ",
    "[SEP] is a special token, [MASK] too",
    "素早い茶色の狐がのろまな犬を飛び越える。",
    "pneumonoultramicroscopicsilicovolcanoconiosis " * 3,
    "It is a long sentence that goes on and on and never stops. " * 30,
    "",
)


@dataclass(frozen=True)
class Answer:
    """What a classifier says of a sentence."""

    label: str
    score: float


def _answers(logits: Any) -> list[Answer]:
    values = np.asarray(logits, dtype=np.float64)
    scores = np.exp(values - values.max(-1, keepdims=True))
    scores /= scores.sum(-1, keepdims=True)
    return [Answer(LABELS[row.argmax()], float(row.max())) for row in scores]


def _rows() -> Iterator[str]:
    for label, words in zip(LABELS, _WORDS, strict=True):
        yield from (f"The {thing} was {word}.\t{label}\n" for thing in _THINGS for word in words)


@dataclass(frozen=True)
class Stations:
    """Folders that tests must not change."""

    root: Path
    base: Path

    @cached_property
    def trained(self) -> Path:
        """A few updates are enough to tell praise from blame."""
        options = PrepareOptions(base=BaseOptions(task="text-classification", labels=LABELS))
        prepare_checkpoint(str(self.base), self.root / "prepared", options)
        table = self.root / "train.tsv"
        table.write_text("sentence\tlabel\n" + "".join(_rows()), encoding="utf-8")
        settings = TrainOptions(max_steps=24, lr=5e-4, max_length=512)
        out = self.root / "trained"
        train_checkpoint(self.root / "prepared", out, DataOptions(table), settings)
        return out

    @cached_property
    def collapsed(self) -> Path:
        collapse_checkpoint(self.trained, self.root / "collapsed")
        return self.root / "collapsed"

    @cached_property
    def older(self) -> Path:
        """An earlier version of the model, as ONNX."""
        collapse_checkpoint(self.trained, self.root / "older", interpolate=0.9)
        return export_onnx(self.root / "older", self.root / "older-onnx", verify=False).path

    def graph(self, precision: str = "fp32") -> Path:
        """Return the ONNX folder of a precision."""
        out = self.root / precision
        if not out.is_dir():
            conversion = Conversion(precision)
            export_onnx(self.collapsed, out, conversion=conversion, verify=False)
        return out

    def bundle(self, server: str, *, older: bool = False) -> Path:
        """Return a bundle for a server: the newest model in all precisions, or an older one."""
        out = self.root / f"{server}{'-older' if older else ''}" / NAME
        if not out.is_dir():
            out.parent.mkdir()
            also = [] if older else [self.graph(name) for name in ("fp16", "int8")]
            source = self.older if older else self.graph()
            bundle_onnx(source, out, BundleOptions(server, NAME), also=also)
        return out

    def tokens(self, sentence: str) -> dict[str, Any]:
        """Tokenize as Python does."""
        tokenizer = AutoTokenizer.from_pretrained(self.collapsed)
        return dict(tokenizer(sentence, truncation=True, max_length=512, return_tensors="np"))

    def answers(self) -> list[Answer]:
        """Return what PyTorch says of `SENTENCES`."""
        model = AutoModelForSequenceClassification.from_pretrained(self.collapsed).eval()
        with torch.inference_mode():
            tokens = [self.tokens(sentence) for sentence in SENTENCES]
            given = [{k: torch.from_numpy(v) for k, v in each.items()} for each in tokens]
            return [_answers(model(**each).logits)[0] for each in given]

    def answers_of_graph(self, precision: str) -> list[Answer]:
        """Return what onnxruntime says of `SENTENCES` in Python, with a graph of a precision."""
        session = onnxruntime.InferenceSession(
            self.graph(precision) / "model.onnx", providers=["CPUExecutionProvider"]
        )
        names = [each.name for each in session.get_inputs()]
        tokens = [self.tokens(sentence) for sentence in SENTENCES]
        given = [{name: each[name].astype(np.int64) for name in names} for each in tokens]
        return [_answers(session.run(None, each)[0])[0] for each in given]
