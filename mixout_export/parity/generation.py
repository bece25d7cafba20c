"""Compare what two sides generate, token by token.

The reference generates greedily with `transformers.generate`. A graph is then given the same tokens
one by one, with its cache and without, and its logits are compared at each step. One flip therefore
does not hide later ones, and its margin shows whether it is a near tie. Without a flip, the graph
would have generated the same tokens by itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedModel

from mixout_export.checkpoint.interface import ModelInterface
from mixout_export.checkpoint.model_inputs import Batch
from mixout_export.files.json_files import fields_as_json
from mixout_export.parity.compare import OutputComparison, OutputDifference, Tolerance
from mixout_export.parity.decisions import DecisionLimits
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
    """How much graphs differ from the reference while they generate.

    Attributes:
        prompts: Number of prompts.
        tokens: Number of tokens compared, over all prompts.
        longest: Tokens of the longest sequence, including its prompt.
        window: Number of tokens that the model's attention sees; None for all.
        without_cache: The logits of the graph without a cache; None if there is no such graph.
        with_cache: The logits of the graph with a cache; None if there is no such graph.
        tie_margins: For each flip that the tolerance explains, the distance of the reference's
            logits of both tokens. Such a flip is a tie and not a fault.
        weights: The audit of the graph with a cache, if it is beside another graph.
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
        """Whether a sequence was longer than the attention's window, or there is no window."""
        return self.window is None or self.longest > self.window

    @property
    def outputs(self) -> tuple[OutputDifference, ...]:
        """The differences of the graphs that exist."""
        both = (self.without_cache, self.with_cache)
        return tuple(output for output in both if output is not None)

    @property
    def holds(self) -> bool:
        """Whether all weights were found, and all logits are within the tolerance at each step."""
        weights_hold = self.weights is None or self.weights.holds
        return weights_hold and all(output.holds for output in self.outputs)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return fields_as_json(self, "ties", "holds")


def tie_margins(reference: Array, candidate: Array, tolerance: Tolerance | None) -> list[float]:
    """Return the margin of each flip that differences within the tolerance can cause.

    Logits are float `(..., vocabulary)`. Without a tolerance, only a margin of zero counts.
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
    """A graph that generates, and its results so far."""

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
    """Compare the graphs of a causal language model with the model, in float32, as they generate.

    Args:
        model: The reference.
        interface: Its inputs.
        plain: The graph without a cache; None if there is none.
        cached: The graph with a cache; None if there is none.
        tolerance: Tolerance for each logit; None if only the logits as a whole are judged.
        limits: Limits for the logits as a whole.
        examples: Batches of the user's texts, whose beginnings are continued too.
        seed: Seed of the prompts.

    Raises:
        CheckpointError: The model cannot generate, or a graph does not run.
    """
    window = sliding_window(model)
    padded = not takes_positions(model)
    sides = {
        name: _Side(
            graph, OutputComparison(name, tolerance, limits=limits, decision="argmax"), padded
        )
        for name, graph in (("logits without a cache", plain), ("logits with a cache", cached))
        if graph is not None
    }
    count = tokens = longest = 0
    for prompts in make_prompts(interface, window=window, examples=examples, seed=seed):
        text = continue_prompts(model, prompts, pad=interface.pad_token_id or 0)
        count += len(text.ids)
        tokens += len(text.ids) * prompts.new
        longest = max(longest, text.ids.shape[1])
        for side in sides.values():
            side.add(text, tolerance)
    results = {name: side.comparison.result() for name, side in sides.items()}
    return GenerationParity(
        prompts=count,
        tokens=tokens,
        longest=longest,
        window=window,
        without_cache=results.get("logits without a cache"),
        with_cache=results.get("logits with a cache"),
        tie_margins=tuple(sorted(margin for side in sides.values() for margin in side.ties)),
    )
