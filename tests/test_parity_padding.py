from dataclasses import replace

import numpy as np
import pytest

from mixout_export.checkpoint.interface import ModelInterface
from mixout_export.checkpoint.model_inputs import Batch
from mixout_export.parity.compare import Tolerance
from mixout_export.parity.padding import PaddingCheck, PaddingEffect, check_padding

INTERFACE = ModelInterface(
    ("input_ids", "attention_mask"), ("logits",), vocabulary_size=50, sequence_limit=128
)
TOLERANCE = Tolerance(1e-5, 1e-4)
TASK = "text-classification"


class Runner:
    """Logits (a, -a): a is the mean id of the tokens, plus shares of what is around the row."""

    inputs, outputs = INTERFACE.inputs, ("logits",)

    def __init__(self, share: float = 0.0, *, left: float = 0.0, batch: float = 0.0) -> None:
        self.share, self.left, self.batch = share, left, batch

    def run(self, inputs):
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        mean = (ids * mask).sum(axis=1) / mask.sum(axis=1) - 25.0
        a = mean + self.share * (1 - mask).sum(axis=1) + self.left * mask.argmax(axis=1)
        a = a + self.batch * (mean.mean() - mean)
        return {"logits": np.stack([a, -a], axis=1)}


def check(candidate: Runner, reference: Runner | None = None, **changes) -> PaddingCheck:
    options = {"task": TASK, "tolerance": TOLERANCE, **changes}
    return check_padding(candidate, INTERFACE, reference=reference or Runner(), **options)


def named(check: PaddingCheck) -> dict[str, PaddingEffect]:
    return {effect.around: effect for effect in check.effects}


def test_result_of_a_row_that_stays_the_same() -> None:
    found = check(Runner())
    assert list(named(found)) == ["neighbors", "right", "left"]
    assert all(effect.judged and effect.moves == 0.0 for effect in found.effects)
    assert found.holds
    assert (found.reasons, found.notes()) == ((), ())
    assert named(found)["right"].widths == (64, 128)
    assert found.sentences == (
        "the result of a row changes by at most 0 beside other rows, 0 padded on the right, 0 "
        "padded on the left",
    )


@pytest.mark.parametrize(
    ("fault", "fails", "words"),
    [
        ({"share": 1.0}, {"right", "left"}, ("padded on the right", "reads padding as text")),
        ({"left": 1.0}, {"left"}, ("padded on the left", "position ids follow it")),
        ({"batch": 1.0}, {"neighbors", "right", "left"}, ("beside other rows", "mixes the rows")),
    ],
)
def test_result_that_depends_on_what_is_around_it(fault, fails, words) -> None:
    found = check(Runner(**fault))
    assert not found.holds
    assert {effect.around for effect in found.effects if not effect.holds} == fails
    assert len(found.reasons) == len(fails)
    assert all(word in found.reasons[0] for word in words)
    assert "expected at most 1e-05 + 0.0001·|result|" in found.reasons[0]
    assert "the reference's changes by up to 0;" in found.reasons[0]


def test_what_the_reference_depends_on_is_told_and_not_judged() -> None:
    found = check(Runner(left=2.0), Runner(left=1.0))
    assert found.holds
    assert not named(found)["left"].judged
    assert found.notes() == (
        "a row padded on the left gets other results from the reference itself, by up to 119, so "
        "this is not judged; pad texts on the right",
    )
    both = check(Runner(share=1.0), Runner(share=1.0))
    assert both.holds
    assert [note.partition("; ")[2] for note in both.notes()] == ["", ""]


def test_predictions_that_change_are_counted_where_values_are_not_judged() -> None:
    found = check(Runner(10.0, left=1.0), Runner(left=1.0), tolerance=None)
    assert list(named(found)) == ["neighbors", "right"]
    (output,) = named(found)["right"].outputs
    assert (named(found)["right"].rows, output.decisions) == (32, 3 * 32)
    assert output.flips > 0
    assert found.counts == (
        f"{output.flips} of 96 predictions change when a text is padded on the right to 64 or 128 "
        "tokens or is in a batch with others, and probabilities move by up to 1",
    )
    assert found.holds


def test_without_a_reference_the_interface_says_which_sides_count() -> None:
    for interface, sides in (
        (INTERFACE, ["neighbors", "right"]),
        (replace(INTERFACE, left_padding=True), ["neighbors", "right", "left"]),
    ):
        found = check_padding(Runner(), interface, task=TASK, tolerance=None)
        assert list(named(found)) == sides


def test_the_users_own_texts_are_run_without_their_padding() -> None:
    ids = np.array([[7, 8, 9, 0], [0, 3, 4, 0]])
    data = Batch("data", {"input_ids": ids, "attention_mask": (ids != 0).astype(np.int64)})
    found = check(Runner(1.0), task="regression", tolerance=None, data=[data])
    effect = named(found)["right"]
    (output,) = effect.outputs
    assert (effect.rows, effect.widths, output.decisions) == (2, (64, 128), 0)
    assert output.max_abs == 126.0  # the row of two tokens at 128
    assert found.counts[0].startswith("logits moves by up to 126 when a text is padded on the rig")


class Tagger:
    """A value for each token: its id, or without a mask its place."""

    inputs, outputs = INTERFACE.inputs, ("logits",)

    def __init__(self, places: bool = False) -> None:
        self.places = places

    def run(self, inputs):
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        values = np.arange(ids.shape[1]) + 0 * ids if self.places else ids * mask - 7.0 * (1 - mask)
        return {"logits": np.stack([values, -values], axis=2).astype(np.float64)}


def test_only_real_tokens_are_compared() -> None:
    found = check(Tagger(), Tagger(), task="token-classification")
    assert found.holds
    assert all(effect.judged and effect.moves == 0.0 for effect in found.effects)
    moved = check(Tagger(places=True), Tagger(), task="token-classification")
    assert {effect.around for effect in moved.effects if not effect.holds} == {"left"}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"inputs": ("input_ids",)}, "the model takes no attention_mask"),
        ({"shortest_sequence": 128}, "the model takes only sequences of 128 tokens"),
    ],
)
def test_rows_that_cannot_be_padded_are_only_joined(changes: dict, why: str) -> None:
    class Free(Runner):
        def run(self, inputs):
            ids = inputs["input_ids"]
            return super().run({"input_ids": ids, "attention_mask": np.ones_like(ids)})

    found = check_padding(
        Free(), replace(INTERFACE, **changes), reference=Free(), task=TASK, tolerance=TOLERANCE
    )
    assert list(named(found)) == ["neighbors"]
    assert found.holds
    assert found.notes()[0].startswith(f"padding was not tested, because {why}")


def test_images_are_only_joined() -> None:
    class Images:
        inputs, outputs = ("pixel_values",), ("logits",)

        def run(self, inputs):
            return {"logits": inputs["pixel_values"].mean(axis=(2, 3))}

    interface = ModelInterface(("pixel_values",), ("logits",), vocabulary_size=0, image=(3, 8, 8))
    found = check_padding(Images(), interface, reference=Images(), task=None, tolerance=TOLERANCE)
    assert list(named(found)) == ["neighbors"]
    assert "takes images, which are not padded" in found.notes()[0]


def test_an_unknown_input_is_told() -> None:
    interface = replace(INTERFACE, inputs=("input_ids", "langs"))
    found = check_padding(Runner(), interface, task=TASK, tolerance=None)
    assert found.effects == ()
    assert "input 'langs': no values are known" in found.not_padded
