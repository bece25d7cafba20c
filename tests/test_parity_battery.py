from dataclasses import replace

import numpy as np
import pytest

from mixout_export.checkpoint.interface import ModelInterface
from mixout_export.checkpoint.model_inputs import CHOICES, Batch
from mixout_export.errors import ArgumentError
from mixout_export.parity.battery import Battery, build_battery

INTERFACE = ModelInterface(
    inputs=("input_ids", "attention_mask", "token_type_ids"),
    outputs=("logits",),
    vocabulary_size=1000,
    sequence_limit=50,
    segments=2,
    pad_token_id=3,
)


def named(battery: Battery, name: str) -> list[dict[str, np.ndarray]]:
    return [dict(batch.inputs) for batch in battery.batches if batch.name == name]


def test_every_vocabulary_id_is_used() -> None:
    used = {int(i) for b in build_battery(INTERFACE).batches for i in b.inputs["input_ids"].ravel()}
    assert used == set(range(1000))


def test_every_position_is_used_in_each_segment() -> None:
    batches = named(build_battery(INTERFACE), "positions")
    segments = [set(batch["token_type_ids"].ravel().tolist()) for batch in batches]
    assert segments == [{0}, {1}]
    assert all(batch["input_ids"].shape == (1, 50) for batch in batches)
    assert all(batch["attention_mask"].all() for batch in batches)


def test_shapes_are_swept_from_one_token_to_many_rows() -> None:
    shapes = {batch["input_ids"].shape for batch in named(build_battery(INTERFACE), "shapes")}
    assert {(1, 1), (2, 1), (3, 5), (8, 50)} <= shapes
    assert max(length for _, length in shapes) == 50


def test_padding_is_on_the_right_and_leaves_each_row_a_token() -> None:
    batches = named(build_battery(INTERFACE), "padding")
    assert batches
    for batch in batches:
        mask = batch["attention_mask"]
        assert (mask[:, 0] == 1).all()
        assert (np.diff(mask, axis=1) <= 0).all()
        assert mask.sum(axis=1).min() == 1
        assert mask.sum(axis=1).max() == mask.shape[1]
        assert (batch["input_ids"][mask == 0] == 3).all()
        assert (batch["input_ids"][mask == 1] != 3).all()
        assert (batch["token_type_ids"][mask == 0] == 0).all()


def test_padding_is_on_the_left_where_the_model_takes_that() -> None:
    assert named(build_battery(INTERFACE), "left padding") == []
    (batch,) = named(build_battery(replace(INTERFACE, left_padding=True)), "left padding")
    mask = batch["attention_mask"]
    assert (np.diff(mask, axis=1) >= 0).all()
    assert (mask[:, -1] == 1).all()
    assert mask.sum(axis=1).min() == 1
    assert (batch["input_ids"][mask == 0] == 3).all()


def test_rows_end_with_the_token_that_they_must_end_with_and_hold_no_other() -> None:
    battery = build_battery(replace(INTERFACE, final_token_id=7))
    seen: set[int] = set()
    for batch in battery.batches:
        ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
        assert ((ids == 7).sum(axis=1) == 1).all(), batch.name
        last = ids.shape[1] - 1 - np.argmax(mask[:, ::-1], axis=1)
        assert (ids[np.arange(len(ids)), last] == 7).all(), batch.name
        seen |= set(ids[mask != 0].tolist())
    assert seen >= set(range(1000)) - {3}


def test_inputs_are_valid_int64_of_one_shape() -> None:
    for batch in build_battery(INTERFACE).batches:
        assert list(batch.inputs) == list(INTERFACE.inputs)
        assert {array.shape for array in batch.inputs.values()} == {batch.shape}
        assert {array.dtype for array in batch.inputs.values()} == {np.dtype(np.int64)}
        assert batch.shape[1] <= 50
        assert batch.inputs["token_type_ids"].max() <= 1


def test_same_seed_gives_the_same_battery_and_another_does_not() -> None:
    def flat(seed: int) -> list[bytes]:
        batches = build_battery(INTERFACE, seed=seed).batches
        return [array.tobytes() for batch in batches for array in batch.inputs.values()]

    assert flat(0) == flat(0)
    assert flat(0) != flat(1)


def test_large_vocabulary_is_sampled_with_both_ends() -> None:
    battery = build_battery(INTERFACE, vocabulary_budget=100)
    ids = np.concatenate([b["input_ids"].ravel() for b in named(battery, "vocabulary")])
    assert set(range(25)) | set(range(975, 1000)) <= set(ids.tolist())
    assert len(ids) < 200
    assert (battery.coverage.vocabulary, battery.coverage.vocabulary_size) == (100, 1000)


def test_unbounded_positions_are_bounded() -> None:
    for limit in (None, 131_072):
        battery = build_battery(replace(INTERFACE, sequence_limit=limit))
        assert battery.coverage.positions == 512
        assert battery.coverage.position_limit == limit


def test_choices_get_a_dimension() -> None:
    battery = build_battery(replace(INTERFACE, choices=True))
    assert all(len(batch.shape) == 3 and batch.shape[1] == CHOICES for batch in battery.batches)


def test_model_without_a_mask_is_not_padded_without_a_padding_id() -> None:
    interface = replace(INTERFACE, inputs=("input_ids",), pad_token_id=None)
    assert named(build_battery(interface), "padding") == []


def test_unknown_input_is_refused_by_name() -> None:
    with pytest.raises(ArgumentError, match=r"'pixel_values'.*input_ids"):
        build_battery(replace(INTERFACE, inputs=("input_ids", "pixel_values")))


def test_a_row_that_is_all_padding_stands_between_two_that_are_not() -> None:
    (batch,) = (b for b in build_battery(INTERFACE).batches if b.name == "masked")
    assert batch.undefined_rows.tolist() == [False, True, False]
    others = [b for b in build_battery(INTERFACE).batches if b.name != "masked"]
    assert not any(b.undefined_rows.any() for b in others)


def test_a_row_of_choices_is_undefined_if_one_choice_is_all_padding() -> None:
    mask = np.ones((3, 2, 4), dtype=np.int64)
    mask[1, 1] = 0
    assert Batch("x", {"attention_mask": mask}).undefined_rows.tolist() == [False, True, False]
