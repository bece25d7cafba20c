"""Continue prompts with the reference, and give a graph the same tokens one by one."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import GenerationConfig, PreTrainedModel

from mixout_export.checkpoint.interface import ModelInterface
from mixout_export.checkpoint.model_inputs import UNBOUNDED_SEQUENCE, Batch
from mixout_export.errors import CheckpointError
from mixout_export.parity.decisions import DATA_BATCH
from mixout_export.printable import first_line
from mixout_export.quiet import quiet_libraries
from mixout_export.runners.cache import CachedRunner
from mixout_export.runners.onnx_runner import OnnxRunner

Ids = npt.NDArray[np.int64]
Array = npt.NDArray[Any]

#: Lengths of the prompts in each batch. Shorter ones are padded on the left, as `generate` needs.
PROMPTS = ((1,), (6,), (9, 4, 1))

#: Tokens generated for each prompt.
NEW_TOKENS = 16

#: Length of a prompt that is read in two parts, like the turns of a conversation, and the number of
#: tokens generated for it. If a sliding window is no longer than `LONGEST_WINDOW`, the prompt is
#: made longer than the window.
LONG_PROMPT, LONG_NEW_TOKENS, LONGEST_WINDOW = 100, 4, 1024

#: Number of prompts from the user's texts, and their largest length.
DATA_PROMPTS, DATA_PROMPT_LENGTH = 8, 32


@dataclass(frozen=True)
class Prompts:
    """A batch of prompts.

    Attributes:
        name: Name of the batch.
        ids: int64 `(batch, longest)`, padded on the left.
        mask: 1 for tokens and 0 for padding, of the same shape.
        new: Number of tokens to generate for each prompt.
        parts: Lengths at which a graph with a cache pauses while it reads the prompts; the last is
            the whole length.
    """

    name: str
    ids: Ids
    mask: Ids
    new: int
    parts: tuple[int, ...]


@dataclass(frozen=True)
class Continued:
    """A batch of prompts and how the reference continues them.

    Attributes:
        prompts: The prompts.
        ids: Prompts and new tokens, `(batch, longest + new)`.
        mask: 1 for tokens and 0 for padding, of the same shape.
        logits: The reference's logits, float32 `(batch, new, vocabulary)`. Step `i` decides the
            token at `longest + i`.
    """

    prompts: Prompts
    ids: Ids
    mask: Ids
    logits: Array

    @property
    def batch(self) -> Batch:
        """Prompts and new tokens as the inputs of a model."""
        return Batch(self.prompts.name, {"input_ids": self.ids, "attention_mask": self.mask})


def sliding_window(model: PreTrainedModel) -> int | None:
    """Return the smallest number of tokens that a layer's attention sees; None if it is all."""
    config = model.config.get_text_config()
    sizes = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    return next((size for size in sizes if isinstance(size, int) and size > 0), None)


def takes_positions(model: PreTrainedModel) -> bool:
    """Return whether a model takes positions; then padding on the left does not move a prompt."""
    return "position_ids" in inspect.signature(model.forward).parameters


def _pad_left(name: str, rows: Sequence[Ids], *, new: int, pad: int) -> Prompts:
    width = max(map(len, rows))
    ids = np.stack([np.pad(row, (width - len(row), 0), constant_values=pad) for row in rows])
    lengths = np.array([[len(row)] for row in rows])
    mask = (np.arange(width)[None, :] >= width - lengths).astype(np.int64)
    return Prompts(name, ids, mask, new, parts=(width,))


def make_prompts(
    interface: ModelInterface,
    *,
    window: int | None = None,
    examples: Sequence[Batch] = (),
    seed: int = 0,
) -> Iterator[Prompts]:
    """Yield batches of prompts: random ids, a long prompt, and the beginnings of the user's texts.

    `window` is the length of the model's sliding attention window; None if it has none.
    """
    random = np.random.default_rng(seed)
    size, pad = interface.vocabulary_size, interface.pad_token_id
    limit = interface.sequence_limit or UNBOUNDED_SEQUENCE
    half, new = max(1, limit // 2), max(1, min(NEW_TOKENS, limit // 2))

    def drawn(length: int) -> Ids:
        ids = random.integers(0, size, length, dtype=np.int64)
        return np.where(ids == pad, (ids + 1) % size, ids)

    for lengths in PROMPTS:
        rows = [drawn(min(length, half)) for length in lengths]
        yield _pad_left("generation", rows, new=new, pad=pad or 0)
    beyond = window + 2 * LONG_NEW_TOKENS if window and window <= LONGEST_WINDOW else 0
    longest = min(max(LONG_PROMPT, beyond), limit - LONG_NEW_TOKENS)
    if longest > 1:
        long = drawn(longest)[None, :]
        parts = (longest * 2 // 3, longest)
        yield Prompts("long prompt", long, np.ones_like(long), LONG_NEW_TOKENS, parts)
    texts = _beginnings(examples, min(DATA_PROMPT_LENGTH, half))
    if texts:
        yield _pad_left(DATA_BATCH, texts, new=new, pad=pad or 0)


def _beginnings(examples: Sequence[Batch], length: int) -> list[Ids]:
    """Return the first tokens of the first texts, without padding."""
    found: list[Ids] = []
    for batch in examples:
        ids = batch.inputs["input_ids"]
        mask = batch.inputs.get("attention_mask", np.ones_like(ids))
        found += [row[kept != 0][:length] for row, kept in zip(ids, mask, strict=True)]
        if len(found) >= DATA_PROMPTS:
            break
    return [row for row in found if len(row)][:DATA_PROMPTS]


@contextmanager
def _greedy(model: PreTrainedModel, new: int, pad: int) -> Iterator[None]:
    """Let a model generate the likeliest tokens and never stop early, whatever its folder says."""
    own = model.generation_config
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False, max_new_tokens=new, pad_token_id=pad, use_cache=True
    )
    try:
        yield
    finally:
        model.generation_config = own


def continue_prompts(model: PreTrainedModel, prompts: Prompts, *, pad: int) -> Continued:
    """Let the reference, a causal language model in float32, continue prompts.

    Raises:
        CheckpointError: The model cannot generate.
    """
    try:
        with quiet_libraries(), torch.inference_mode(), _greedy(model, prompts.new, pad):
            made = model.generate(  # type: ignore[operator]
                torch.from_numpy(prompts.ids),
                attention_mask=torch.from_numpy(prompts.mask),
                output_logits=True,
                return_dict_in_generate=True,
            )
    except (RuntimeError, ValueError, IndexError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{type(model).__name__}: does not generate from prompts of shape "
            f"{prompts.ids.shape} ({first_line(error)})"
        ) from error
    new = np.ones((len(prompts.ids), prompts.new), dtype=np.int64)
    return Continued(
        prompts=prompts,
        ids=made.sequences.numpy(),
        mask=np.concatenate([prompts.mask, new], axis=1),
        logits=torch.stack(made.logits, dim=1).float().numpy(),
    )


def read_with_cache(graph: CachedRunner, text: Continued) -> Array:
    """Return a graph's logits if it reads the prompts and then token by token, using its cache.

    They are float32 `(batch, new, vocabulary)`.
    """
    cache = graph.empty(len(text.ids))
    positions = np.clip(text.mask.cumsum(axis=1) - 1, 0, None)
    longest, start, steps = text.prompts.parts[-1], 0, []
    for stop in (*text.prompts.parts, *range(longest + 1, longest + text.prompts.new)):
        outputs, cache = graph.extend(
            {
                "input_ids": text.ids[:, start:stop],
                "attention_mask": text.mask[:, :stop],
                "position_ids": positions[:, start:stop],
            },
            cache,
        )
        if stop >= longest:
            steps.append(outputs["logits"][:, -1].astype(np.float32))
        start = stop
    return np.stack(steps, axis=1)


def read_without_cache(graph: OnnxRunner, text: Continued, *, padded: bool) -> Array:
    """Return a graph's logits if it reads everything again for each token.

    Args:
        graph: A graph without a cache.
        text: The text to read.
        padded: Whether to read the padding too. Otherwise each row is read on its own, without
            padding. That is needed if the graph counts positions and the reference is given them.

    Returns:
        float32 `(batch, new, vocabulary)`.
    """
    if padded or text.mask.all():
        return _read_again(graph, text.ids, text.mask, text.prompts.new)
    rows = (ids[mask != 0][None, :] for ids, mask in zip(text.ids, text.mask, strict=True))
    return np.concatenate(
        [_read_again(graph, row, np.ones_like(row), text.prompts.new) for row in rows]
    )


def _read_again(graph: OnnxRunner, ids: Ids, mask: Ids, new: int) -> Array:
    steps = []
    for stop in range(ids.shape[1] - new, ids.shape[1]):
        part = ids[:, :stop]
        inputs = {"input_ids": part, "attention_mask": mask[:, :stop]}
        inputs["token_type_ids"] = np.zeros_like(part)
        inputs["position_ids"] = np.broadcast_to(np.arange(stop), part.shape).copy()
        steps.append(graph.run(inputs)["logits"][:, -1].astype(np.float32))
    return np.stack(steps, axis=1)
