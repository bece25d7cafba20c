"""Adapters of PEFT: merge one into its base, by PEFT itself."""

import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedModel

from mixout_export.checkpoint.folder import checkpoint_in
from mixout_export.checkpoint.loading import LOADING_ERRORS
from mixout_export.checkpoint.plain import PlainCheckpoint
from mixout_export.errors import ArgumentError, CheckpointError
from mixout_export.files.input_files import InputFiles
from mixout_export.files.json_files import read_json
from mixout_export.files.layout import LAYOUT
from mixout_export.files.sidecar_files import copy_sidecar_files, link_or_copy
from mixout_export.files.tensors import read_tensors
from mixout_export.printable import first_line
from mixout_export.quiet import quiet_libraries

#: PEFT's name of a task → the class with which it loads the base.
_CLASSES = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "FEATURE_EXTRACTION": "AutoModel",
}

#: Ends of the keys under which an adapter holds the head that was trained with it.
_HEADS = ("classifier.weight", "score.weight", "qa_outputs.weight")


def base_of_adapter(path: Path) -> str:
    """Return the name of the base that an adapter's configuration gives; "" if it gives none.

    Raises:
        ArgumentError: The folder holds no adapter.
    """
    if not (path / LAYOUT.adapter_config).exists():
        raise ArgumentError(f"merge-adapter: {path} holds no {LAYOUT.adapter_config}; leave it out")
    name = read_json(path / LAYOUT.adapter_config).get("base_model_name_or_path")
    return name if isinstance(name, str) else ""


@contextmanager
def merged_adapter(path: Path, base: Path | None) -> Iterator[Path]:
    """Yield a temporary folder with the model that an adapter and its base make together.

    Args:
        path: The folder of the adapter.
        base: The folder of its base; None if the weights lie beside the adapter.

    Raises:
        ArgumentError: PEFT is not installed.
        CheckpointError: The two do not fit, or the adapter may be in the weights already.
    """
    if not (path / LAYOUT.adapter_weights).exists():
        raise CheckpointError(f"{path}: holds no {LAYOUT.adapter_weights}; restore it")
    with tempfile.TemporaryDirectory() as work:
        whole = Path(work) / "base"
        whole.mkdir()
        for file in (path if base is None else base).iterdir():
            if file.is_file() and not file.name.startswith(LAYOUT.adapter_prefix):
                link_or_copy(file.resolve(), whole / file.name)
        out = Path(work) / path.resolve().name
        model = _merge(path, checkpoint_in(InputFiles(whole)))
        with quiet_libraries():
            model.save_pretrained(out)
        copy_sidecar_files(path, out)
        copy_sidecar_files(whole, out)
        yield out


def refuse_merged(path: Path, base: Path) -> None:
    """Refuse weights beside an adapter that are not those of its base: they may contain it."""
    ours, theirs = (checkpoint_in(InputFiles(folder)).tensors for folder in (path, base))
    for key in ours.keys() & theirs.keys():
        if not ours[key].same_bytes(theirs[key]):
            raise CheckpointError(
                f"{path}: {key!r} differs from the adapter's base {base}, so the adapter is "
                "probably merged into these weights already; delete the adapter's files"
            )


def _merge(path: Path, whole: PlainCheckpoint) -> PreTrainedModel:
    """Return the base with the adapter merged into its weights."""
    try:
        import peft
    except ImportError as error:
        raise ArgumentError(
            "merge-adapter: needs the package peft; install mixout-export[peft]"
        ) from error
    whole.require_weights()
    settings = read_json(path / LAYOUT.adapter_config)
    entries = read_tensors(path / LAYOUT.adapter_weights)
    model_class = _class_for(whole, settings)
    options: dict[str, Any] = {}
    heads = [entry for entry in entries.values() if entry.key.endswith(_HEADS)]
    if heads and settings.get("task_type") in ("SEQ_CLS", "TOKEN_CLS"):
        options = {"num_labels": heads[-1].shape[0], "ignore_mismatched_sizes": True}
    with quiet_libraries(), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            model, info = model_class.from_pretrained(
                whole.path, dtype="auto", output_loading_info=True, use_safetensors=True, **options
            )
            _refuse_random(path, info["missing_keys"], entries)
            config = peft.PeftConfig.from_pretrained(str(path))
            if not heads:
                config.task_type = None  # else PEFT expects a head in the adapter
            adapted = peft.PeftModel.from_pretrained(model, path, config=config)
            merged = adapted.merge_and_unload()
        except (*LOADING_ERRORS, AttributeError) as error:
            raise CheckpointError(
                f"{path}: PEFT cannot merge this adapter ({first_line(error)})"
            ) from error
    for warning in said:
        reason = str(warning.message).partition("\n")[0]
        if "adapter keys" in reason:
            raise CheckpointError(f"{path}: the adapter does not fit its base ({reason})")
    return merged  # type: ignore[no-any-return]


def _class_for(whole: PlainCheckpoint, settings: dict[str, Any]) -> Any:
    """Return the class of the model that the adapter was trained in."""
    name = _CLASSES.get(str(settings.get("task_type")))
    own = (whole.config.get("architectures") or ["AutoModel"])[0]
    return getattr(transformers, name or own, transformers.AutoModel)


def _refuse_random(path: Path, missing: Iterable[str], adapter: Iterable[str]) -> None:
    """Refuse a head that neither the base nor the adapter has."""
    held = list(adapter)
    for key in sorted(missing):
        if not any(other.endswith(key) for other in held):
            raise CheckpointError(
                f"{path}: neither the adapter nor its base has {key!r}, which would be random; "
                "save the head with the adapter (modules_to_save)"
            )
