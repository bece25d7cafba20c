"""Changed copies of a Hugging Face folder or a mixout checkpoint."""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence, Set
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from mixout_export.checkpoint.plain import PlainCheckpoint
from mixout_export.checkpoint.torch_tensors import tensor_of
from mixout_export.files.json_files import write_json
from mixout_export.files.layout import LAYOUT
from mixout_export.files.sidecar_files import link_or_copy
from mixout_export.files.tensors import FLOATING, TensorEntry
from mixout_export.parity.self_test.faults import Array, NotApplicableError, Part, Role
from mixout_export.parity.weights import weights_of
from mixout_export.surgery.key_names import disk_keys

#: What configurations call the epsilon of their normalizations.
_EPSILON_ENTRIES = (
    "layer_norm_eps",
    "layer_norm_epsilon",
    "layernorm_epsilon",
    "norm_eps",
    "norm_epsilon",
    "rms_norm_eps",
)


class FolderCopier:
    """Writes changed copies of a folder; files that are not changed are linked."""

    def __init__(self, checkpoint: PlainCheckpoint) -> None:
        self._checkpoint = checkpoint
        self._model = checkpoint.model
        self._weights = weights_of(checkpoint)
        self._transposed: set[str] = set()  # keys of weights that are (in_features, out_features)
        self._entries = {
            self._weights.canonical(key): entry for key, entry in checkpoint.tensors.items()
        }

    @cached_property
    def _keys(self) -> dict[str, str]:
        """Parameter name → key on disk."""
        return disk_keys(self._model)

    def part(self, role: Role) -> Part:
        """Return the tensor with a role; see `Copier`."""
        name = getattr(self, f"_{role.replace(' ', '_')}")()
        entry = self._entry(name)
        value = tensor_of(entry)
        array = value.float().numpy()
        if isinstance(self._model.get_submodule(name.rpartition(".")[0]), Conv1D):
            self._transposed.add(entry.key)
            array = np.ascontiguousarray(array.T)
        return Part(entry.key, entry.key, array, torch.finfo(value.dtype).eps)

    def write(self, out: Path, values: Mapping[str, Array]) -> Path:
        """Write a copy with other values; see `Copier`."""
        entries = {entry.key: entry for entry in self._entries.values()}
        changed = {entries[key] for key in values}
        self._copy(out, own={entry.file.name for entry in changed})
        for entry in changed:
            array = values[entry.key]
            array = array.T if entry.key in self._transposed else array
            dtype = tensor_of(entry).dtype
            raw = torch.from_numpy(np.ascontiguousarray(array)).to(dtype).reshape(-1)
            with (out / entry.file.name).open("r+b") as stream:
                stream.seek(entry.offset)
                stream.write(raw.view(torch.uint8).numpy().data)
        return out

    def write_without_bias(self, out: Path) -> tuple[Path, str]:
        """Set a bias to zero, because a folder cannot lack one; see `Copier`.

        The longest bias is taken. That of a key would not do: attention does not depend on it.
        """
        biases = [
            (f"{name}.bias", layer.bias.detach())
            for name, layer in self._linears()
            if layer.bias is not None and layer.bias.any()
        ]
        if not biases:
            raise NotApplicableError("its linear layers have no biases other than zero")
        name, value = max(biases, key=lambda bias: (bias[1].numel(), float(bias[1].norm())))
        key = self._entry(name).key
        return self.write(out, {key: np.zeros(value.shape, dtype=np.float32)}), key

    def write_with_epsilon(self, out: Path, choose: Callable[[float], float]) -> tuple[Path, str]:
        """Write a copy whose configuration has another epsilon; see `Copier`."""
        config = self._checkpoint.config
        known = {**config, **self._model.config.to_dict()}  # a default may be left out of the file
        entry = next((name for name in _EPSILON_ENTRIES if known.get(name)), None)
        if entry is None:
            raise NotApplicableError(f"{LAYOUT.config} holds no epsilon")
        epsilon = choose(float(known[entry]))
        self._copy(out, without=LAYOUT.config)
        write_json(out / LAYOUT.config, {**config, entry: epsilon})
        return out, f"{entry} {known[entry]:g} → {epsilon:g}"

    def write_with_labels(self, out: Path, labels: Sequence[str]) -> Path:
        """Write a copy whose configuration has other label names; see `Copier`."""
        self._copy(out, without=LAYOUT.config)
        write_json(out / LAYOUT.config, with_labels(self._checkpoint.config, labels))
        return out

    def write_without_mask(self, out: Path) -> Path:
        """Raise `NotApplicableError`: no file of a folder decides how its mask is used."""
        raise NotApplicableError("the code of transformers reads attention_mask, not a file")

    def _copy(self, out: Path, *, own: Set[str] = frozenset(), without: str = "") -> None:
        """Link the folder's files `without` one, and copy `own` files, which will change."""
        out.mkdir()
        for file in self._checkpoint.path.iterdir():
            if not file.is_file() or file.name == without:
                continue
            if file.name in own:
                shutil.copyfile(file, out / file.name)
            else:
                link_or_copy(file, out / file.name)

    def _entry(self, name: str) -> TensorEntry:
        stored = self._keys.get(name, name)
        entry = self._entries.get(self._weights.canonical(stored))
        if entry is None or entry.shape != tuple(self._model.get_parameter(name).shape):
            raise NotApplicableError(f"{name} is a part of another tensor, or tied to one")
        if entry.dtype not in FLOATING:
            raise NotApplicableError(f"{name} is stored as {entry.dtype}")
        return entry

    def _in_body(self, name: str) -> bool:
        return self._checkpoint.headless or name.startswith(f"{self._model.base_model_prefix}.")

    def _linears(self) -> list[tuple[str, Any]]:
        """Return the body's linear layers, without those that no output depends on."""
        return [
            (name, module)
            for name, module in self._model.named_modules()
            if isinstance(module, nn.Linear | Conv1D)
            and self._in_body(name)
            and f"{name}.weight" not in self._checkpoint.unused_keys
        ]

    def _linear(self) -> str:
        layers = self._linears()
        if not layers:
            raise NotApplicableError("it has no linear layers")
        largest = max(layer.weight.numel() for _, layer in layers)
        names = [name for name, layer in layers if layer.weight.numel() == largest]
        return f"{names[len(names) // 2]}.weight"

    def _table(self, holds: Callable[[str, nn.Embedding], bool], missing: str) -> str:
        for name, module in self._model.named_modules():
            if isinstance(module, nn.Embedding) and holds(name, module):
                return f"{name}.weight"
        raise NotApplicableError(missing)

    def _positions(self) -> str:
        limit = self._checkpoint.interface.sequence_limit
        words = self._words()

        def holds(_: str, table: nn.Embedding) -> bool:
            sized = limit is not None and limit <= table.num_embeddings <= limit + 8
            return sized and table is not words

        return self._table(holds, "it has no table of positions")

    def _segments(self) -> str:
        if "token_type_ids" not in self._checkpoint.interface.inputs:
            raise NotApplicableError("it has no segments")
        return self._table(lambda name, _: "token_type" in name, "it has no table of segments")

    def _words(self) -> nn.Module | None:
        try:
            found = self._model.get_input_embeddings()
        except NotImplementedError:
            return None
        return found if isinstance(found, nn.Embedding) else None

    def _vocabulary(self) -> str:
        words = self._words()
        return self._table(lambda _, table: table is words, "it has no vocabulary")

    def _head(self) -> tuple[str, nn.Linear]:
        layers = [
            (name, module)
            for name, module in self._model.named_modules()
            if isinstance(module, nn.Linear) and not self._in_body(name)
        ]
        if not layers:
            raise NotApplicableError("it has no head")
        return layers[-1]

    def _classifier(self) -> str:
        return f"{self._head()[0]}.weight"

    def _classifier_bias(self) -> str:
        name, layer = self._head()
        if layer.bias is None:
            raise NotApplicableError("its classifier has no bias")
        return f"{name}.bias"


def with_labels(config: Mapping[str, Any], labels: Sequence[str]) -> dict[str, Any]:
    """Return a configuration with other label names."""
    return {
        **config,
        "id2label": {str(index): name for index, name in enumerate(labels)},
        "label2id": {name: index for index, name in enumerate(labels)},
    }


def link_beside(file: Path, out: Path) -> None:
    """Put a file that lies beside a graph beside the graph's copy."""
    target = out / file.name
    if file.is_file() and not os.path.lexists(target):
        link_or_copy(file, target)
