"""What a model takes and gives: its inputs, its outputs, and the range of each input's values."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mixout_export.errors import CheckpointError
from mixout_export.tasks import Task

#: Inputs that text models take, in the order in which graphs and batches list them.
KNOWN_INPUTS = ("input_ids", "attention_mask", "token_type_ids")

#: Outputs of a model without a head.
HEADLESS_OUTPUTS = ("last_hidden_state",)


@dataclass(frozen=True)
class ModelInterface:
    """The inputs and outputs of a text model.

    Attributes:
        inputs: Names of the int64 inputs, each `(batch, sequence)`, with `choices` `(batch,
            choice, sequence)`.
        outputs: Names of the outputs.
        vocabulary_size: `input_ids` lie in `[0, vocabulary_size)`.
        sequence_limit: Longest sequence in tokens; None where positions are unbounded.
        segments: `token_type_ids` lie in `[0, segments)`.
        pad_token_id: Id that fills a batch's shorter rows, None where the model has none.
        choices: Whether inputs have a dimension of choices after the batch.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    vocabulary_size: int
    sequence_limit: int | None = None
    segments: int = 1
    pad_token_id: int | None = None
    choices: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return {**asdict(self), "inputs": list(self.inputs), "outputs": list(self.outputs)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "ModelInterface":
        """Build it from `to_dict`'s result.

        Raises:
            CheckpointError: A field is missing or unknown.
        """
        try:
            return cls(
                **{
                    **fields,
                    "inputs": tuple(fields["inputs"]),
                    "outputs": tuple(fields["outputs"]),
                }
            )
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"the recorded interface cannot be read: {error}") from error


def output_names(task: Task | None) -> tuple[str, ...]:
    """Return the outputs of a model for `task`; None is a model without a head."""
    if task is None:
        return HEADLESS_OUTPUTS
    if task.name == "question-answering":
        return ("start_logits", "end_logits")
    return (task.output,)


def _inputs(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, segments: int
) -> tuple[str, ...]:
    """Return the inputs that the forward takes and the tokenizer, if there is one, makes.

    Segments of a vocabulary of one carry nothing, so they are no input.
    """
    accepted = inspect.signature(model.forward).parameters
    made: Sequence[str] = KNOWN_INPUTS if tokenizer is None else tokenizer.model_input_names
    return tuple(
        name
        for name in KNOWN_INPUTS
        if name in accepted and name in made and (name != "token_type_ids" or segments > 1)
    )


def sequence_limit(model: PreTrainedModel) -> int | None:
    """Return the longest sequence the model takes, in tokens; None where there is no limit.

    RoBERTa and its kin start counting positions after the padding id, so their table of
    positions is longer than what a sequence may use.
    """
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            offset = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - offset
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def describe_interface(
    model: PreTrainedModel,
    task: Task | None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> ModelInterface:
    """Describe a model's inputs and outputs.

    Args:
        model: A plain model, as `load_plain` returns it.
        task: What its head serves; None for a model without a head.
        tokenizer: Its tokenizer; without one, inputs are inferred from the model alone.

    Raises:
        CheckpointError: The model takes no `input_ids`.
    """
    config = model.config.get_text_config()
    segments = max(int(getattr(config, "type_vocab_size", 1) or 1), 1)
    inputs = _inputs(model, tokenizer, segments)
    if "input_ids" not in inputs:
        raise CheckpointError(
            f"{type(model).__name__}: its forward takes no input_ids; only text models can be "
            "described"
        )
    return ModelInterface(
        inputs=inputs,
        outputs=output_names(task),
        vocabulary_size=int(config.vocab_size),
        sequence_limit=sequence_limit(model),
        segments=segments,
        pad_token_id=getattr(config, "pad_token_id", None),
        choices=task is not None and task.name == "multiple-choice",
    )


def settle_pad_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Give a model without a padding id its tokenizer's, in place.

    A decoder's classifier reads the last token that is not padding, so it takes batches only if
    it knows the padding id.
    """
    config = model.config.get_text_config()
    if getattr(config, "pad_token_id", None) is None and tokenizer is not None:
        config.pad_token_id = tokenizer.pad_token_id
