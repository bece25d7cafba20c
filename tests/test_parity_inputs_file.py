from pathlib import Path

import numpy as np
import pytest

from mixout_export.checkpoint.interface import ModelInterface
from mixout_export.checkpoint.model_inputs import Batch
from mixout_export.errors import DataError, OutputError
from mixout_export.parity.battery import build_battery
from mixout_export.parity.inputs_file import load_inputs, save_inputs

INTERFACE = ModelInterface(
    inputs=("input_ids", "attention_mask", "token_type_ids"),
    outputs=("logits",),
    vocabulary_size=100,
    sequence_limit=16,
    segments=2,
    pad_token_id=0,
)


def ids(shape: tuple[int, ...], value: int = 1) -> np.ndarray:
    return np.full(shape, value, dtype=np.int64)


def write(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def whole(**changes: np.ndarray) -> dict[str, np.ndarray]:
    return {name: ids((2, 8)) for name in INTERFACE.inputs} | changes


def test_a_battery_comes_back_as_it_was(tmp_path: Path) -> None:
    battery = build_battery(INTERFACE, seed=3).batches
    save_inputs(tmp_path / "a.npz", battery)
    again = load_inputs(tmp_path / "a.npz", INTERFACE)
    assert [batch.name for batch in again] == [batch.name for batch in battery]
    for ours, theirs in zip(battery, again, strict=True):
        assert ours.inputs.keys() == theirs.inputs.keys()
        for name, value in ours.inputs.items():
            assert np.array_equal(value, theirs.inputs[name])
            assert theirs.inputs[name].dtype == np.int64


def test_the_same_battery_is_the_same_file(tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz"):
        save_inputs(tmp_path / name, build_battery(INTERFACE, seed=3).batches)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_a_file_of_ones_own_is_one_batch(tmp_path: Path) -> None:
    path = write(tmp_path / "own.npz", **whole(input_ids=ids((2, 8), 7).astype(np.int32)))
    (batch,) = load_inputs(path, INTERFACE)
    assert (batch.name, batch.shape) == ("inputs", (2, 8))
    assert batch.inputs["input_ids"].dtype == np.int64


def test_inputs_that_the_model_does_not_take_are_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "own.npz", **whole(position_ids=ids((2, 8))))
    (batch,) = load_inputs(path, INTERFACE)
    assert tuple(batch.inputs) == INTERFACE.inputs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": ids((2, 8), 100)}, "'input_ids', holds 100, the model takes 0 to 99"),
        ({"input_ids": ids((2, 8), -1)}, "holds -1"),
        ({"token_type_ids": ids((2, 8), 2)}, "the model takes 0 to 1"),
        ({"attention_mask": ids((2, 7))}, r"has shape \(2, 7\), expected \(2, 8\)"),
        ({"input_ids": ids((8,))}, r"has shape \(8,\), expected \(batch, sequence\)"),
        ({"input_ids": ids((0, 8))}, "no empty dimension"),
        ({name: ids((1, 17)) for name in INTERFACE.inputs}, "has 17 tokens, .* at most 16"),
        ({"input_ids": np.array([["a"]])}, "holds <U1, expected numbers"),
        ({"a/b": ids((2, 8))}, "'a/b' is no key of an inputs file"),
    ],
)
def test_what_the_model_does_not_take_is_refused(
    tmp_path: Path, change: dict[str, np.ndarray], message: str
) -> None:
    path = write(tmp_path / "own.npz", **whole(**change))
    with pytest.raises(DataError, match=message):
        load_inputs(path, INTERFACE)


def test_a_missing_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"batch 0 \(inputs\) has no 'attention_mask'"):
        load_inputs(write(tmp_path / "own.npz", input_ids=ids((1, 4))), INTERFACE)


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 not a zip"])
def test_what_is_no_file_of_arrays_is_said_to_be_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"expected an \.npz file"):
        load_inputs(path, INTERFACE)
    with pytest.raises(DataError, match="no such file"):
        load_inputs(tmp_path / "none.npz", INTERFACE)


def test_pickles_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, input_ids=np.array([{}], dtype=object))
    with pytest.raises(DataError, match=r"expected an \.npz file"):
        load_inputs(path, INTERFACE)


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    path.write_text("precious")
    batches = [Batch("shapes", {"a": ids((9, 9))}), Batch("x", {"a": Unsavable()})]  # type: ignore
    with pytest.raises(RuntimeError, match="gone"):
        save_inputs(path, batches)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.npz"]
    assert path.read_text() == "precious"
    with pytest.raises(OutputError, match="does not exist"):
        save_inputs(tmp_path / "none" / "a.npz", [])
    with pytest.raises(OutputError, match=r"ending in \.npz"):
        save_inputs(tmp_path / "a.bin", [])


class Unsavable:
    """An array that cannot be read."""

    def __array__(self, *_: object, **__: object) -> np.ndarray:
        raise RuntimeError("gone")
