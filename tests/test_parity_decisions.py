import math

import numpy as np
import pytest

from mixout_export.checkpoint.model_inputs import Batch
from mixout_export.parity.compare import (
    HISTOGRAM_EDGES,
    OutputComparison,
    OutputDifference,
    Tolerance,
)
from mixout_export.parity.decisions import DECISION_LIMITS, FLIP_EXAMPLES, DecisionLimits


def batch(rows: int, length: int = 4, *, name: str = "shapes", real: int | None = None) -> Batch:
    ids = np.arange(rows * length, dtype=np.int64).reshape(rows, length)
    mask = np.zeros_like(ids)
    mask[:, : length if real is None else real] = 1
    return Batch(name, {"input_ids": ids, "attention_mask": mask})


def compare(
    *pairs: tuple[Batch, list, list], limits: DecisionLimits | None = None, **options
) -> OutputDifference:
    options = {"decision": "argmax", **options}
    comparison = OutputComparison("logits", None, limits=limits, **options)
    for where, left, right in pairs:
        comparison.add(where, np.array(left, np.float32), np.array(right, np.float32))
    return comparison.result()


def sigmoid(value: float) -> float:
    return 1.0 / (1.0 + math.exp(-value))


def test_shift_of_two_labels_is_the_difference_of_probability() -> None:
    found = compare((batch(2), [[0.0, 1.0], [2.0, 0.0]], [[0.0, 0.5], [2.0, 0.0]]))
    expected = sigmoid(1.0) - sigmoid(0.5)
    assert found.max_shift == pytest.approx(expected, rel=1e-6)
    assert found.mean_shift == pytest.approx(expected / 2, rel=1e-6)


def test_shift_of_many_labels_is_the_total_variation() -> None:
    left, right = np.log([0.5, 0.3, 0.2]), np.log([0.2, 0.3, 0.5])
    found = compare((batch(1), [left.tolist()], [right.tolist()]))
    assert found.max_shift == pytest.approx(0.3, rel=1e-5)


def test_each_label_of_several_has_a_shift_of_its_own() -> None:
    found = compare((batch(1), [[1.0, -1.0]], [[1.0, 0.5]]), decision="sign")
    assert (found.decisions, found.flips) == (2, 1)
    assert found.max_shift == pytest.approx(sigmoid(0.5) - sigmoid(-1.0), rel=1e-6)


def test_not_a_number_moves_everything() -> None:
    found = compare((batch(1), [[1.0, 0.0]], [[math.nan, 0.0]]))
    assert found.max_shift == 1.0


def test_flip_says_where_how_sure_and_on_what() -> None:
    where = batch(3, 4, name="padding", real=2)
    left = [[1.0, 0.0], [0.0, 3.0], [0.0, 0.5]]
    right = [[1.0, 0.0], [4.0, 3.0], [1.0, 0.5]]
    found = compare((batch(1), [[0.0, 1.0]], [[0.0, 1.0]]), (where, left, right))
    first, second = found.flip_examples
    assert (first.batch, first.batch_number, first.row, first.index) == ("padding", 1, 1, ())
    assert (first.reference, first.candidate) == (1, 0)
    assert first.margin == pytest.approx(3.0)
    assert first.shift == pytest.approx(sigmoid(3.0) - sigmoid(-1.0), rel=1e-6)
    assert first.inputs == {"input_ids": [4, 5], "attention_mask": [1, 1]}
    assert (second.row, second.margin) == (2, pytest.approx(0.5))


def test_flip_of_a_token_and_of_a_label_names_it() -> None:
    left, right = [[[1.0, 0.0], [1.0, 0.0]]], [[[1.0, 0.0], [0.0, 1.0]]]
    (token,) = compare((batch(1, 2), left, right), per_token=True).flip_examples
    assert token.index == (1,)
    (label,) = compare((batch(1), [[1.0, -1.0]], [[1.0, 1.0]]), decision="sign").flip_examples
    assert (label.index, label.reference, label.candidate) == ((1,), 0, 1)


def test_the_widest_flips_are_kept() -> None:
    count = FLIP_EXAMPLES + 5
    margins = np.random.default_rng(0).permutation(count) + 1.0
    left = np.stack([margins, np.zeros(count)], axis=1)
    found = compare((batch(count), left.tolist(), (-left).tolist()))
    assert found.flips == count
    kept = [flip.margin for flip in found.flip_examples]
    assert kept == sorted(margins, reverse=True)[:FLIP_EXAMPLES]


def test_flips_on_the_users_data_are_kept_before_wider_ones() -> None:
    narrow, wide = ([[margin, 0.0]] * FLIP_EXAMPLES for margin in (0.5, 9.0))
    other = [[0.0, 1.0]] * FLIP_EXAMPLES
    mine = batch(FLIP_EXAMPLES, name="data")
    found = compare((mine, narrow, other), (batch(FLIP_EXAMPLES), wide, other))
    assert [flip.batch for flip in found.flip_examples] == ["data"] * FLIP_EXAMPLES


def test_decisions_are_counted_by_batch() -> None:
    same, other = [[1.0, 0.0]], [[0.0, 1.0]]
    found = compare(
        (batch(1), same, same), (batch(1), same, other), (batch(1, name="data"), same, same)
    )
    assert {name: c.agreement for name, c in found.by_batch.items()} == {"shapes": 0.5, "data": 1.0}


@pytest.mark.parametrize(("gap", "judged"), [(0.05, 0), (0.3, 1)])
def test_without_data_only_sure_decisions_are_judged(gap: float, judged: int) -> None:
    left, right = [[gap, 0.0]], [[0.0, 0.1]]
    found = compare((batch(1), left, right), limits=DecisionLimits(agreement=1.0))
    assert found.judged is not None
    assert (found.flips, found.judged.decisions, found.judged.flips) == (1, judged, judged)
    assert found.holds is (judged == 0)


def test_data_decides_alone_and_every_decision_of_it_counts() -> None:
    close, flipped, clear = [[0.01, 0.0]], [[0.0, 0.01]], [[9.0, 0.0]]
    limits = DecisionLimits(agreement=1.0)
    data = batch(1, name="data")
    assert not compare((data, close, flipped), limits=limits).holds
    assert not compare((batch(1), clear, [[0.0, 9.0]]), limits=limits).holds
    both = compare((batch(1), clear, [[0.0, 9.0]]), (data, close, close), limits=limits)
    assert both.holds
    assert "1 decisions on the data" in compare((data, close, flipped), limits=limits).shortfall


def test_accepting_fewer_equal_decisions_lifts_the_limit_for_probabilities() -> None:
    usual = DecisionLimits(agreement=0.97, mean_shift=0.05, relative_l2=0.3)
    assert usual.accepting(0.9) == DecisionLimits(agreement=0.9, relative_l2=0.3)
    assert usual.accepting(0.97) == usual
    assert usual.accepting(1.0).mean_shift == 0.05
    assert DecisionLimits().accepting(0.9) == DecisionLimits(agreement=0.9)


def test_bounds_say_what_was_missed() -> None:
    left, right = [[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]
    found = compare((batch(2), left, right), limits=DECISION_LIMITS["int8"])
    assert found.shortfall == "agrees on 50.00 % of 2 sure decisions, expected at least 97.00 %"
    found = compare((batch(1), [[3.0, 0.0]], [[1.0, 0.0]]), limits=DecisionLimits(mean_shift=0.1))
    assert "changes probabilities by 0.222 on average" in found.shortfall


def test_outputs_without_decisions_are_judged_by_their_norm() -> None:
    left, right = [[3.0, 4.0]], [[3.0, 4.5]]
    found = compare((batch(1), left, right), decision=None, limits=DecisionLimits(relative_l2=0.2))
    assert (found.relative_l2, found.holds) == (pytest.approx(0.1), True)
    found = compare((batch(1), left, right), decision=None, limits=DecisionLimits(relative_l2=0.05))
    assert found.shortfall == "differs by 0.1 of its norm, expected at most 0.05"


def test_values_that_are_not_judged_must_still_be_finite() -> None:
    assert not compare((batch(1), [[1.0, 0.0]], [[math.inf, 0.0]])).holds
    assert not compare((batch(1), [[1.0, 0.0]], [[math.nan, 0.0]])).holds
    assert compare((batch(1), [[1.0, 0.0]], [[99.0, 0.0]])).holds


def test_histogram_counts_by_decade() -> None:
    sizes = [0.0, 3e-11, 1e-10, 5e-7, 9e-7, 0.5, 100.0, 1e9]
    comparison = OutputComparison("logits", Tolerance(1.0, 0.0))
    values = np.array([sizes])
    comparison.add(batch(1), np.zeros_like(values), values)
    comparison.add(batch(1), np.zeros((1, 1)), np.array([[math.nan]]))
    counts = dict(zip(["0", "less", *HISTOGRAM_EDGES], comparison.result().histogram, strict=True))
    found = {edge: count for edge, count in counts.items() if count}
    assert found == {"0": 1, "less": 1, 1e-10: 1, 1e-7: 2, 0.1: 1, 100.0: 3}


def test_result_converts_to_plain_values() -> None:
    plain = compare((batch(1, name="data"), [[1.0, 0.0]], [[0.0, 1.0]])).to_dict()
    assert plain["by_batch"]["data"]["agreement"] == 0.0
    assert plain["flip_examples"][0]["inputs"]["input_ids"] == [0, 1, 2, 3]
    assert len(plain["histogram"]) == len(HISTOGRAM_EDGES) + 2
