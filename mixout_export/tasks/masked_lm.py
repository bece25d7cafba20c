"""Masked language modeling: the tokens that are hidden in a text."""

from mixout_export.tasks.decision import TOKEN
from mixout_export.tasks.task import LANGUAGE_MODEL_METRICS, Task, Usage

MASKED_LM = Task(
    name="masked-lm",
    auto_class="AutoModelForMaskedLM",
    architecture_suffixes=("ForMaskedLM",),
    pipeline_tag="fill-mask",
    reader="mixout_export.data.readers.language_modeling:MaskedLM",
    answers="mixout_export.prediction.language:FilledText",
    has_labels=False,
    reports=LANGUAGE_MODEL_METRICS,
    decision=TOKEN,
    per_token=True,
    limits_others=False,
    over_vocabulary=True,
    usage=Usage(
        text='f"A text with a {tokenizer.mask_token}."',
        pipeline='f"A text with a {model.tokenizer.mask_token}."',
        javascript="`A text with a ${model.tokenizer.mask_token}.`",
    ),
)
