import numpy as np
import pytest

from mixout_export.checkpoint.interface import ModelInterface
from mixout_export.checkpoint.model_inputs import Batch
from mixout_export.parity.padding import measure_padding

INTERFACE = ModelInterface(
    ("input_ids", "attention_mask"), ("logits",), vocabulary_size=50, sequence_limit=128
)


class Runner:
    """Logits (a, -a): a is the mean id of the tokens, plus a share of the padding."""

    inputs, outputs = INTERFACE.inputs, ("logits",)

    def __init__(self, share: float) -> None:
        self.share = share

    def run(self, inputs):
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        mean = (ids * mask).sum(axis=1) / mask.sum(axis=1) - 25.0
        a = mean + self.share * (1 - mask).sum(axis=1)
        return {"logits": np.stack([a, -a], axis=1)}


def test_result_that_ignores_padding_does_not_move() -> None:
    effect = measure_padding(Runner(0.0), INTERFACE, task="text-classification")
    assert effect is not None
    (output,) = effect.outputs
    assert (effect.rows, effect.widths) == (32, (64, 128))
    assert (output.decisions, output.flips, output.max_abs) == (3 * 32, 0, 0.0)


def test_result_that_depends_on_padding_is_told() -> None:
    effect = measure_padding(Runner(10.0), INTERFACE, task="text-classification")
    assert effect is not None
    (output,) = effect.outputs
    assert output.flips > 0
    assert output.max_shift > 0.9
    assert effect.sentences == (
        f"{output.flips} of 96 predictions change when a text is padded to 64 or 128 tokens or is "
        "in a batch with others, and probabilities move by up to 1",
    )


def test_the_users_own_texts_are_run_without_their_padding() -> None:
    ids = np.array([[7, 8, 9, 0], [0, 3, 4, 0]])
    data = Batch("data", {"input_ids": ids, "attention_mask": (ids != 0).astype(np.int64)})
    effect = measure_padding(Runner(1.0), INTERFACE, task="regression", data=[data])
    assert effect is not None
    (output,) = effect.outputs
    assert (effect.rows, effect.widths, output.decisions) == (2, (64, 128), 0)
    assert output.max_abs == 126.0  # the row of two tokens at 128
    assert effect.sentences[0].startswith("logits moves by up to 126 when a text is padded to 64")


@pytest.mark.parametrize("inputs", [("input_ids",), ("attention_mask", "pixel_values")])
def test_rows_that_cannot_be_padded_are_left_out(inputs: tuple[str, ...]) -> None:
    interface = ModelInterface(inputs, ("logits",), vocabulary_size=50)
    assert measure_padding(Runner(0.0), interface, task="text-classification") is None
