"""Continue texts with the most likely tokens, in PyTorch, onnxruntime or on a server."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GenerationConfig

from mixout_export.checkpoint.artifact import Artifact
from mixout_export.checkpoint.plain import PlainCheckpoint
from mixout_export.data.texts import TextEncoding
from mixout_export.errors import ArgumentError
from mixout_export.quiet import quiet_libraries
from mixout_export.runners.cache import CachedRunner
from mixout_export.runners.runner import Array, Runner

Ids = NDArray[np.int64]

#: Tokens that are generated unless the user asks for another number.
NEW_TOKENS = 20


@dataclass(frozen=True)
class Generator:
    """Continues texts greedily, up to the end token.

    Attributes:
        artifact: The model.
        encoding: How texts become ids.
        new_tokens: Most tokens to generate.
        batch_size: Texts that are continued together.
    """

    artifact: Artifact
    encoding: TextEncoding
    new_tokens: int = NEW_TOKENS
    batch_size: int = 32

    def __post_init__(self) -> None:
        limit = self.encoding.interface.sequence_limit
        if limit is not None and self.new_tokens >= limit:
            raise ArgumentError(
                f"max-new-tokens: got {self.new_tokens}, but the model takes at most {limit} "
                "tokens together with the text; lower it"
            )

    def __call__(self, texts: Sequence[str]) -> list[str]:
        """Return how each text goes on, without the text itself."""
        prompts = self._prompts(texts)
        order = sorted(range(len(texts)), key=lambda index: -len(prompts[index]))
        made = [""] * len(texts)
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            rows = self._continue([prompts[index] for index in chosen])
            for index, row in zip(chosen, rows, strict=True):
                made[index] = self._text(row)
        return made

    def _prompts(self, texts: Sequence[str]) -> list[Ids]:
        """Return the ids of each text, without an end token and with room for new ones."""
        limit = self.encoding.interface.sequence_limit
        room = self.encoding.max_length
        if limit is not None:
            room = min(room, limit - self.new_tokens)
        end = self.encoding.tokenizer.eos_token_id
        rows = self.encoding.tokenize(texts, max_length=room)["input_ids"]
        kept = (row[:-1] if len(row) > 1 and row[-1] == end else row for row in rows)
        return [np.array(row, np.int64) for row in kept]

    def _text(self, row: Ids) -> str:
        end = self.encoding.tokenizer.eos_token_id
        ids = row.tolist()
        ids = ids[: ids.index(end)] if end in ids else ids
        return str(self.encoding.tokenizer.decode(ids, skip_special_tokens=True))

    def _continue(self, prompts: Sequence[Ids]) -> list[Ids]:
        checkpoint = self.artifact.checkpoint
        if checkpoint is not None:
            return list(self._with_torch(checkpoint, *self._padded(prompts)))
        graphs = self.artifact.generators()
        if graphs.cached is not None:
            return list(self._with_cache(graphs.cached, *self._padded(prompts)))
        runner = graphs.plain or self.artifact.runner(self.encoding.interface.inputs)
        return [self._without_cache(runner, prompt) for prompt in prompts]

    def _padded(self, prompts: Sequence[Ids]) -> tuple[Ids, Ids]:
        """Return the ids, padded on the left, and 1 for each token that is no padding."""
        width = max(map(len, prompts))
        ids = np.full((len(prompts), width), self._pad, np.int64)
        mask = np.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = prompt
            mask[row, width - len(prompt) :] = 1
        return ids, mask

    @property
    def _pad(self) -> int:
        known = (self.encoding.interface.pad_token_id, self.encoding.tokenizer.pad_token_id)
        return next((value for value in known if value is not None), 0)

    def _with_torch(self, checkpoint: PlainCheckpoint, ids: Ids, mask: Ids) -> Ids:
        model = checkpoint.model.eval().float()  # type: ignore[no-untyped-call]
        options = GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=False,
            max_new_tokens=self.new_tokens,
            pad_token_id=self._pad,
            eos_token_id=self.encoding.tokenizer.eos_token_id,
        )
        with quiet_libraries(), torch.inference_mode():
            made = model.generate(
                torch.from_numpy(ids),
                attention_mask=torch.from_numpy(mask),
                generation_config=options,
            )
        new: Ids = made[:, ids.shape[1] :].numpy()
        return new

    def _with_cache(self, graph: CachedRunner, ids: Ids, mask: Ids) -> Ids:
        cache, made = graph.empty(len(ids)), []
        positions = np.clip(mask.cumsum(axis=1) - 1, 0, None)
        done = np.zeros(len(ids), bool)
        for _ in range(self.new_tokens):
            inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
            outputs, cache = graph.extend(inputs, cache)
            ids = _likeliest(outputs["logits"])[:, None]
            made.append(ids)
            done |= ids[:, 0] == self.encoding.tokenizer.eos_token_id
            if done.all():
                break
            mask = np.concatenate([mask, np.ones_like(ids)], axis=1)
            positions = positions[:, -1:] + 1
        return np.concatenate(made, axis=1)

    def _without_cache(self, runner: Runner, prompt: Ids) -> Ids:
        ids = prompt[None, :]
        for _ in range(self.new_tokens):
            inputs = {
                "input_ids": ids,
                "attention_mask": np.ones_like(ids),
                "token_type_ids": np.zeros_like(ids),
                "position_ids": np.arange(ids.shape[1])[None, :],
            }
            token = _likeliest(runner.run(inputs)["logits"])
            ids = np.concatenate([ids, token[:, None]], axis=1)
            if token[0] == self.encoding.tokenizer.eos_token_id:
                break
        return ids[0, len(prompt) :]


def _likeliest(logits: Array) -> Ids:
    """Return the most likely token after each row, shape (rows,)."""
    chosen: Ids = logits[:, -1].argmax(axis=-1).astype(np.int64)
    return chosen
