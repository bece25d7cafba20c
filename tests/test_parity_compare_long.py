import numpy as np
import pytest

from mixout_export.checkpoint.model_inputs import Batch
from mixout_export.parity import compare
from mixout_export.parity.compare import OutputComparison, OutputDifference, Tolerance

WORDS = 50


def difference(chunk: int, monkeypatch: pytest.MonkeyPatch) -> OutputDifference:
    monkeypatch.setattr(compare, "_CHUNK", chunk)
    random = np.random.default_rng(0)
    reference = random.standard_normal((3, 40, WORDS)).astype(np.float32)
    candidate = reference + random.normal(0, 1e-6, reference.shape).astype(np.float32)
    candidate[1, 33] = np.roll(reference[1, 33], 1)
    mask = np.ones((3, 40), dtype=np.int64)
    mask[2, :25] = 0
    comparison = OutputComparison(
        "logits", Tolerance(1e-5, 1e-4), decision="argmax", per_token=True
    )
    batch = Batch("long", {"input_ids": np.arange(120).reshape(3, 40), "attention_mask": mask})
    comparison.add(batch, reference, candidate)
    return comparison.result()


@pytest.mark.parametrize("chunk", [1, WORDS, 7 * WORDS, 41 * WORDS])
def test_a_row_compared_piece_by_piece_gives_what_it_gives_as_a_whole(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = difference(10**9, monkeypatch)
    pieces = difference(chunk, monkeypatch)
    assert whole.decisions == pieces.decisions == 95
    assert whole.flips == pieces.flips == 1
    assert [(flip.row, flip.index) for flip in pieces.flip_examples] == [(1, (33,))]
    assert pieces.flip_examples == whole.flip_examples
    assert (pieces.exceeding, pieces.histogram) == (whole.exceeding, whole.histogram)
    assert pieces.max_abs == whole.max_abs
    assert pieces.mean_abs == pytest.approx(whole.mean_abs, rel=1e-12)
    assert pieces.mean_shift == pytest.approx(whole.mean_shift, rel=1e-12)


def test_what_is_decided_over_a_whole_row_is_not_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "_CHUNK", 1)
    scores = np.array([[0.1, 0.2, 0.9, 0.3]], dtype=np.float32)
    comparison = OutputComparison("start_logits", None, decision="argmax", per_token=True)
    batch = Batch("answers", {"attention_mask": np.array([[1, 1, 1, 0]])})
    comparison.add(batch, scores, scores[:, [0, 2, 1, 3]])
    assert (comparison.result().decisions, comparison.result().flips) == (1, 1)
