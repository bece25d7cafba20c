"""`prepare`: turn a pretrained checkpoint into a mixout checkpoint."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from mixout_export.card.document import read_card, write_card
from mixout_export.card.steps import prepared_card
from mixout_export.checkpoint.adapter import base_of_adapter, merged_adapter, refuse_merged
from mixout_export.checkpoint.base import BaseOptions, LoadedBase, load_base, locate_base
from mixout_export.checkpoint.folder import open_checkpoint
from mixout_export.checkpoint.keys import anchor_key, is_statistic
from mixout_export.checkpoint.mixout_metadata import ConfigChange, Head, MixoutMetadata
from mixout_export.checkpoint.moving import WrittenWeights, plan_saving
from mixout_export.checkpoint.saving import mixed_modules, write_anchors, write_weights
from mixout_export.checkpoint.tokenizer_file import forget_machine_path, set_padding_side
from mixout_export.config import MixoutConfig
from mixout_export.errors import ArgumentError
from mixout_export.files.json_files import read_json, write_json
from mixout_export.files.layout import LAYOUT
from mixout_export.files.output import check_destination, output_folder
from mixout_export.files.sidecar_files import copy_sidecar_files
from mixout_export.files.weight_files import BaseDigest
from mixout_export.layers import is_mixable
from mixout_export.provenance.links import Link, plain_options
from mixout_export.provenance.manifest import find_manifest, write_manifest
from mixout_export.surgery.dropout import dropout_settings, head_has_dropout
from mixout_export.surgery.key_names import disk_keys, merged_keys
from mixout_export.surgery.selection import select_targets, tied_weights

HEAD_TREATMENTS = ("dropout", "mixout", "none")


@dataclass(frozen=True)
class PrepareOptions:
    """Options of `prepare`.

    Attributes:
        base: Task, labels and how to read the base.
        mixout: Which layers to mix, and how strongly.
        dropout: Dropout probability in the body, in [0, 1).
        head: How to regularize a fresh head: "dropout", "mixout" (anchored at the head's initial
            value, the paper's mixout(w0)) or "none".
        head_dropout: Dropout probability before the head if `head` is "dropout", in [0, 1).
    """

    base: BaseOptions = field(default_factory=BaseOptions)
    mixout: MixoutConfig = field(default_factory=MixoutConfig)
    dropout: float = 0.0
    head: str = "dropout"
    head_dropout: float = 0.1

    def __post_init__(self) -> None:
        for name, value in (("dropout", self.dropout), ("head-dropout", self.head_dropout)):
            if not 0.0 <= value < 1.0:
                raise ArgumentError(f"{name}: got {value}, expected a probability in [0, 1)")
        if self.head not in HEAD_TREATMENTS:
            raise ArgumentError(
                f"head: got {self.head!r}, expected one of {', '.join(HEAD_TREATMENTS)}"
            )

    @property
    def effective_head_dropout(self) -> float:
        """Dropout probability before the head; 0 unless `head` is "dropout"."""
        return self.head_dropout if self.head == "dropout" else 0.0


@dataclass(frozen=True)
class PrepareResult:
    """The result of `prepare`.

    Attributes:
        out: The mixout checkpoint.
        architecture: Class name of the model.
        task: The task's name.
        labels: Label names; None if the task has none.
        mixed: Names of the mixed modules.
        mixed_parameters: Number of mixed weights.
        parameters: Number of all parameters.
        fresh: Keys of the parameters that did not come from the base.
        skipped: Modules that match the targets but are not mixed, with the reason.
        unused: Tensors of the base that the model does not use.
        config_changes: Configuration entry → its values before and while training.
        notes: What else a user should know.
    """

    out: Path
    architecture: str
    task: str
    labels: tuple[str, ...] | None
    mixed: tuple[str, ...]
    mixed_parameters: int
    parameters: int
    fresh: tuple[str, ...]
    skipped: dict[str, str]
    unused: tuple[str, ...]
    config_changes: dict[str, tuple[Any, Any]]
    notes: tuple[str, ...]


def _targets(loaded: LoadedBase, options: PrepareOptions) -> tuple[list[str], dict[str, str]]:
    """Return the modules to mix, and the matching modules that are not mixed, with the reason."""
    model = loaded.model
    fresh = {key.rpartition(".")[0] for key in loaded.fresh_keys}
    selection = select_targets(model, options.mixout, fresh=fresh)
    names = set(selection.names)
    skipped = dict(selection.skipped)
    if options.head == "mixout":
        head = [
            n
            for n, m in model.named_modules()
            if n in fresh and is_mixable(m) and not isinstance(m, nn.Embedding)
        ]
        if not head:
            raise ArgumentError(
                "head: --head mixout is for a fresh head, but the base already has its head; name "
                "the head's modules in --target-modules instead"
            )
        names |= set(head)
        skipped = {name: why for name, why in skipped.items() if name not in names}
    return [name for name, _ in model.named_modules() if name in names], skipped


def _apply_dropout(loaded: LoadedBase, options: PrepareOptions) -> tuple[ConfigChange, ...]:
    """Set dropout in the configuration; return what changed in `config.json`."""
    config = loaded.model.config
    before = config.to_diff_dict()
    head = options.effective_head_dropout
    for key, value in dropout_settings(config.to_dict(), body=options.dropout, head=head).items():
        setattr(config, key, value)
    after = config.to_diff_dict()
    return tuple(
        ConfigChange(key, before.get(key), after.get(key), key in before)
        for key in sorted(before.keys() | after.keys())  # defaults are left out of both
        if (key in before, before.get(key)) != (key in after, after.get(key))
    )


def _anchored_keys(
    loaded: LoadedBase, keys: Mapping[str, str], entries: Iterable[str], mixed: Sequence[str]
) -> list[str]:
    """Return the keys on disk that get an anchor: those from the base, and those mixed.

    Statistics of batch normalization get one, because training changes them as it changes weights.
    """
    fresh = {keys.get(key, key) for key in loaded.fresh_keys}
    named = [name for name, _ in loaded.model.named_buffers() if not is_statistic(name)]
    buffers = {keys.get(name, name) for name in named}
    mixed_keys = {keys.get(f"{name}.weight") for name in mixed}
    return [k for k in entries if (k not in fresh and k not in buffers) or k in mixed_keys]


def _tied_lookups(loaded: LoadedBase, mixed: Sequence[str]) -> list[str]:
    """Return a note for each mixed embedding that shares its weight with unmixed modules."""
    tied = tied_weights(loaded.model)
    notes = []
    for name, module in loaded.model.named_modules():
        others = [other for other in tied.get(id(module), ()) if other not in mixed]
        if name in mixed and isinstance(module, nn.Embedding) and others:
            notes.append(
                f"{name} shares its weight with {', '.join(others)}: only lookups are mixed, and "
                "the other modules use the weight itself"
            )
    return notes


def _notes(loaded: LoadedBase, mixed: Sequence[str], options: PrepareOptions) -> tuple[str, ...]:
    notes = _tied_lookups(loaded, mixed)
    notes += [
        f"{key} has {added.after - added.before} new rows, {added.after} instead of "
        f"{added.before}: they are not mixed, and they decay toward zero"
        for key, added in loaded.resized.items()
        if key not in loaded.fresh_keys
    ]
    if options.head == "dropout" and not head_has_dropout(loaded.model):
        notes.append(f"{type(loaded.model).__name__} has no dropout before its head")
    if loaded.pads_right:
        notes.append(
            "the tokenizer of the base pads on the left, and the model's answer to a text would "
            "then depend on the other texts of its batch; the tokenizer of OUT pads on the right"
        )
    return (*notes, *_finetuned_anchors(loaded), *loaded.notes)


def _finetuned_anchors(loaded: LoadedBase) -> list[str]:
    """Return a note if the base is itself the result of finetuning."""
    manifest = find_manifest(loaded.folder.files)
    steps = () if manifest is None else (*manifest.chain, manifest.link)
    if not any(link.step == "train" for link in steps):
        return []
    first = next((link.name for link in steps if link.name), "its base")
    return [
        f"the anchors are the finetuned weights of {loaded.folder.path}, not the weights of "
        f"{first}; to keep {first} as the anchors, run train on the mixout checkpoint from which "
        f"{loaded.folder.path} was collapsed"
    ]


def prepare_checkpoint(
    base: str,
    out: Path,
    options: PrepareOptions | None = None,
    *,
    overwrite: bool = False,
    digest: BaseDigest | None = None,
) -> PrepareResult:
    """Write a mixout checkpoint from a pretrained one.

    Args:
        base: A Hugging Face folder or hub id.
        out: The folder to write, which appears complete or not at all.
        options: The options, by default `PrepareOptions()`.
        overwrite: Whether a non-empty `out` may be replaced.
        digest: The base's SHA-256, if it is already being computed.

    Raises:
        ArgumentError: An option does not fit the base.
        CheckpointError: The base cannot be loaded.
        OutputError: `out` cannot be written.
    """
    options = options if options is not None else PrepareOptions()
    check_destination(out, [Path(base)], overwrite=overwrite)
    source, _ = locate_base(base, revision=options.base.revision)
    with output_folder(out, [source], overwrite=overwrite) as folder, ExitStack() as stack:
        if options.base.merge_adapter:
            base, digest = str(stack.enter_context(_merged(source))), None
        loaded = load_base(base, options.base, digest=digest)
        names, skipped = _targets(loaded, options)
        changes = _apply_dropout(loaded, options)
        metadata = _write(loaded, folder.partial, names, changes, options)
    model = loaded.model
    modules = dict(model.named_modules())
    return PrepareResult(
        out=out,
        architecture=type(model).__name__,
        task=loaded.task.name,
        labels=loaded.labels,
        mixed=tuple(names),
        mixed_parameters=sum(modules[name].weight.numel() for name in names),
        parameters=model.num_parameters(),
        fresh=metadata.head.keys,
        skipped=skipped,
        unused=loaded.unused_keys,
        config_changes={c.key: (c.before, c.after) for c in changes},
        notes=_notes(loaded, names, options),
    )


def _merged(source: Path) -> AbstractContextManager[Path]:
    """Merge the adapter in a folder into the weights beside it, else into the base it names."""
    name = base_of_adapter(source)
    if not (source / LAYOUT.config).exists():
        return merged_adapter(source, locate_base(name, revision=None)[0])
    if name and Path(name).is_dir() and Path(name).resolve() != source.resolve():
        refuse_merged(source, Path(name))
    return merged_adapter(source, None)


def _write(
    loaded: LoadedBase,
    directory: Path,
    names: Sequence[str],
    changes: tuple[ConfigChange, ...],
    options: PrepareOptions,
) -> MixoutMetadata:
    keys = _keys_of(loaded.model, names)
    written = _write_tensors(loaded, directory, keys, names)
    modules = dict(loaded.model.named_modules())
    metadata = MixoutMetadata(
        config=options.mixout,
        modules=mixed_modules(
            {name: type(modules[name]).__name__ for name in names}, keys, written.keys
        ),
        base=loaded.base,
        pretrained_sha256=written.anchors_sha256,
        pretrained_xxh3=written.anchors_xxh3,
        task=loaded.task.name,
        labels=loaded.labels,
        head=Head(options.head, options.effective_head_dropout, loaded.fresh_keys),
        dropout=options.dropout,
        config_changes=changes,
        seed=options.base.seed,
    )
    metadata.write(directory / LAYOUT.mixout_config)
    config = read_json(directory / LAYOUT.config)
    if config.pop("_name_or_path", None) is not None:  # a path of this machine
        write_json(directory / LAYOUT.config, config)
    copy_sidecar_files(loaded.folder.path, directory)
    forget_machine_path(directory)
    if loaded.pads_right:
        set_padding_side(directory, "right")
    write_card(
        prepared_card(metadata, read_card(loaded.folder.path / LAYOUT.card)),
        directory / LAYOUT.card,
    )
    write_manifest(
        directory,
        step="prepare",
        source=loaded.folder.files,
        input_sha256=loaded.base.sha256 or "",
        weights=[path.name for path in open_checkpoint(directory).weight_paths],
        options=_record_options(options),
        base=Link(
            "base",
            loaded.base.sha256 or "",
            loaded.base.name or loaded.folder.path.name,
            options=plain_options({"revision": loaded.base.revision}),
        ),
        known=written.sha256,
    )
    return metadata


def _record_options(options: PrepareOptions) -> dict[str, Any]:
    """Return the options that affect what is written, by their names on the command line."""
    flat = {**vars(options), **vars(options.base), **vars(options.mixout)}
    return {
        name: value for name, value in flat.items() if name not in ("base", "mixout", "revision")
    }


def _keys_of(model: PreTrainedModel, mixed: Sequence[str]) -> dict[str, str]:
    """Return tensor name → its key on disk, or the key of the tensor that it is merged into."""
    keys = disk_keys(model)
    merged = [key for name in mixed if (key := f"{name}.weight") not in keys]
    return {**keys, **merged_keys(model, merged)} if merged else keys


def _write_tensors(
    loaded: LoadedBase, directory: Path, keys: Mapping[str, str], names: Sequence[str]
) -> WrittenWeights:
    """Write weights and anchors."""
    plan = None
    if not loaded.resized:
        plan = plan_saving(loaded.model, directory, loaded.files, loaded.fresh_keys)
    if plan is not None:
        return plan.write(directory, _anchored_keys(loaded, keys, plan.tensors, names))
    entries = write_weights(loaded.model, directory)
    anchored = _anchored_keys(loaded, keys, entries, names)
    rows = {keys.get(name, name): added.before for name, added in loaded.resized.items()}
    anchors = [entries[key].first_rows(rows.get(key)).renamed(anchor_key(key)) for key in anchored]
    return WrittenWeights(entries.keys(), write_anchors(directory, anchors))
