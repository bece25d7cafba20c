import pytest
import torch
from torch.nn.attention import SDPBackend
from torch.nn.functional import scaled_dot_product_attention

from mixout_export.training.attention import step_attention


@pytest.mark.parametrize(
    ("tokens", "device", "half", "plain"),
    [
        (128, "cpu", True, True),
        (128, "cpu", False, False),
        (1024, "cpu", True, False),
        (128, "cuda", True, False),
    ],
)
def test_plain_attention_where_it_is_faster(
    tokens: int, device: str, half: bool, plain: bool
) -> None:
    batch = {"input_ids": torch.zeros(2, tokens), "labels": torch.zeros(2)}
    query = torch.randn(1, 1, 4, 8)
    with step_attention(batch, torch.device(device), half=half):
        chosen = torch._fused_sdp_choice(query, query, query)
        scaled_dot_product_attention(query, query, query)
    assert (SDPBackend(chosen) == SDPBackend.MATH) == plain
