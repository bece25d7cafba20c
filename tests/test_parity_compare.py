import math
from dataclasses import replace

import numpy as np
import pytest

from mixout_export.checkpoint.model_inputs import Batch
from mixout_export.parity.compare import (
    OutputComparison,
    OutputDifference,
    Tolerance,
    decision_of,
    is_per_token,
)

TOLERANCE = Tolerance(atol=0.1, rtol=0.0)


def batch(rows: int, length: int, mask: list[list[int]] | None = None) -> Batch:
    ids = np.zeros((rows, length), dtype=np.int64)
    attention = np.ones_like(ids) if mask is None else np.array(mask, dtype=np.int64)
    return Batch("shapes", {"input_ids": ids, "attention_mask": attention})


def compare(
    reference: list, candidate: list, where: Batch | None = None, **options
) -> OutputDifference:
    comparison = OutputComparison("logits", options.pop("tolerance", TOLERANCE), **options)
    left, right = np.array(reference, dtype=np.float32), np.array(candidate, dtype=np.float32)
    comparison.add(where or batch(len(left), 4), left, right)
    return comparison.result()


def test_differences_follow_their_definitions() -> None:
    found = compare([[1.0, 2.0], [-4.0, 0.0]], [[1.0, 2.5], [-4.0, 0.05]])
    assert found.max_abs == pytest.approx(0.5)
    assert found.mean_abs == pytest.approx(0.55 / 4)
    assert found.max_relative == pytest.approx(0.25)
    assert (found.elements, found.exceeding, found.holds) == (4, 1, False)
    assert (found.worst_batch, found.worst_shape) == ("shapes", (2, 4))


def test_relative_tolerance_grows_with_the_reference() -> None:
    tolerance = Tolerance(atol=0.0, rtol=0.01)
    assert compare([[100.0]], [[100.9]], tolerance=tolerance).holds
    assert not compare([[100.0]], [[101.1]], tolerance=tolerance).holds


def test_rows_compared_in_pieces_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    left = random.normal(size=(7, 3, 5))
    right = left + random.normal(size=left.shape)
    where = batch(7, 3, [[1, 1, 0]] * 6 + [[1, 0, 0]])
    options = {"per_token": True, "decision": "argmax"}
    whole = compare(left, right, where, **options)
    monkeypatch.setattr("mixout_export.parity.compare._CHUNK", 20)
    pieces = compare(left, right, where, **options)
    assert whole.elements == 13 * 5
    assert whole.flips > 0
    sums = ("mean_abs", "relative_l2", "mean_shift")
    for name in sums:
        assert getattr(pieces, name) == pytest.approx(getattr(whole, name))
    assert pieces.by_batch["shapes"].flips == whole.flips
    same = dict.fromkeys(sums, 0.0) | {"by_batch": {}}
    assert replace(pieces, **same) == replace(whole, **same)


def test_the_worst_batch_is_kept_over_batches() -> None:
    comparison = OutputComparison("logits", TOLERANCE)
    for length, shift in ((2, 0.01), (3, 0.04), (5, 0.02)):
        comparison.add(batch(1, length), np.zeros((1, 2)), np.full((1, 2), shift))
    found = comparison.result()
    assert found.worst_shape == (1, 3)
    assert found.mean_abs == pytest.approx(0.07 / 3)
    assert found.holds


@pytest.mark.parametrize(
    ("reference", "candidate"), [(math.nan, 0.0), (0.0, math.nan), (math.nan,) * 2]
)
def test_nan_on_any_side_fails(reference: float, candidate: float) -> None:
    found = compare([[1.0, reference]], [[1.0, candidate]])
    assert (found.not_a_number, found.exceeding, found.holds) == (1, 1, False)
    assert found.max_abs == math.inf


def test_equal_infinities_are_equal_and_others_are_not() -> None:
    assert compare([[math.inf, -math.inf]], [[math.inf, -math.inf]]).holds
    assert not compare([[math.inf]], [[-math.inf]]).holds
    assert not compare([[math.inf]], [[1.0]]).holds


def test_other_shape_is_a_problem_that_names_both() -> None:
    found = compare([[1.0, 2.0]], [[1.0, 2.0, 3.0]])
    assert not found.holds
    assert "(1, 3)" in found.problem
    assert "(1, 2)" in found.problem


def test_nothing_compared_does_not_hold() -> None:
    assert not OutputComparison("logits", TOLERANCE).result().holds


def test_flips_are_counted_by_the_tasks_decision() -> None:
    left, right = [[1.0, 2.0], [3.0, 1.0]], [[2.0, 1.0], [3.0, 1.0]]
    assert compare(left, right, decision="argmax").agreement == 0.5
    assert compare([[1.0, -1.0]], [[1.0, 1.0]], decision="sign").agreement == 0.5
    assert compare(left, right).agreement is None


def test_padding_of_per_token_outputs_is_left_out() -> None:
    where = batch(1, 3, [[1, 1, 0]])
    left, right = [[[1.0, 0.0], [1.0, 0.0], [9.0, 0.0]]], [[[1.0, 0.0], [1.0, 0.0], [0.0, 9.0]]]
    found = compare(left, right, where, per_token=True, decision="argmax")
    assert (found.elements, found.decisions, found.flips, found.holds) == (4, 2, 0, True)
    assert not compare(left, right, where).holds


def test_padding_is_not_chosen_as_an_answers_start() -> None:
    where = batch(1, 3, [[1, 1, 0]])
    found = compare([[1.0, 2.0, 9.0]], [[1.0, 2.0, 0.0]], where, per_token=True, decision="argmax")
    assert (found.flips, found.holds) == (0, True)


def test_logits_as_wide_as_the_sequence_are_not_taken_for_tokens() -> None:
    where = batch(1, 2, [[1, 0]])
    assert not compare([[1.0, 2.0]], [[1.0, 3.0]], where).holds


@pytest.mark.parametrize(
    ("task", "output", "decision", "per_token"),
    [
        ("text-classification", "logits", "argmax", False),
        ("regression", "logits", None, False),
        ("multi-label", "logits", "sign", False),
        ("token-classification", "logits", "argmax", True),
        ("question-answering", "end_logits", "argmax", True),
        ("multiple-choice", "logits", "argmax", False),
        ("causal-lm", "logits", "argmax", True),
        (None, "last_hidden_state", None, True),
    ],
)
def test_tasks_decide_from_their_outputs(
    task: str | None, output: str, decision: str | None, per_token: bool
) -> None:
    assert decision_of(task, output) == decision
    assert is_per_token(task, output) is per_token


def test_result_converts_to_plain_values() -> None:
    plain = compare([[1.0, 2.0]], [[1.0, 2.0]], decision="argmax").to_dict()
    assert plain["holds"] is True
    assert plain["agreement"] == 1.0
    assert plain["worst_shape"] == [1, 4]
    assert compare([[1.0]], [[math.nan]]).to_dict()["max_abs"] is None


def test_a_row_that_is_all_padding_is_reported_and_not_judged() -> None:
    where = batch(3, 2, [[1, 1], [0, 0], [1, 0]])
    found = compare([[1.0], [2.0], [3.0]], [[1.0], [9.0], [3.5]], where, decision="sign")
    assert (found.max_abs, found.undefined_max_abs) == (0.5, 7.0)
    assert (found.elements, found.decisions) == (2, 2)
    assert compare([[1.0], [2.0]], [[1.0], [2.0]]).undefined_max_abs is None


def test_what_a_row_that_is_all_padding_does_to_its_neighbors_is_judged() -> None:
    where = batch(3, 2, [[1, 1], [0, 0], [1, 1]])
    assert not compare([[1.0], [2.0], [3.0]], [[1.0], [2.0], [math.nan]], where).holds


def test_a_flips_positions_are_those_of_its_inputs() -> None:
    where = batch(1, 5, [[0, 1, 1, 1, 0]])
    where.inputs["input_ids"][0] = [0, 7, 8, 9, 0]
    left, right = np.zeros((1, 5, 2)), np.zeros((1, 5, 2))
    left[0, 3, 0] = right[0, 3, 1] = 1.0
    (flip,) = compare(left, right, where, per_token=True, decision="argmax").flip_examples
    assert flip.inputs["input_ids"] == [0, 7, 8, 9]
    assert flip.inputs["input_ids"][flip.index[0]] == 9
