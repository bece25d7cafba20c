"""Save models to folders."""

import logging
import os
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mixout_export.checkpoint.keys import anchor_key
from mixout_export.checkpoint.mixout_metadata import MixedModule, MixoutMetadata
from mixout_export.checkpoint.model_state import plain_state
from mixout_export.checkpoint.plain import PlainCheckpoint
from mixout_export.checkpoint.tokenizer_file import record_reading
from mixout_export.checkpoint.torch_tensors import TensorInMemory
from mixout_export.checkpoint.vocabulary import require_rows, vocabulary_rows
from mixout_export.config import MixoutConfig
from mixout_export.errors import ArgumentError, CheckpointError
from mixout_export.files.input_files import InputFiles
from mixout_export.files.json_files import read_json, write_json
from mixout_export.files.layout import LAYOUT, is_tokenizer_file
from mixout_export.files.output import output_folder
from mixout_export.files.sidecar_files import copy_sidecar_files, link_or_copy
from mixout_export.files.tensors import TensorEntry, TensorSource, read_tensors, write_tensors
from mixout_export.files.weight_files import find_weights
from mixout_export.files.writing import ANCHOR_SHARD, finish_anchors, shards_of
from mixout_export.files.writing import SHARD_SIZE as _SHARD_SIZE
from mixout_export.layers import MixoutLayer
from mixout_export.quiet import quiet_libraries
from mixout_export.surgery.injection import ORIGIN_ATTRIBUTE, mixout_layers
from mixout_export.surgery.key_names import disk_keys
from mixout_export.surgery.selection import transformers_models
from mixout_export.tasks import known_task, own_task_name

logger = logging.getLogger(__name__)


@contextmanager
def _disk_errors(directory: Path) -> Iterator[None]:
    """Raise the `OSError` that safetensors has wrapped in its own error."""
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        code = int(number[1])
        raise OSError(code, os.strerror(code), str(directory)) from error


def save_without_record(
    model: PreTrainedModel,
    directory: Path,
    state: Mapping[str, Tensor],
    *,
    shard_size: int | str | None = None,
) -> None:
    """Let `save_pretrained` write tensors, and remove the record of mixout from `config.json`."""
    with quiet_libraries(), _disk_errors(directory):
        model.save_pretrained(
            directory, state_dict=dict(state), max_shard_size=shard_size or _SHARD_SIZE
        )
    config = read_json(directory / LAYOUT.config)
    config.pop("mixout", None)
    write_json(directory / LAYOUT.config, config)


def write_weights(model: PreTrainedModel, directory: Path) -> dict[str, TensorEntry]:
    """Write `config.json` and the weights under the names that `save_pretrained` gives them.

    Anchors and the record of mixout are left out. Return key on disk → where the tensor lies.
    """
    save_without_record(model, directory, plain_state(model))
    files = find_weights(InputFiles(directory)).files
    for file in files:
        file.chmod((directory / LAYOUT.config).stat().st_mode)  # safetensors writes mode 0600
    return {key: entry for file in files for key, entry in read_tensors(file).items()}


def write_anchors(
    directory: Path, tensors: Sequence[TensorSource], *, limit: int = ANCHOR_SHARD
) -> str:
    """Write the pretrained values, immutable, in shards above 5 GB; return their SHA-256."""
    files = shards_of(directory, LAYOUT.pretrained, tensors, limit=limit)
    digests = {file.path.name: write_tensors(file.path, file.tensors) for file in files}
    return finish_anchors(directory, files, digests)


def mixed_modules(
    kinds: Mapping[str, str], keys: Mapping[str, str], entries: Container[str]
) -> tuple[MixedModule, ...]:
    """Return mixed modules with their keys on disk.

    Args:
        kinds: Module name → "Linear", "Conv1D" or "Embedding".
        keys: State-dict key → key on disk.
        entries: The keys on disk. A weight without a key of its own there is an error.
    """
    modules = []
    for name, kind in kinds.items():
        key = keys.get(f"{name}.weight")
        if key is None or key not in entries:
            raise CheckpointError(
                f"module {name!r}: its weight is stored on disk in another form, so it cannot be "
                "anchored; prepare the checkpoint that it came from, or leave the module out with "
                "--exclude-modules"
            )
        modules.append(MixedModule(name, kind, key, anchor_key(key)))
    return tuple(modules)


def _model_to_save(model: nn.Module) -> tuple[PreTrainedModel, str]:
    """Return the transformers model with mixout that a module is or holds, and its name in it."""
    inside = transformers_models(model)
    if not inside:
        raise ArgumentError(
            f"model: got {type(model).__name__}, expected a transformers model or a module around "
            "one; torch.save(model.state_dict()) keeps the anchors of any module"
        )
    found = {n: m for n, m in inside.items() if mixout_layers(m)}
    if not found:
        raise ArgumentError("model: holds no mixout layer; inject_mixout(model) first")
    if len(found) > 1:
        raise ArgumentError(
            f"model: {type(model).__name__} holds several transformers models with mixout, "
            f"{', '.join(found)}; save each of them to a folder of its own"
        )
    ((name, inner),) = found.items()
    return inner, name


def _refuse_moved(layers: Mapping[str, MixoutLayer]) -> None:
    """Refuse anchors that are no longer the pretrained weights, which nobody else has."""
    moved = [name for name, layer in layers.items() if layer.anchor_moved]
    if moved:
        raise CheckpointError(
            f"module {moved[0]!r}: its anchor has moved away from the pretrained weights, which a "
            "mixout checkpoint must hold; prepare the model and begin with load_mixout, whose "
            "folder keeps them"
        )


def _report_unsaved(model: nn.Module, inner: PreTrainedModel, name: str) -> None:
    """Say which parameters around the saved model are not in the folder."""
    saved = {id(parameter) for parameter in inner.parameters()}
    others = [n for n, parameter in model.named_parameters() if id(parameter) not in saved]
    if others:
        logger.warning(
            "save_mixout saves %r, the transformers model in %s; %d parameters outside it are not "
            "saved, for example %s; save those with torch.save",
            name,
            type(model).__name__,
            len(others),
            others[0],
        )


def _report_missing(
    model: PreTrainedModel, directory: Path, path: Path, origin: PlainCheckpoint | None
) -> None:
    """Say what later steps will miss in a folder that was written."""
    if origin is None or not origin.pretrained_paths:
        logger.warning(
            "%s: holds the pretrained weights of the mixed layers only, so train --decay-toward "
            "pretrained and collapse --interpolate are not possible with it; if you need them, run "
            "prepare and begin with load_mixout",
            path,
        )
    rows = vocabulary_rows(model)
    if rows is None:
        return
    if not any(is_tokenizer_file(file.name) for file in directory.iterdir()):
        logger.warning(
            "%s: holds no tokenizer, which train, predict and bundle need; give "
            "save_mixout(…, tokenizer=tokenizer)",
            path,
        )


def _report_old_tokenizer(model: PreTrainedModel, path: Path, origin: PlainCheckpoint) -> None:
    """Say if a tokenizer was copied that is older than the rows of the embedding."""
    rows, before = vocabulary_rows(model), origin.config.get("vocab_size")
    if rows is not None and isinstance(before, int) and rows != before:
        logger.warning(
            "%s: has the tokenizer of %s, whose model has %d rows in its embedding, not %d; give "
            "save_mixout(…, tokenizer=tokenizer)",
            path,
            origin.path,
            before,
            rows,
        )


def _record_length(directory: Path, metadata: MixoutMetadata, length: int) -> None:
    task = known_task(metadata.task)
    limits_others = task is not None and task.limits_others
    if not record_reading(directory, length, limits_others=limits_others):
        raise ArgumentError(
            "max_length: there is no tokenizer to record it with; give "
            "save_mixout(…, tokenizer=tokenizer), or leave max_length out"
        )


def save_mixout(
    model: nn.Module,
    path: Path | str,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_length: int | None = None,
    overwrite: bool = False,
) -> None:
    """Save a model with mixout as a mixout checkpoint.

    Anchors that came from a checkpoint are linked to its file, which is never rewritten. A warning
    says what later steps will miss in the folder.

    Args:
        model: A transformers model with mixout layers, or a module around one, of which the
            transformers model is saved.
        path: The folder, which appears complete or not at all.
        tokenizer: The tokenizer to save with it; None copies that of the folder that the model was
            loaded from with `load_mixout`.
        max_length: Longest sequence, in tokens, that the model was trained on. It is recorded with
            the tokenizer, and commands then cut texts at the same place. None leaves what the
            tokenizer records.
        overwrite: Whether a non-empty folder may be replaced.

    Raises:
        ArgumentError: There is no transformers model with mixout layers, or more than one; or
            there is no tokenizer to record `max_length` with, or it is not positive.
        CheckpointError: The tokenizer gives ids that the model has no row for, or the anchors have
            moved (`MaskSchedule`) and no folder has the pretrained weights.
        OutputError: The folder cannot be written.
    """
    path = Path(path)
    if max_length is not None and max_length < 1:
        raise ArgumentError(f"max_length: got {max_length}, expected at least 1")
    inner, name = _model_to_save(model)
    origin: PlainCheckpoint | None = getattr(inner, ORIGIN_ATTRIBUTE, None)
    if tokenizer is not None:
        require_rows(path, tokenizer, vocabulary_rows(inner))
    with output_folder(path, overwrite=overwrite) as out:
        if tokenizer is not None:
            tokenizer.save_pretrained(out.partial)
        metadata = write_mixout(inner, out.partial, origin=origin)
        if max_length is not None:
            _record_length(out.partial, metadata, max_length)
        _report_missing(inner, out.partial, path, origin)
    if origin is not None and tokenizer is None:
        _report_old_tokenizer(inner, path, origin)
    _report_unsaved(model, inner, name)


def write_mixout(
    model: PreTrainedModel,
    directory: Path,
    *,
    origin: PlainCheckpoint | None,
    metadata: MixoutMetadata | None = None,
) -> MixoutMetadata:
    """Write a mixout checkpoint's files into a directory that exists; return its metadata.

    Args:
        model: A transformers model with mixout layers.
        directory: Where to write.
        origin: The checkpoint that the model was loaded from, whose anchors are kept.
        metadata: The metadata to write; None takes the origin's, with the layers' mix probability.
    """
    layers = mixout_layers(model)
    entries = write_weights(model, directory)
    first = next(iter(layers.values()))
    if metadata is None and origin is not None and origin.metadata is not None:
        metadata = origin.metadata.with_p(first.p)
    if origin is not None and metadata is not None and origin.pretrained_paths:
        index = origin.pretrained.index
        for file in [*origin.pretrained_paths, *([index] if index is not None else [])]:
            link_or_copy(file, directory / file.name)
        still = tuple(module for module in metadata.modules if module.name in layers)
        metadata = replace(metadata, modules=still)
    else:
        _refuse_moved(layers)
        kinds = {name: layer.plain_class.__name__ for name, layer in layers.items()}
        modules = mixed_modules(kinds, disk_keys(model), entries)
        anchors = [
            TensorInMemory(m.pretrained_key, layers[m.name].pretrained_weight) for m in modules
        ]
        digest = write_anchors(directory, anchors)
        if metadata is None:
            config = read_json(directory / LAYOUT.config)
            record = getattr(model.config, "mixout", {})
            mixed = MixoutConfig(
                p=first.p,
                granularity=first.granularity,  # type: ignore[arg-type]
                target_modules=record.get("target_modules", "all-linear"),
                exclude_modules=record.get("exclude_modules"),
            )
            metadata = MixoutMetadata(mixed, modules, task=own_task_name(config))
        metadata = replace(
            metadata, modules=modules, pretrained_sha256=digest, pretrained_xxh3=None
        )
    metadata.write(directory / LAYOUT.mixout_config)
    if origin is not None:
        copy_sidecar_files(origin.path, directory)
    return metadata
