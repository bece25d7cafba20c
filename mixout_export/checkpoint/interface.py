"""The inputs and outputs of a model, and the range of values of each input."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from mixout_export.checkpoint.artifact import HEADLESS_OUTPUTS
from mixout_export.errors import CheckpointError
from mixout_export.tasks import Task

#: Inputs that text models take, in the order in which graphs and batches list them.
KNOWN_INPUTS = ("input_ids", "attention_mask", "token_type_ids")

#: The input of a model that takes images, float32 `(batch, channels, height, width)`.
IMAGE_INPUT = "pixel_values"

#: Height and width of images if the configuration does not say, as in networks for any size.
_IMAGE_SIZE = 224

#: Number of ids of a model without a vocabulary, which reads characters.
_CODE_POINTS = 0x110000


@dataclass(frozen=True)
class ModelInterface:
    """The inputs and outputs of a model of texts, or of images.

    Attributes:
        inputs: Names of the int64 inputs, each `(batch, sequence)`, with `choices` `(batch,
            choice, sequence)`; or of images alone, float32 `(batch, channels, height, width)`.
        outputs: Names of the outputs.
        vocabulary_size: `input_ids` lie in `[0, vocabulary_size)`; 0 where there are none.
        sequence_limit: Longest sequence in tokens; None where positions are unbounded.
        segments: `token_type_ids` lie in `[0, segments)`.
        pad_token_id: Id that fills a batch's shorter rows, None where the model has none.
        final_token_id: Id that ends every row, before its padding: an encoder-decoder's classifier
            reads what stands there. None where rows may end with anything.
        left_padding: Whether rows may be padded on the left: a decoder's classifier reads the last
            token, another's the first, which would then be padding.
        choices: Whether inputs have an axis of choices after the batch.
        image: (channels, height, width) of the images; None where the model takes none.
        shortest_sequence: Shortest sequence in tokens that it runs on: models that pool along the
            sequence need a few.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    vocabulary_size: int
    sequence_limit: int | None = None
    segments: int = 1
    pad_token_id: int | None = None
    choices: bool = False
    final_token_id: int | None = None
    left_padding: bool = False
    image: tuple[int, int, int] | None = None
    shortest_sequence: int = 1

    @property
    def takes_batches(self) -> bool:
        """Whether rows of any data can share a batch: images have one size, texts need padding."""
        return self.image is not None or self.pad_token_id is not None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        if self.image is None:
            del plain["image"]
        return plain

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "ModelInterface":
        """Build it from `to_dict`'s result, or raise `CheckpointError`."""
        for name in ("vocabulary_size", "segments", "shortest_sequence"):
            if not isinstance(fields.get(name, 1), int):
                raise CheckpointError(
                    f"the recorded interface cannot be read: {name} is {fields[name]!r}, expected "
                    "a number"
                )
        try:
            lists = {"inputs": fields["inputs"], "outputs": fields["outputs"]}
            lists |= {name: v for name, v in fields.items() if isinstance(v, list)}
            return cls(**{**fields, **{name: tuple(value) for name, value in lists.items()}})
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"the recorded interface cannot be read: {error}") from error


def shared_interface(ours: ModelInterface, theirs: ModelInterface) -> ModelInterface:
    """Return the ranges that both sides accept, and all inputs that either takes."""
    limits = [limit for limit in (ours.sequence_limit, theirs.sequence_limit) if limit is not None]
    return replace(
        ours,
        inputs=tuple(dict.fromkeys((*ours.inputs, *theirs.inputs))),
        vocabulary_size=min(ours.vocabulary_size, theirs.vocabulary_size),
        sequence_limit=min(limits, default=None),
        segments=min(ours.segments, theirs.segments),
        shortest_sequence=max(ours.shortest_sequence, theirs.shortest_sequence),
        pad_token_id=theirs.pad_token_id if ours.pad_token_id is None else ours.pad_token_id,
    )


def output_names(task: Task | None) -> tuple[str, ...]:
    """Return the outputs of a model for `task`; None is a model without a head."""
    if task is None:
        return HEADLESS_OUTPUTS
    return task.outputs


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
            ids = getattr(model.get_submodule(name.rpartition(".")[0]), "position_ids", None)
            numbered = [ids.shape[-1]] if isinstance(ids, Tensor) else []
            return min([module.num_embeddings - offset, *numbered])
    config = model.config.get_text_config()
    limits = (getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len"))
    return next((limit for limit in limits if isinstance(limit, int) and limit > 0), None)


def is_decoder(model: PreTrainedModel) -> bool:
    """Tell whether a model reads from left to right, with no encoder."""
    kind = model.config.model_type
    return (
        kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
        and not getattr(model.config, "is_encoder_decoder", False)
    )


def _takes_left_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> bool:
    """Tell whether rows may be padded on the left: of a decoder, or if its tokenizer does so."""
    return is_decoder(model) or (tokenizer is not None and tokenizer.padding_side == "left")


def _final_token(model: PreTrainedModel, task: Task | None) -> int | None:
    """Return the token that every row must end with; None if rows may end with any token."""
    config = model.config.get_text_config()
    classifies = task is not None and "ForSequenceClassification" in task.architecture_suffixes
    if not classifies or not getattr(config, "is_encoder_decoder", False):
        return None
    token = getattr(config, "eos_token_id", None)
    return token[0] if isinstance(token, list) else token


def image_shape(model: PreTrainedModel) -> tuple[int, int, int]:
    """Return (channels, height, width) of the images that a vision model takes."""
    config = getattr(model.config, "vision_config", model.config)
    size = getattr(config, "image_size", None) or _IMAGE_SIZE
    if isinstance(size, int):
        size = (size, size)
    elif isinstance(size, Mapping):
        size = (size["height"], size["width"])
    height, width = size
    return int(getattr(config, "num_channels", 3)), int(height), int(width)


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
    """
    accepted = inspect.signature(model.forward).parameters
    if "input_ids" not in accepted and IMAGE_INPUT in accepted:
        return ModelInterface(
            inputs=(IMAGE_INPUT,),
            outputs=output_names(task),
            vocabulary_size=0,
            image=image_shape(model),
        )
    config = model.config.get_text_config()
    segments = max(int(getattr(config, "type_vocab_size", 1) or 1), 1)
    inputs = _inputs(model, tokenizer, segments)
    if "input_ids" not in inputs:
        raise CheckpointError(
            f"{type(model).__name__}: its forward takes no input_ids and no {IMAGE_INPUT}; only "
            "models of texts or images can be described"
        )
    return ModelInterface(
        inputs=inputs,
        outputs=output_names(task),
        vocabulary_size=int(getattr(config, "vocab_size", _CODE_POINTS)),
        sequence_limit=sequence_limit(model),
        segments=segments,
        pad_token_id=getattr(config, "pad_token_id", None),
        choices=task is not None and task.has_choices,
        final_token_id=_final_token(model, task),
        left_padding=_takes_left_padding(model, tokenizer),
    )


def settle_pad_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Give a model without a padding id its tokenizer's, in place.

    A decoder's classifier reads the last token that is not padding, so it takes batches only if
    it knows the padding id.
    """
    config = model.config.get_text_config()
    if getattr(config, "pad_token_id", None) is None and tokenizer is not None:
        config.pad_token_id = tokenizer.pad_token_id
