"""Models that pool along the sequence do not run on one token; what is compared fits them."""

from pathlib import Path

import pytest
import torch
from transformers import FunnelConfig, FunnelForSequenceClassification

from mixout_export.checkpoint.folder import open_checkpoint
from mixout_export.parity.battery import build_battery


@pytest.fixture
def funnel(tmp_path: Path) -> Path:
    """A tiny Funnel Transformer, whose third block sees a quarter of the tokens."""
    torch.manual_seed(0)
    config = FunnelConfig(
        vocab_size=64,
        block_sizes=[1, 1, 1],
        d_model=16,
        n_head=2,
        d_head=8,
        d_inner=16,
        num_labels=2,
    )
    FunnelForSequenceClassification(config).save_pretrained(tmp_path / "funnel")
    return tmp_path / "funnel"


def test_the_shortest_sequence_is_found_by_running(funnel: Path) -> None:
    checkpoint = open_checkpoint(funnel)
    shortest = checkpoint.interface.shortest_sequence
    assert shortest > 1
    runner = checkpoint.runner(checkpoint.interface.inputs)
    battery = build_battery(checkpoint.interface)
    assert min(batch.shape[-1] for batch in battery.batches) == shortest
    for batch in battery.batches[:8]:
        runner.run(batch.inputs)
