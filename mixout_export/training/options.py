"""The options of a training run and their valid values."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from mixout_export.config import TargetPattern, check_probability
from mixout_export.errors import ArgumentError
from mixout_export.recipes import RECIPES, with_recipe

SCHEDULERS = ("linear", "cosine", "constant", "constant_with_warmup", "polynomial")
PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}

#: The value of `class_weights` that computes them from the training data.
BALANCED = "balanced"

_COUNTS = (
    *("epochs", "max_steps", "batch_size", "gradient_accumulation", "max_length"),
    *("eval_every", "save_every", "keep", "patience", "log_every", "examples", "resample_every"),
)
_SEEDS = ("seed", "data_seed", "examples_seed")
_RATES = ("lr", "weight_decay", "head_weight_decay", "max_grad_norm")
_CHOICES: dict[str, tuple[str, ...]] = {
    "scheduler": SCHEDULERS,
    "precision": tuple(PRECISIONS),
    "decay_toward": ("zero", "pretrained"),
    "select": ("best", "last"),
    "tracker": ("tensorboard", "wandb", "trackio"),
    "recipe": tuple(RECIPES),
    "augment": ("standard", "none"),
    "anchor_dtype": ("float32", "bfloat16", "float16"),
    "optimizer_scope": ("all", "active"),
}


def _are_weights(text: str) -> bool:
    """Return whether a text is "balanced", or positive numbers separated by commas."""
    if text == BALANCED:
        return True
    try:
        return all(0 < float(part) < math.inf for part in text.split(","))
    except ValueError:
        return False


#: Option → whether a value is valid, and what is expected in words.
_VALID: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(_COUNTS, (lambda value: 0 < value < math.inf, "more than 0")),
    **dict.fromkeys(_RATES, (lambda value: 0 <= value < math.inf, "a finite number, 0 or more")),
    **{
        name: (known.__contains__, f"one of {', '.join(known)}") for name, known in _CHOICES.items()
    },
    **dict.fromkeys(_SEEDS, (lambda value: 0 <= value < 2**63, "an integer in [0, 2**63)")),
    "label_smoothing": (lambda value: 0 <= value < 1, "0 or more, and less than 1"),
    "class_weights": (_are_weights, "balanced, or numbers above 0 separated by commas"),
    "reinit_layers": (lambda value: value >= 1, "1 or more"),
    "layer_lr_decay": (lambda value: 0 < value <= 1, "more than 0, at most 1"),
    "anchor_decay": (lambda value: 0 <= value <= 1, "0 to 1"),
    "doc_stride": (lambda value: value >= 0, "0 or more"),
    "warmup_ratio": (lambda value: 0 <= value <= 1, "0 to 1"),
}


@dataclass(frozen=True)
class TrainOptions:
    """Options of a training run.

    Attributes:
        metric: Metric that ranks checkpoints. None takes the task's first.
        recipe: Name of the recipe that the values came from which were not given; see `given`.
        epochs: Passes over the training data. Fractions are allowed.
        max_steps: Training steps after which to stop, whatever `epochs` says. None is no limit.
        batch_size: Examples per device and forward pass.
        lr: Peak learning rate.
        layer_lr_decay: F in (0, 1]: the k-th layer below the top layer, which has k = 0, is trained
            at F^k of the learning rate, and the embeddings at F to the number of layers. None
            trains everything at the same rate.
        warmup_ratio: Fraction of the steps in which the learning rate rises, in [0, 1].
        scheduler: Learning-rate schedule after the warm-up.
        weight_decay: λ of the weight decay, decoupled as in AdamW: each step subtracts
            lr·λ times the weight.
        decay_toward: "zero", or "pretrained": w ← w - lr·λ·(w - u) for every parameter that came
            from the base. Fresh parameters always decay toward zero.
        head_weight_decay: λ of parameters that did not come from the base. None takes
            `weight_decay`.
        reinit_layers: Number of layers, counted from the output, that are initialized at random
            before training, together with the pooler (Zhang et al., 2021). They count as fresh:
            they are not mixed, and do not decay toward the pretrained weights. They depend on the
            seed of `prepare`, as a fresh head does.
        freeze: Modules that are not trained, with all modules inside them: name suffixes separated
            by commas, or a regular expression. Their layers are not mixed.
        label_smoothing: For classification: the share of each label that is spread evenly over all
            labels, in [0, 1). The evaluation loss is without it.
        class_weights: For classification: weights of the labels in the training loss, in the order
            of the labels and separated by commas, or "balanced": weights with which all labels
            count the same. The evaluation loss is without them.
        max_length: Maximum length in tokens. Longer texts are truncated, except the contexts of
            questions, which are read in windows. None takes 128, or the model's limit if lower.
        doc_stride: Tokens that two neighboring windows of a context share. None takes what an
            earlier training chose, else a third of the maximum length.
        pack_sequences: For language models: join the texts and cut them into blocks of the maximum
            length. Otherwise each row is one sequence.
        augment: For images: "standard" crops each training image at random, to a random size and
            shape, and mirrors half of them; "none" does neither. None is "standard".
        max_grad_norm: Gradients are clipped to this norm. 0 turns clipping off.
        gradient_accumulation: Forward passes per training step. Each draws its own masks.
        gradient_checkpointing: Recompute activations in the backward pass to save memory.
        precision: "fp32", or autocast to "bf16" or "fp16". Weights are always fp32.
        device: "cpu", "cuda", "cuda:1" or "mps". None takes a GPU if there is one.
        anchor_dtype: Dtype of the anchors in memory. None keeps the weights' dtype.
        resample_every: Training steps for which a mask is held. None draws a mask at every forward
            pass, which differs from 1 if gradients are accumulated or a layer runs several times.
        anchor_decay: λ in [0, 1]: each time masks are drawn for new steps, the anchors move toward
            the weights, u ← λu + (1 - λ)w. At 1 they do not move. Needs `resample_every`.
        optimizer_scope: What a step changes in a mixed weight: "all" of it, or the "active" columns
            only, which saves the moments of the others; see `MixoutAdamW`. "active" needs
            `resample_every`.
        seed: Seed of masks and dropout, and of the data order unless `data_seed` is given. An
            integer in [0, 2**63), like the other seeds.
        data_seed: Seed of the order of the training examples. None takes `seed`.
        examples: Number of rows of the training data to train on, chosen at random. None takes
            all.
        examples_seed: Seed of that choice. It depends on no other seed.
        eval_every: Training steps between evaluations. None evaluates after each epoch.
        save_every: Training steps between checkpoints. None saves after each epoch.
        keep: Number of checkpoints to keep while training.
        early_stopping: Stop when `patience` evaluations in a row show no improvement.
        patience: See `early_stopping`.
        select: Whether the "best" or the "last" checkpoint becomes the result. None takes the best
            if there are evaluation data. The untrained model is never a candidate.
        tracker: Experiment tracker to log to as well: "tensorboard", "wandb" or "trackio".
        p: Mix probability in [0, 1). None keeps the prepared one.
        log_every: Training steps between records of loss and learning rate.
    """

    metric: str | None = None
    recipe: str | None = None
    epochs: float = 3.0
    max_steps: int | None = None
    batch_size: int = 32
    lr: float = 2e-5
    layer_lr_decay: float | None = None
    warmup_ratio: float = 0.1
    scheduler: str = "linear"
    weight_decay: float = 0.01
    decay_toward: str = "zero"
    head_weight_decay: float | None = None
    reinit_layers: int | None = None
    freeze: str | None = None
    label_smoothing: float = 0.0
    class_weights: str | None = None
    max_length: int | None = None
    doc_stride: int | None = None
    pack_sequences: bool = False
    augment: str | None = None
    max_grad_norm: float = 1.0
    gradient_accumulation: int = 1
    gradient_checkpointing: bool = False
    precision: str = "fp32"
    device: str | None = None
    anchor_dtype: str | None = None
    resample_every: int | None = None
    anchor_decay: float = 1.0
    optimizer_scope: str = "all"
    seed: int = 0
    data_seed: int | None = None
    examples: int | None = None
    examples_seed: int = 0
    eval_every: int | None = None
    save_every: int | None = None
    keep: int = 2
    early_stopping: bool = False
    patience: int = 3
    select: str | None = None
    tracker: str | None = None
    p: float | None = None
    log_every: int = 10

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            is_valid, expected = _VALID.get(name, (lambda _: True, ""))
            is_unset = value is None and getattr(TrainOptions, name) is None
            if not is_unset and not is_valid(value):
                raise ArgumentError(f"{name.replace('_', '-')}: got {value!r}, expected {expected}")
        if self.p is not None:
            check_probability(self.p)
        self._check_masks()
        if self.freeze is not None:
            TargetPattern.parse(self.freeze, option="freeze")

    def _check_masks(self) -> None:
        """Refuse options of held masks that have no effect or would go wrong."""
        if self.resample_every is None:
            for name, value in (("anchor-decay", 1.0), ("optimizer-scope", "all")):
                given = getattr(self, name.replace("-", "_"))
                if given != value:
                    raise ArgumentError(
                        f"{name}: got {given}, which needs masks that are held for whole steps; "
                        "give --resample-every, too"
                    )
        if self.optimizer_scope == "active" and self.decay_toward == "pretrained":
            raise ArgumentError(
                "optimizer-scope: got active with --decay-toward pretrained, which changes the "
                "inactive columns, too; use --decay-toward zero"
            )
        if self.anchor_decay < 1.0 and self.anchor_dtype not in (None, "float32"):
            raise ArgumentError(
                f"anchor-decay: got {self.anchor_decay} with --anchor-dtype {self.anchor_dtype}, "
                "in which small moves would be rounded away; use --anchor-dtype float32"
            )

    @classmethod
    def given(cls, **values: Any) -> Self:
        """Build the options from those that are given, and from the recipe among them.

        `TrainOptions.given(recipe="small", epochs=3)` has the recipe's learning rate, but 3 epochs.
        """
        return cls(**with_recipe(values))

    @property
    def order_seed(self) -> int:
        """The seed of the order of the training examples."""
        return self.seed if self.data_seed is None else self.data_seed
