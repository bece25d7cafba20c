"""Load models from folders."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import Size, Tensor
from transformers import AutoConfig, PreTrainedModel

from mixout_export.checkpoint.folder import open_checkpoint
from mixout_export.checkpoint.keys import is_anchor, weight_key
from mixout_export.checkpoint.mixed import MixoutCheckpoint
from mixout_export.checkpoint.mixout_metadata import MixedModule, MixoutMetadata
from mixout_export.checkpoint.model_state import plain_state
from mixout_export.checkpoint.plain import PlainCheckpoint
from mixout_export.checkpoint.torch_tensors import tensor_of
from mixout_export.checkpoint.vocabulary import require_pad_row
from mixout_export.errors import ArgumentError, CheckpointError
from mixout_export.files.layout import LAYOUT
from mixout_export.printable import first_line
from mixout_export.quiet import quiet_libraries
from mixout_export.surgery.dropout import set_module_dropout
from mixout_export.surgery.injection import ORIGIN_ATTRIBUTE, attach_mixout
from mixout_export.surgery.key_names import disk_keys

logger = logging.getLogger(__name__)

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
            f"{path}: {key!r} has shape {tuple(found)}, expected {tuple(expected)}; check that "
            f"{LAYOUT.config} belongs to these weights"
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
        ", and the flag becomes false in what is written" if len(apart) == len(tied) else "",
    )
    if len(apart) == len(tied):
        model.config.tie_word_embeddings = False


def refuse_other_names(folder: PlainCheckpoint) -> None:
    """Refuse a folder of which no tensor has a name that its architecture reads.

    It then holds the state of another module, for example of one around the model.
    """
    if needs_remote_code(folder.config):
        return
    with quiet_libraries(), torch.device("meta"):
        try:
            config = AutoConfig.from_pretrained(folder.path, trust_remote_code=False)
            model_class = _model_class(folder)
            build = getattr(model_class, "from_config", model_class)  # AutoModel has it
            model = build(config)
        except (*LOADING_ERRORS, CheckpointError):
            return  # that is reported when the model is loaded
    prefix = f"{model.base_model_prefix}."
    known = {key.removeprefix(prefix) for key in disk_keys(model).values()}
    if folder.tensors and not any(key.removeprefix(prefix) in known for key in folder.tensors):
        raise CheckpointError(
            f"{folder.path}: holds {next(iter(folder.tensors))!r} and other tensors under names "
            f"that {type(model).__name__} does not read; they seem to be the state of a module "
            "around the model, so load them into that module and write the folder with save_mixout"
        )


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
                ignore_mismatched_sizes=True,  # they are refused below, by their names
            )
        except LOADING_ERRORS as error:
            raise CheckpointError(f"{path}: cannot be loaded ({first_line(error)})") from error
    forget_weights_name(model)
    refuse_mismatched(path, info["mismatched_keys"])
    if missing := sorted(info["missing_keys"]):
        raise CheckpointError(
            f"{path}: lacks {len(missing)} tensors that its architecture "
            f"{folder.config.get('architectures')} has, {missing[0]!r} first; restore the weights"
        )
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
