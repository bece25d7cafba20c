"""Load models from folders and save them."""

import logging
import os
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Size, Tensor, nn
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from mixout_export.checkpoint.folder import (
    MixoutCheckpoint,
    PlainCheckpoint,
    anchor_key,
    is_anchor,
    open_checkpoint,
    own_task_name,
    weight_key,
)
from mixout_export.checkpoint.interface import ModelInterface
from mixout_export.checkpoint.mixout_metadata import MixedModule, MixoutMetadata
from mixout_export.checkpoint.model_inputs import smallest_batch
from mixout_export.checkpoint.vocabulary import require_pad_row, require_rows, vocabulary_rows
from mixout_export.config import MixoutConfig
from mixout_export.errors import ArgumentError, CheckpointError
from mixout_export.files.input_files import InputFiles
from mixout_export.files.json_files import read_json, write_json
from mixout_export.files.layout import LAYOUT, is_tokenizer_file
from mixout_export.files.output import output_folder
from mixout_export.files.sidecar_files import copy_sidecar_files, link_or_copy
from mixout_export.files.tensors import (
    TensorEntry,
    TensorSource,
    read_tensors,
    write_tensors,
)
from mixout_export.files.weight_files import find_weights
from mixout_export.files.writing import ANCHOR_SHARD, finish_anchors, shards_of
from mixout_export.files.writing import SHARD_SIZE as _SHARD_SIZE
from mixout_export.layers import MixoutLayer
from mixout_export.printable import first_line
from mixout_export.quiet import quiet_libraries
from mixout_export.surgery.dropout import set_module_dropout
from mixout_export.surgery.injection import ORIGIN_ATTRIBUTE, attach_mixout, mixout_layers
from mixout_export.surgery.key_names import disk_keys
from mixout_export.surgery.selection import transformers_models

logger = logging.getLogger(__name__)

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

#: Errors that transformers raises if a folder does not hold what it should.
LOADING_ERRORS = (
    ValueError,
    KeyError,
    OSError,
    RuntimeError,
    ImportError,
    TypeError,
    StrictDataclassError,
)


def tensor_of(entry: TensorEntry) -> Tensor:
    """Read one tensor into memory of its own."""
    if entry.dtype not in _DTYPES:
        raise CheckpointError(
            f"{entry.file}: {entry.key!r} has the unsupported dtype {entry.dtype}"
        )
    value = torch.empty(entry.shape, dtype=_DTYPES[entry.dtype])
    entry.read_into(value.reshape(-1).view(torch.uint8).numpy().data)
    return value


def _model_class(folder: PlainCheckpoint) -> Any:
    names = folder.config.get("architectures") or []
    if not names:
        return transformers.AutoModel
    found = getattr(transformers, str(names[0]), None)
    if found is None:
        remote = "auto_map" in folder.config
        why = "it needs the code that comes with it" if remote else "transformers does not have it"
        raise CheckpointError(
            f"{folder.path / LAYOUT.config}: architecture {names[0]!r} cannot be loaded, {why}"
        )
    return found


def needs_remote_code(config: Mapping[str, Any]) -> bool:
    """Return whether a configuration's model needs Python code that comes with the checkpoint."""
    return "auto_map" in config and config.get("model_type") not in transformers.CONFIG_MAPPING


def _own_memory(model: PreTrainedModel) -> None:
    """Copy weights out of the memory-mapped file.

    `from_pretrained` leaves them at unaligned addresses, which changes a product's last bits: the
    same weights then give logits that differ by 5e-7.
    """
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)


def refuse_mismatched(path: Path, mismatched: Iterable[tuple[str, Size, Size]]) -> None:
    """Refuse weights of another shape, from the `mismatched_keys` that transformers found."""
    for key, found, expected in sorted(mismatched):
        raise CheckpointError(
            f"{path}: {key!r} has shape {tuple(found)}, expected {tuple(expected)}; does "
            f"{LAYOUT.config} belong to these weights?"
        )


def forget_weights_name(model: PreTrainedModel) -> None:
    """Remove the name of the weights' file with which transformers was told what to read."""
    vars(model.config).pop("transformers_weights", None)


def settle_tied_flag(model: PreTrainedModel, path: Path) -> None:
    """Correct `tie_word_embeddings: true` where a model's tied matrices have different values.

    This version of transformers then keeps both, and others overwrite one with the other.
    """
    if not getattr(model.config, "tie_word_embeddings", False):
        return
    tied = model.get_expanded_tied_weights_keys(all_submodels=False)
    values = dict(model.named_parameters(remove_duplicate=False))
    apart = [pair for pair in tied.items() if values.get(pair[0]) is not values.get(pair[1])]
    if not apart:
        return
    logger.warning(
        "%s: tie_word_embeddings is true, but %r and %r hold different values; both are kept%s",
        path / LAYOUT.config,
        *apart[0],
        ", and what is written says false" if len(apart) == len(tied) else "",
    )
    if len(apart) == len(tied):
        model.config.tie_word_embeddings = False


def load_plain(folder: PlainCheckpoint, *, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Load a plain checkpoint, or a mixout checkpoint as the plain model it stands for.

    In evaluation a mixout model computes with `weight` itself, so this is what it computes. The
    model is in evaluation mode, on the CPU, and its weights are in memory of their own. Without a
    dtype, they keep the folder's.
    """
    path = folder.path
    folder.require_weights()
    folder.tensors  # noqa: B018 (reads the headers, so that damage is reported before loading)
    if needs_remote_code(folder.config):
        raise CheckpointError(
            f"{path / LAYOUT.config}: the model needs Python code that comes with it, which is not "
            "run here; only prepare --trust-remote-code does"
        )
    model_class = _model_class(folder)
    with quiet_libraries():
        try:
            # The default would ask on the terminal whether to run foreign code.
            config = AutoConfig.from_pretrained(path, trust_remote_code=False)
            if hasattr(config, "mixout"):
                del config.mixout
            config.transformers_weights = folder.weights.name
            require_pad_row(path, config)
            model, info = model_class.from_pretrained(
                path,
                config=config,
                dtype=dtype if dtype is not None else "auto",
                output_loading_info=True,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
            )
        except LOADING_ERRORS as error:
            raise CheckpointError(f"{path}: cannot be loaded ({first_line(error)})") from error
    forget_weights_name(model)
    if missing := sorted(info["missing_keys"]):
        raise CheckpointError(
            f"{path}: lacks {len(missing)} tensors that its architecture "
            f"{folder.config.get('architectures')} has, {missing[0]!r} first; restore the weights"
        )
    refuse_mismatched(path, info["mismatched_keys"])
    if unread := sorted(key for key in info["unexpected_keys"] if not is_anchor(key)):
        logger.warning(
            "%s: %s has no place for %r%s, so it is not used",
            path,
            type(model).__name__,
            unread[0],
            "" if len(unread) == 1 else f" and {len(unread) - 1} other tensors",
        )
    settle_tied_flag(model, path)
    _own_memory(model)
    return model.eval()  # type: ignore[no-any-return]


def _anchors_of(
    model: PreTrainedModel, folder: PlainCheckpoint, metadata: MixoutMetadata
) -> dict[str, Tensor]:
    """Return each mixed module's anchor, separated from tensors it is merged with on disk."""
    stored = {m.name: folder.anchors[m.pretrained_key] for m in metadata.modules}
    keys, weights = disk_keys(model), model.state_dict()
    merged = [
        name
        for name, entry in stored.items()
        if (key := f"{name}.weight") in weights.keys() - keys.keys()
        and entry.shape != tuple(weights[key].shape)
    ]
    found = {name: tensor_of(entry) for name, entry in stored.items() if name not in merged}
    if merged:  # transformers separates them as it does the weights
        state = {weight_key(key): tensor_of(entry) for key, entry in folder.anchors.items()}
        with quiet_libraries():
            pretrained = type(model).from_pretrained(None, config=model.config, state_dict=state)
        values = pretrained.state_dict()
        found |= {name: values[f"{name}.weight"] for name in merged}
    return {name: found[name] for name in stored}


def _named_as_in(model: PreTrainedModel, metadata: MixoutMetadata) -> MixoutMetadata:
    """Return the metadata with each module under its name in the model.

    A folder that was saved from another model, for example from the one around this one, names them
    otherwise: with the prefix of the body, or without it.
    """
    names = {name for name, _ in model.named_modules(remove_duplicate=False)}
    if all(module.name in names for module in metadata.modules):
        return metadata
    by_key = {key: name for name, key in disk_keys(model).items()}
    prefix = f"{model.base_model_prefix}."

    def name_of(module: MixedModule) -> str:
        stored = by_key.get(module.weight_key, "").removesuffix(".weight")
        candidates = (module.name, stored, prefix + module.name, module.name.removeprefix(prefix))
        return next((name for name in candidates if name and name in names), module.name)

    modules = tuple(replace(module, name=name_of(module)) for module in metadata.modules)
    return replace(metadata, modules=modules)


def load_mixout(path: Path | str) -> PreTrainedModel:
    """Load a mixout checkpoint, its mixed layers anchored as they were when it was prepared.

    Args:
        path: A folder that `prepare`, `train` or `save_mixout` wrote, or one that another trainer
            saved from a model with mixout.

    Returns:
        The model in evaluation mode, on the CPU.

    Raises:
        CheckpointError: The folder is no mixout checkpoint, lacks something, or its anchors do not
            match the recorded SHA-256.
    """
    return load_mixout_from(open_checkpoint(Path(path)))


def load_mixout_from(folder: PlainCheckpoint) -> PreTrainedModel:
    """Load the model of a mixout checkpoint that is open; see `load_mixout`."""
    folder.require_weights()
    metadata = folder.require_metadata()
    folder.check_anchors()
    foreign = isinstance(folder, MixoutCheckpoint) and not folder.native
    if isinstance(folder, MixoutCheckpoint) and not folder.recorded:
        logger.warning(
            "%s: does not record p, so p = %g with one mask bit per input neuron is assumed",
            folder.path,
            metadata.config.p,
        )
    model = load_plain(folder)
    if foreign:
        metadata = _named_as_in(model, metadata)
    anchors = _anchors_of(model, folder, metadata)
    try:
        attach_mixout(model, [m.name for m in metadata.modules], metadata.config, anchors)
    except ArgumentError as error:
        raise CheckpointError(
            f"{folder.path}: the mixout metadata does not fit the model, {error}"
        ) from error
    if metadata.dropout is not None:
        set_module_dropout(model, body=metadata.dropout, head=metadata.head.dropout)
    model.config.mixout = metadata.to_dict()
    setattr(model, ORIGIN_ATTRIBUTE, folder)
    return model.eval()  # type: ignore[no-any-return, no-untyped-call]


def load_weights(model: PreTrainedModel, path: Path) -> None:
    """Copy the weights of a checkpoint into a model of the same class, in place. Anchors stay."""
    state = load_plain(open_checkpoint(path)).state_dict()
    if state.keys() != plain_state(model).keys():
        raise CheckpointError(f"{path}: holds other tensors than {type(model).__name__} has")
    model.load_state_dict(state, strict=False)


def unused_keys(model: PreTrainedModel, interface: ModelInterface) -> Set[str]:
    """Return the keys on disk of what no output depends on, by differentiating once.

    Those are parameters, and buffers such as the decay from block to block of a model that reads
    texts of a single block.
    """
    batch = smallest_batch(interface).inputs
    inputs = {name: torch.from_numpy(batch[name]) for name in interface.inputs}
    named = chain(
        model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)
    )
    wanted = {key: value for key, value in named if value.is_floating_point()}
    frozen = [value for value in wanted.values() if not value.requires_grad]
    try:
        for value in frozen:
            value.requires_grad_(True)
        with torch.enable_grad():
            outputs = model(**inputs, return_dict=True)
            total = torch.stack([outputs[name].sum() for name in interface.outputs]).sum()
            gradients = torch.autograd.grad(total, list(wanted.values()), allow_unused=True)
    finally:
        for value in frozen:
            value.requires_grad_(False)
    unused = {key for key, gradient in zip(wanted, gradients, strict=True) if gradient is None}
    keys = disk_keys(model)
    return {keys[key] for key in unused & keys.keys()}


def plain_state(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the model's state dict without the anchors of its mixout layers."""
    anchors = {
        f"{name}.pretrained_weight"
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, MixoutLayer)
    }
    return {key: value for key, value in model.state_dict().items() if key not in anchors}


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


def dtype_code(dtype: torch.dtype) -> str | None:
    """Return the safetensors name of a PyTorch dtype; None if the format has no such dtype."""
    return next((name for name, known in _DTYPES.items() if known == dtype), None)


class TensorInMemory:
    """A tensor in memory, to be written. Its dtype must be one of `_DTYPES`."""

    def __init__(self, key: str, value: Tensor) -> None:
        code = dtype_code(value.dtype)
        if code is None:
            raise CheckpointError(f"{key!r} has the unsupported dtype {value.dtype}")
        self.key = key
        self.dtype = code
        self.shape = tuple(value.shape)
        self._value = value
        self.nbytes = value.numel() * value.element_size()

    def renamed(self, key: str) -> "TensorInMemory":
        """Return the same tensor under another key."""
        return TensorInMemory(key, self._value)

    def chunks(self) -> Iterator[bytes]:
        """Yield its bytes."""
        flat = self._value.detach().contiguous().cpu().reshape(-1).view(torch.uint8)
        yield flat.numpy().tobytes()


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


def save_mixout(
    model: nn.Module,
    path: Path | str,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
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
        overwrite: Whether a non-empty folder may be replaced.

    Raises:
        ArgumentError: There is no transformers model with mixout layers, or more than one.
        CheckpointError: The tokenizer gives ids that the model has no row for.
        OutputError: The folder cannot be written.
    """
    path = Path(path)
    inner, name = _model_to_save(model)
    origin: PlainCheckpoint | None = getattr(inner, ORIGIN_ATTRIBUTE, None)
    if tokenizer is not None:
        require_rows(path, tokenizer, vocabulary_rows(inner))
    with output_folder(path, overwrite=overwrite) as out:
        if tokenizer is not None:
            tokenizer.save_pretrained(out.partial)
        write_mixout(inner, out.partial, origin=origin)
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
