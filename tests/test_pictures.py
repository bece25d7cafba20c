from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from mixout_export.errors import ArgumentError
from mixout_export.stages.pictures import draw_distances


@dataclass(frozen=True)
class Layer:
    name: str
    relative: float


def layers(count: int, *, pooler: float) -> list[Layer]:
    kinds = ("attention.self.query", "attention.output.dense", "output.dense")
    body = [
        Layer(f"bert.encoder.layer.{number}.{kind}", 0.01 * (1 + place / 4))
        for number in range(count)
        for place, kind in enumerate(kinds)
    ]
    return [*body, Layer("bert.pooler.dense", pooler)]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    return figures


def draw(drawn: list[Figure], these: Sequence[Layer]) -> Figure:
    draw_distances(these, Path("d.png"), title="bert-base for text-classification (trained)")
    return drawn[-1]


def test_a_layer_that_moved_ten_times_as_far_leaves_the_others_readable(
    drawn: list[Figure],
) -> None:
    figure = draw(drawn, layers(6, pooler=0.2))
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    assert "logarithmic" in axes.get_xlabel()
    low, high = axes.get_xlim()
    assert low < 0.01 < 0.2 < high
    assert draw(drawn, layers(6, pooler=0.012)).axes[0].get_xscale() == "linear"


@pytest.mark.parametrize("count", [2, 12, 48])
def test_there_is_a_row_for_each_block_and_a_mark_for_each_kind(
    count: int, drawn: list[Figure]
) -> None:
    figure = draw(drawn, layers(count, pooler=0.2))
    (axes,) = figure.axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == [*(f"encoder.layer.{number}" for number in range(count)), "pooler"]
    (legend,) = figure.legends
    kinds = [text.get_text() for text in legend.get_texts()]
    assert kinds == ["attention.self.query", "attention.output.dense", "output.dense", "dense"]
    assert sum(len(line.get_xdata()) for line in axes.lines) == 3 * count + 1


def test_the_picture_says_which_model_it_shows_and_what_a_mark_means(drawn: list[Figure]) -> None:
    figure = draw(drawn, layers(2, pooler=0.01))
    assert figure.get_suptitle().startswith("bert-base for text-classification (trained)\n")
    assert "pretrained weight" in figure.axes[0].get_xlabel()
    assert "logarithmic" not in figure.axes[0].get_xlabel()


@pytest.mark.parametrize("values", [(0.0, 0.0), (0.0, 0.3), (0.0, 0.01, 0.5, float("inf"))])
def test_layers_that_did_not_move_or_began_at_zero_are_on_the_edge(
    values: tuple[float, ...], tmp_path: Path
) -> None:
    these = [Layer(f"layer.{number}.dense", value) for number, value in enumerate(values)]
    draw_distances(these, tmp_path / "d.png")
    assert (tmp_path / "d.png").read_bytes().startswith(b"\x89PNG")


def test_another_format_is_refused() -> None:
    with pytest.raises(ArgumentError, match="expected a name ending in png, svg or pdf"):
        draw_distances(layers(1, pooler=0.1), Path("d.gif"))
