"""Compare what two sides generate, token by token.

The reference decodes greedily with `transformers.generate`. A graph is then given the reference's
own tokens one by one, with its cache and without, and its logits are compared at every step: so one
flip does not hide those that follow, and a flip at a near tie is known by its margin.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import GenerationConfig, PreTrainedModel

from mixout_export.checkpoint.interface import ModelInterface
from mixout_export.checkpoint.quiet import quiet_libraries
from mixout_export.parity.battery import UNBOUNDED_SEQUENCE, Batch
from mixout_export.parity.bounds import Bounds
from mixout_export.parity.compare import OutputComparison, OutputDifference, Tolerance
from mixout_export.parity.runners import OnnxRunner
from mixout_export.parity.weights import WeightAudit

Ids = npt.NDArray[np.int64]
Array = npt.NDArray[Any]

#: Lengths of the prompts in each batch; shorter ones are padded on the left, as `generate` asks.
PROMPTS = ((1,), (6,), (9, 4, 1))

#: Tokens generated for each prompt.
NEW_TOKENS = 16


@dataclass(frozen=True)
class GenerationParity:
    """How far graphs are apart from the reference while they generate.

    Attributes:
        prompts: Prompts that were continued.
        tokens: Tokens compared, of all prompts together.
        without_cache: The logits of the graph that reads everything again for each token; None
            if there is no such graph.
        with_cache: The logits of the graph that keeps keys and values; None if there is none.
        ties: Flips where the reference's two largest logits were nearer than the tolerance.
        weights: The audit of the graph with a cache; None if there is no such graph.
    """

    prompts: int
    tokens: int
    without_cache: OutputDifference | None
    with_cache: OutputDifference | None
    ties: int
    weights: WeightAudit | None = None

    @property
    def outputs(self) -> tuple[OutputDifference, ...]:
        """The differences that there are."""
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
            "ties": self.ties,
            "holds": self.holds,
            "without_cache": None if self.without_cache is None else self.without_cache.to_dict(),
            "with_cache": None if self.with_cache is None else self.with_cache.to_dict(),
            "weights": None if self.weights is None else self.weights.to_dict(),
        }


@dataclass(frozen=True)
class _Continued:
    """A batch of prompts, and how the reference goes on.

    Attributes:
        ids: Prompts and new tokens, `(batch, prompt + new)`; padding on the left.
        mask: 1 for tokens and 0 for padding, of the same shape.
        prompt: Length of the longest prompt.
        logits: The reference's, float32 `(batch, new, vocabulary)`; step `i` decides the token at
            `prompt + i`.
    """

    ids: Ids
    mask: Ids
    prompt: int
    logits: Array


def _prompts(interface: ModelInterface, seed: int) -> Iterator[tuple[Ids, Ids]]:
    """Yield batches of random ids, and their masks; a padding id is needed for unequal lengths."""
    random = np.random.default_rng(seed)
    pad = interface.pad_token_id
    limit = max(1, (interface.sequence_limit or UNBOUNDED_SEQUENCE) // 2)
    for longest in PROMPTS:
        lengths = [min(length, limit) for length in longest]
        width = max(lengths)
        ids = random.integers(0, interface.vocabulary_size, (len(lengths), width), dtype=np.int64)
        mask = np.arange(width)[None, :] >= width - np.array(lengths)[:, None]
        if pad is not None:
            ids[ids == pad] = (pad + 1) % interface.vocabulary_size
        yield np.where(mask, ids, pad or 0), mask.astype(np.int64)


def _continue(model: PreTrainedModel, ids: Ids, mask: Ids, new: int, pad: int) -> _Continued:
    """Let the reference generate, greedily and without stopping."""
    settings = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,
        max_new_tokens=new,
        min_new_tokens=new,
        pad_token_id=pad,
        output_logits=True,
        return_dict_in_generate=True,
        use_cache=True,
    )
    with quiet_libraries(), torch.inference_mode():
        made = model.generate(  # type: ignore[operator]
            torch.from_numpy(ids), attention_mask=torch.from_numpy(mask), generation_config=settings
        )
    whole = made.sequences.numpy()
    longer = np.ones((len(ids), whole.shape[1] - ids.shape[1]), dtype=np.int64)
    return _Continued(
        ids=whole,
        mask=np.concatenate([mask, longer], axis=1),
        prompt=ids.shape[1],
        logits=torch.stack(made.logits, dim=1).float().numpy(),
    )


def _positions(mask: Ids) -> Ids:
    return np.asarray(np.clip(mask.cumsum(axis=1) - 1, 0, None))


def _empty_cache(graph: OnnxRunner, rows: int) -> dict[str, Array]:
    """Return a cache of no tokens, float32 `(rows, heads, 0, size)` by input name."""
    return {
        name: np.zeros((rows, int(shape[1] or 0), 0, int(shape[3] or 0)), dtype=np.float32)
        for name, shape in graph.input_shapes.items()
        if name.startswith("past_key_values.")
    }


def _with_cache(graph: OnnxRunner, text: _Continued) -> Array:
    """Read the prompt, then one token after the other: float32 `(batch, new, vocabulary)`."""
    cache = _empty_cache(graph, len(text.ids))
    positions, steps, start = _positions(text.mask), [], 0
    for stop in range(text.prompt, text.ids.shape[1]):
        made = {
            "input_ids": text.ids[:, start:stop],
            "attention_mask": text.mask[:, :stop],
            "position_ids": positions[:, start:stop],
        }
        outputs = graph.run(made | cache)
        steps.append(outputs["logits"][:, -1])
        cache = {
            name.replace("present.", "past_key_values."): value
            for name, value in outputs.items()
            if name != "logits"
        }
        start = stop
    return np.stack(steps, axis=1)


def _without_cache(graph: OnnxRunner, text: _Continued) -> Array:
    """Read each row, without its padding, from its beginning for every token."""
    rows = []
    for ids, mask in zip(text.ids, text.mask, strict=True):
        tokens = ids[mask != 0][None, :]
        new = text.logits.shape[1]
        steps = []
        for stop in range(tokens.shape[1] - new, tokens.shape[1]):
            part = tokens[:, :stop]
            inputs = {"input_ids": part, "attention_mask": np.ones_like(part)}
            inputs["token_type_ids"] = np.zeros_like(part)
            inputs["position_ids"] = np.arange(stop, dtype=np.int64)[None, :]
            steps.append(graph.run(inputs)["logits"][0, -1])
        rows.append(np.stack(steps))
    return np.stack(rows)


def _new_tokens(interface: ModelInterface) -> int:
    return max(1, min(NEW_TOKENS, (interface.sequence_limit or UNBOUNDED_SEQUENCE) // 2))


def _ties(output: OutputDifference, tolerance: Tolerance | None) -> int:
    limit = 0.0 if tolerance is None else 2.0 * tolerance.atol
    return sum(flip.margin <= limit for flip in output.flip_examples)


def compare_generation(
    model: PreTrainedModel,
    interface: ModelInterface,
    *,
    plain: OnnxRunner | None,
    cached: OnnxRunner | None,
    tolerance: Tolerance | None,
    bounds: Bounds | None = None,
    seed: int = 0,
) -> GenerationParity:
    """Compare graphs with a PyTorch causal language model while they generate.

    Args:
        model: The reference in float32.
        interface: What it takes.
        plain: The graph without a cache; None if there is none.
        cached: The graph with a cache; None if there is none.
        tolerance: What logits are judged by; None where only decisions are.
        bounds: What they are judged by as a whole.
        seed: Of the prompts.

    Raises:
        CheckpointError: A graph does not run.
    """
    named = {"without a cache": (plain, _without_cache), "with a cache": (cached, _with_cache)}
    comparisons = {
        name: OutputComparison(name, tolerance, bounds=bounds, decision="argmax")
        for name, (graph, _) in named.items()
        if graph is not None
    }
    prompts = tokens = 0
    pad = interface.pad_token_id or 0
    for ids, mask in _prompts(interface, seed):
        text = _continue(model, ids, mask, _new_tokens(interface), pad)
        prompts += len(ids)
        tokens += text.logits.shape[0] * text.logits.shape[1]
        batch = Batch("generation", {"input_ids": text.ids})
        for name, comparison in comparisons.items():
            graph, run = named[name]
            if graph is not None:
                comparison.add(batch, text.logits, run(graph, text))
    results = {name: comparison.result() for name, comparison in comparisons.items()}
    return GenerationParity(
        prompts=prompts,
        tokens=tokens,
        without_cache=_logits(results.get("without a cache")),
        with_cache=_logits(results.get("with a cache")),
        ties=sum(_ties(output, tolerance) for output in results.values()),
    )


def _logits(output: OutputDifference | None) -> OutputDifference | None:
    return None if output is None else replace(output, name=f"logits {output.name}")
