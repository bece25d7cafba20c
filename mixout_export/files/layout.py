"""Names of the files that this package reads and writes. No other module knows them."""

from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import PurePath


@dataclass(frozen=True)
class Layout:
    """File names of Hugging Face, mixout and ONNX folders, and of studies."""

    config: str = "config.json"
    weights: str = "model.safetensors"
    weights_index: str = "model.safetensors.index.json"
    pickle_weights: str = "pytorch_model.bin"
    pickle_index: str = "pytorch_model.bin.index.json"
    adapter_config: str = "adapter_config.json"
    adapter_weights: str = "adapter_model.safetensors"
    adapter_prefix: str = "adapter_"
    generation_config: str = "generation_config.json"
    mixout_config: str = "mixout_config.json"
    pretrained: str = "pretrained.safetensors"
    pretrained_index: str = "pretrained.safetensors.index.json"
    onnx: str = "model.onnx"
    onnx_cached: str = "model_with_past.onnx"
    card: str = "README.md"
    metrics: str = "metrics.jsonl"
    curves: str = "curves.png"
    training: str = "training.json"
    manifest: str = "manifest.json"
    signature: str = "model.sig"
    bom: str = "bom.cdx.json"
    plan: str = "plan.toml"
    runs: str = "runs.jsonl"
    summary: str = "summary.json"
    report: str = "report.html"
    pictures: str = "pictures"
    work: str = "work"
    checkpoints: str = "checkpoints"
    partial_suffix: str = ".partial"
    previous_suffix: str = ".previous"
    pretrained_prefix: str = "pretrained_"


LAYOUT = Layout()

#: Files of a tokenizer. They are copied unchanged from folder to folder, as are those of an image
#: processor.
TOKENIZER_PATTERNS = (
    "tokenizer*",
    "*vocab*",
    "merges*",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.model",  # SentencePiece: spiece.model, spm.model, tokenizer.model and others
    "*.spm",
    "*.tiktoken",
    "*.tokenizer",
    "tekken.json",
    "bpe.codes",
    "dict.txt",
    "emoji.json",
    "byte_maps.json",
    "word_shape.json",
    "word_pronunciation.json",
    "chat_template*",
)
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")

#: What `tokenizer_config.json` and graphs call the longest sequence, in tokens, of the training.
TRAINED_MAX_LENGTH = "trained_max_length"
#: What `tokenizer_config.json` calls the tokens that windows of a long context shared in training.
TRAINED_DOC_STRIDE = "trained_doc_stride"


def is_tokenizer_file(name: str) -> bool:
    """Tell whether a file of that name belongs to a tokenizer."""
    base = PurePath(name).name
    return any(fnmatch(base, pattern) for pattern in TOKENIZER_PATTERNS)


def is_preprocessor_file(name: str) -> bool:
    """Tell whether a file of that name belongs to a tokenizer or an image processor."""
    return is_tokenizer_file(name) or PurePath(name).name in PROCESSOR_FILES
