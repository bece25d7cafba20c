"""Compare what two sides generate, token by token.

The reference decodes greedily with `transformers.generate`. A graph is then given the reference's
tokens one by one, with its cache and without, and its logits are compared at every step. So one
flip does not hide later ones, and the margin of a flip shows whether it is a near tie. Without a
flip, the graph would have generated the same tokens by itself.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedModel

from mixout_export.checkpoint.interface import ModelInterface
from mixout_export.checkpoint.model_inputs import Batch
from mixout_export.parity.compare import OutputComparison, OutputDifference, Tolerance
from mixout_export.parity.decision_limits import DecisionLimits
from mixout_export.parity.decoding import (
    Continued,
    continue_prompts,
    make_prompts,
    read_with_cache,
    read_without_cache,
    sliding_window,
    takes_positions,
)
from mixout_export.parity.weights import WeightAudit
from mixout_export.runners.cache import CachedRunner
from mixout_export.runners.onnx_runner import OnnxRunner

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class GenerationParity:
    """How far graphs differ from the reference while they generate.

    Attributes:
        prompts: Prompts that were continued.
        tokens: Tokens compared, of all prompts together.
        longest: Tokens of the longest sequence, its prompt included.
        window: Length of the model's sliding attention window; None if it has none.
        without_cache: The logits of the graph that reads everything again for each token; None
            if there is no such graph.
        with_cache: The logits of the graph that keeps keys and values; None if there is none.
        tie_margins: For each flip that the tolerance explains, the difference between the
            reference's logits of both tokens. Such a flip is a tie and not a fault.
        weights: The audit of the graph with a cache; None if there is no such graph beside another.
    """

    prompts: int
    tokens: int
    longest: int
    window: int | None
    without_cache: OutputDifference | None
    with_cache: OutputDifference | None
    tie_margins: tuple[float, ...] = ()
    weights: WeightAudit | None = None

    @property
    def ties(self) -> int:
        """Number of flips that are ties."""
        return len(self.tie_margins)

    @property
    def beyond_window(self) -> bool:
        """Whether a sequence was longer than the attention window, or there is no window."""
        return self.window is None or self.longest > self.window

    @property
    def outputs(self) -> tuple[OutputDifference, ...]:
        """The differences of the graphs that exist."""
        both = (self.without_cache, self.with_cache)
        return tuple(output for output in both if output is not None)

    @property
    def holds(self) -> bool:
        """Whether every weight is there, and all logits are within tolerance at every step."""
        weights_hold = self.weights is None or self.weights.holds
        return weights_hold and all(output.holds for output in self.outputs)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return {
            "prompts": self.prompts,
            "tokens": self.tokens,
            "longest": self.longest,
            "window": self.window,
            "ties": self.ties,
            "tie_margins": list(self.tie_margins),
            "holds": self.holds,
            "without_cache": None if self.without_cache is None else self.without_cache.to_dict(),
            "with_cache": None if self.with_cache is None else self.with_cache.to_dict(),
            "weights": None if self.weights is None else self.weights.to_dict(),
        }


def tie_margins(reference: Array, candidate: Array, tolerance: Tolerance | None) -> list[float]:
    """Return the margin of each flip that differences within the tolerance can cause.

    Args:
        reference: Logits, float `(..., vocabulary)`.
        candidate: Logits of the other side.
        tolerance: Tolerance of the logits; None explains only a margin of zero.
    """
    ours, theirs = reference.argmax(axis=-1), candidate.argmax(axis=-1)
    flipped = ours != theirs
    logits = reference[flipped].astype(np.float64)
    rows = np.arange(len(logits))
    chosen, other = logits[rows, ours[flipped]], logits[rows, theirs[flipped]]
    allowed = np.zeros_like(chosen)
    if tolerance is not None:
        allowed = 2 * tolerance.atol + tolerance.rtol * (np.abs(chosen) + np.abs(other))
    margins = chosen - other
    return [float(margin) for margin in margins[margins <= allowed]]


@dataclass
class _Side:
    """A graph that generates, and what was gathered of it."""

    graph: OnnxRunner | CachedRunner
    comparison: OutputComparison
    padded: bool
    ties: list[float] = field(default_factory=list)

    def add(self, text: Continued, tolerance: Tolerance | None) -> None:
        if isinstance(self.graph, CachedRunner):
            logits = read_with_cache(self.graph, text)
        else:
            logits = read_without_cache(self.graph, text, padded=self.padded)
        self.comparison.add(text.batch, text.logits, logits)
        if logits.shape == text.logits.shape:
            self.ties += tie_margins(text.logits, logits, tolerance)


def _sides(
    graphs: Mapping[str, OnnxRunner | CachedRunner | None],
    *,
    tolerance: Tolerance | None,
    limits: DecisionLimits | None,
    padded: bool,
) -> dict[str, _Side]:
    return {
        name: _Side(
            graph,
            OutputComparison(name, tolerance, limits=limits, decision="argmax"),
            padded,
        )
        for name, graph in graphs.items()
        if graph is not None
    }


def _texts(
    model: PreTrainedModel,
    interface: ModelInterface,
    *,
    window: int | None,
    examples: Sequence[Batch],
    seed: int,
) -> Iterator[Continued]:
    for prompts in make_prompts(interface, window=window, examples=examples, seed=seed):
        yield continue_prompts(model, prompts, pad=interface.pad_token_id or 0)


def compare_generation(
    model: PreTrainedModel,
    interface: ModelInterface,
    *,
    plain: OnnxRunner | None,
    cached: CachedRunner | None,
    tolerance: Tolerance | None,
    limits: DecisionLimits | None = None,
    examples: Sequence[Batch] = (),
    seed: int = 0,
) -> GenerationParity:
    """Compare graphs with a PyTorch causal language model while they generate.

    Args:
        model: The reference in float32.
        interface: What it takes.
        plain: The graph without a cache; None if there is none.
        cached: The graph with a cache; None if there is none.
        tolerance: What logits are judged by; None where only decisions are.
        limits: What they are judged by as a whole.
        examples: Batches of the user's texts, whose beginnings are continued too.
        seed: Of the prompts.

    Raises:
        ArgumentError: A graph takes an input that is not known.
        CheckpointError: The model does not generate, or a graph does not run.
    """
    window = sliding_window(model)
    sides = _sides(
        {"logits without a cache": plain, "logits with a cache": cached},
        tolerance=tolerance,
        limits=limits,
        padded=not takes_positions(model),
    )
    prompts = tokens = longest = 0
    for text in _texts(model, interface, window=window, examples=examples, seed=seed):
        prompts += len(text.ids)
        tokens += len(text.ids) * text.prompts.new
        longest = max(longest, text.ids.shape[1])
        for side in sides.values():
            side.add(text, tolerance)
    results = {name: side.comparison.result() for name, side in sides.items()}
    return GenerationParity(
        prompts=prompts,
        tokens=tokens,
        longest=longest,
        window=window,
        without_cache=results.get("logits without a cache"),
        with_cache=results.get("logits with a cache"),
        tie_margins=tuple(sorted(margin for side in sides.values() for margin in side.ties)),
    )
