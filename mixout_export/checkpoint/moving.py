"""Save a model that was just loaded by moving its tensors from file to file, as bytes.

`from_pretrained` maps a safetensors file into memory and reads none of it, so a model costs no
memory until its weights are touched. `save_pretrained` would read them all and copy them; here it
only says which tensors go under which keys.
"""

import tempfile
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor
from transformers import PreTrainedModel

from mixout_export.checkpoint.keys import anchor_key
from mixout_export.checkpoint.model_state import plain_state
from mixout_export.checkpoint.saving import save_without_record
from mixout_export.checkpoint.torch_tensors import TensorInMemory, dtype_code
from mixout_export.files.input_files import InputFiles
from mixout_export.files.json_files import write_json
from mixout_export.files.layout import LAYOUT
from mixout_export.files.streams import quick_hash
from mixout_export.files.tensors import TensorEntry, read_tensors
from mixout_export.files.weight_files import find_weights
from mixout_export.files.writing import (
    ANCHOR_SHARD,
    SHARD_SIZE,
    TensorFile,
    finish_anchors,
    shards_of,
    write_twice,
)

#: The order in which the safetensors library writes dtypes.
_ORDER = ("I64", "F64", "F32", "I32", "BF16", "F16", "I16", "I8", "U8", "BOOL")


@dataclass(frozen=True)
class WrittenWeights:
    """Weights and anchors on disk.

    Attributes:
        keys: The weights' keys.
        anchors_sha256: The SHA-256 that identifies the anchors.
        anchors_xxh3: Their quick hash. None if it was not computed while they were written.
        sha256: File name → SHA-256 of the files that were hashed while they were written.
    """

    keys: Collection[str]
    anchors_sha256: str
    anchors_xxh3: str | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SavePlan:
    """What `save_pretrained` would write, with each tensor where it lies now.

    Attributes:
        tensors: Key on disk → the tensor, in the order of the files.
        files: The weight files in the order of their names.
        index: The content of the shards' index, None for a single file.
    """

    tensors: Mapping[str, TensorEntry | TensorInMemory]
    files: tuple[TensorFile, ...]
    index: Mapping[str, object] | None

    def write(
        self, directory: Path, anchored: Sequence[str], *, limit: int = ANCHOR_SHARD
    ) -> WrittenWeights:
        """Write the weights, and the present values of some of them as anchors.

        Args:
            directory: Where to write.
            anchored: Keys of the weights that get an anchor, in the order of `tensors`.
            limit: Bytes above which the anchors have more than one file.
        """
        quick = quick_hash()
        values = [self.tensors[key].renamed(anchor_key(key)) for key in anchored]
        anchors = shards_of(directory, LAYOUT.pretrained, values, limit=limit)
        digests = write_twice(self.files, anchors, frozenset(anchored), also=quick)
        if self.index is not None:
            write_json(directory / LAYOUT.weights_index, self.index)
        anchors_sha256 = finish_anchors(directory, anchors, digests)
        return WrittenWeights(self.tensors.keys(), anchors_sha256, quick.hexdigest(), digests)


def plan_saving(
    model: PreTrainedModel,
    directory: Path,
    files: Sequence[Path],
    fresh: Iterable[str],
    *,
    shard_size: str = SHARD_SIZE,
) -> SavePlan | None:
    """Write `config.json` as `save_pretrained` does, and find out what weights it would write.

    Args:
        model: A model as `from_pretrained` returned it.
        directory: Where to write.
        files: The safetensors files it was loaded from.
        fresh: State-dict keys of what did not come from them.
        shard_size: Most bytes of a file, as "5GB".

    Returns:
        The plan; None if a weight was changed or converted when it was loaded, or would be when it
        is saved, so that it cannot be moved as bytes.
    """
    if _is_converted(model):
        return None
    state = plain_state(model)
    entries = _unchanged(state, files)
    if not state.keys() <= entries.keys() | set(fresh):
        return None
    if any(dtype_code(value.dtype) is None for value in state.values()):
        return None
    keys = _rehearse(model, state, directory)
    if keys is None:
        return None
    split = split_torch_state_dict_into_shards(
        {saved: state[key] for saved, key in keys.items()},
        filename_pattern=LAYOUT.weights.replace(".safetensors", "{suffix}.safetensors"),
        max_shard_size=shard_size,
    )
    planned: list[TensorFile] = []
    tensors: dict[str, TensorEntry | TensorInMemory] = {}
    for name, held in sorted(split.filename_to_tensors.items()):
        sources = [
            entries[key].renamed(saved) if key in entries else TensorInMemory(saved, state[key])
            for saved, key in ((saved, keys[saved]) for saved in held)
        ]
        sources.sort(key=lambda source: (_ORDER.index(source.dtype), source.key))
        planned.append(TensorFile(directory / name, tuple(sources)))
        tensors |= {source.key: source for source in sources}
    index = {
        "metadata": {"total_parameters": model.num_parameters(), **split.metadata},
        "weight_map": split.tensor_to_filename,
    }
    return SavePlan(tensors, tuple(planned), index if split.is_sharded else None)


def _is_converted(model: PreTrainedModel) -> bool:
    """Tell whether values, not only names, may differ between the model and its files."""
    conversions = getattr(model, "_weight_conversions", None) or ()
    return (
        any(getattr(conversion, "operations", None) for conversion in conversions)
        or getattr(model, "hf_quantizer", None) is not None
        or not type(model).__module__.startswith("transformers.")  # code of the checkpoint's own
    )


def _unchanged(state: Mapping[str, Tensor], files: Sequence[Path]) -> dict[str, TensorEntry]:
    """Return, by state-dict key, the tensors of the files that the model's weights still are.

    A weight that still is its namesake in a file lies in the file's memory map, at the map's
    address plus the tensor's place in the file. The address is what most namesakes agree on.
    """
    entries = {key: entry for file in files for key, entry in read_tensors(file).items()}
    namesakes = _namesakes(state, entries)
    votes: dict[Path, Counter[int]] = defaultdict(Counter)
    for key, entry in namesakes.items():
        votes[entry.file][state[key].data_ptr() - entry.offset] += 1
    addresses = {file: counter.most_common(1)[0][0] for file, counter in votes.items()}
    found = {
        key: entry
        for key, entry in namesakes.items()
        if state[key].data_ptr() - entry.offset == addresses[entry.file]
        and state[key].is_contiguous()
        and state[key]._version == 0  # an operation in place keeps the address, and is counted
    }
    tied = {_place(state[key]): entry for key, entry in found.items()}
    return {key: tied[_place(value)] for key, value in state.items() if _place(value) in tied}


def _place(value: Tensor) -> tuple[int, torch.dtype, torch.Size, tuple[int, ...]]:
    return value.data_ptr(), value.dtype, value.shape, value.stride()


def _namesakes(
    state: Mapping[str, Tensor], entries: Mapping[str, TensorEntry]
) -> dict[str, TensorEntry]:
    """Pair weights with tensors of the same dtype and shape whose key ends, or begins, later."""
    longer = {suffix: entry for key, entry in entries.items() for suffix in _suffixes(key)}
    found = {}
    for key, value in state.items():
        candidates = [entries[suffix] for suffix in _suffixes(key) if suffix in entries]
        form = (dtype_code(value.dtype), tuple(value.shape))
        for entry in [*candidates, *([longer[key]] if key in longer else [])]:
            if (entry.dtype, entry.shape) == form and entry.nbytes:
                found[key] = entry
                break
    return found


def _suffixes(key: str) -> list[str]:
    """Return "a.b.c", "b.c" and "c" for "a.b.c"."""
    parts = key.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


def _rehearse(
    model: PreTrainedModel, state: Mapping[str, Tensor], directory: Path
) -> dict[str, str] | None:
    """Return key on disk → state-dict key, in the order in which `save_pretrained` fills shards.

    Each tensor's number is saved in its place, in a file of its own. Tensors that are one and the
    same have the same number in one tensor, so that ties are seen.
    """
    numbers: dict[int, Tensor] = {}
    names = list(state)
    standins = {
        key: numbers.setdefault(value.data_ptr() or -1 - number, torch.tensor([number]))
        for number, (key, value) in enumerate(state.items())
    }
    with tempfile.TemporaryDirectory(dir=directory) as rehearsal:
        folder = Path(rehearsal)
        save_without_record(model, folder, standins, shard_size=8)
        files = find_weights(InputFiles(folder)).files
        saved = {key: entry for file in files for key, entry in read_tensors(file).items()}
        if any((entry.dtype, entry.shape) != ("I64", (1,)) for entry in saved.values()):
            return None
        keys = {key: names[int.from_bytes(entry.read(), "little")] for key, entry in saved.items()}
        for file in [*files, folder / LAYOUT.weights_index]:
            file.unlink(missing_ok=True)
        for file in folder.iterdir():
            file.rename(directory / file.name)
    return keys
