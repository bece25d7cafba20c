import onnx_ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from matrix.tiny import make_classifier
from mixout_export.errors import ExportError
from mixout_export.export.graph import capture
from mixout_export.export.tracing import traceable


class Shifting(nn.Module):
    """Shifts ids to the right in place and drops an axis, as encoder-decoders do."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[0.5]]))

    def forward(self, ids: Tensor) -> Tensor:
        shifted = ids.new_zeros(ids.shape)
        shifted[:, 1:] = ids[:, :-1].clone()
        shifted[:, 0] = ids[:, :1].squeeze()
        return shifted + 1 + self.weight


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return x * (1.0 + self.weight)


class Looping(nn.Module):
    def forward(self, ids: Tensor) -> Tensor:
        total = ids[:, 0]
        for position in range(1, ids.shape[1]):
            total = total * 2 + ids[:, position]
        return total


@pytest.fixture(scope="module")
def mixture() -> nn.Module:
    return make_classifier("mixtral")


def axes() -> dict[int, torch.export.Dim]:
    return {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("sequence", min=1)}


def exported(module: nn.Module, example: Tensor) -> onnx_ir.Model:
    with traceable(module):
        return capture(
            module.eval(),
            (example,),
            (axes(),),
            name=type(module).__name__,
            inputs=["input"],
            outputs=["output"],
            opset=20,
        )


def run(graph: onnx_ir.Model, value: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(onnx_ir.to_proto(graph).SerializeToString())
    return torch.from_numpy(session.run(None, {"input": value.numpy()})[0])


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 1), (4, 7)])
def test_shift_and_squeeze_hold_for_every_shape(shape: tuple[int, int]) -> None:
    module, ids = Shifting(), torch.randint(100, shape)
    expected = torch.cat([ids[:, :1], ids[:, :-1]], dim=1) + 1.5
    assert torch.equal(run(exported(module, torch.arange(33).reshape(3, 11)), ids), expected)


def test_a_sum_with_a_weight_is_not_folded_into_it() -> None:
    module, x = Norm(), torch.randn(2, 5, 4)
    graph = exported(module, torch.randn(3, 11, 4))
    assert "weight" in graph.graph.initializers
    assert torch.allclose(run(graph, x), module(x))


def test_code_that_depends_on_a_length_is_one_clear_error() -> None:
    with pytest.raises(ExportError) as caught:
        exported(Looping(), torch.arange(33).reshape(3, 11))
    assert str(caught.value) == (
        "Looping: cannot be exported with dynamic batch and sequence sizes: its code depends on "
        "the size of sequence, so a graph captured at size 11 would be wrong for every other size"
    )


def test_experts_are_put_back(mixture: nn.Module) -> None:
    before = mixture.get_experts_implementation()
    ids = torch.randint(4, 100, (2, 9))
    with torch.no_grad():
        expected = mixture(input_ids=ids).logits
        with traceable(mixture):
            assert mixture.get_experts_implementation() != before
            assert torch.allclose(mixture(input_ids=ids).logits, expected, atol=1e-6)
    assert mixture.get_experts_implementation() == before
